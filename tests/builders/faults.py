"""System calls that fail, in this process: an error, an interrupt, or the end of the process at any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any
from unittest import mock

CALLS = (
    "open",
    "pwrite",
    "write",
    "ftruncate",
    "fsync",
    "link",
    "symlink",
    "replace",
    "rename",
    "mkdir",
    "close",
    "stat",
    "lstat",
    "unlink",
)
"""What is called to write, by its name in ``os``; pathlib calls these too."""


class Killed(BaseException):
    """SIGKILL: nothing is done from here on."""


class Faults:
    """Raises ``error`` at the ``at``-th call (from 1), before the call is made or after it; None: counts.

    An ``OSError`` comes at no unlink, as nobody can make up for one that fails. After ``Killed`` each call raises it.
    """

    def __init__(self, error: BaseException | None = None, at: int = 0, *, after: bool = False) -> None:
        self.error, self.at, self.after = error, at, after
        self.calls: list[str] = []
        self.raised = False
        names = [name for name in CALLS if not (name == "unlink" and isinstance(error, OSError))]
        self._patches = [mock.patch.object(os, name, self._wrap(name, getattr(os, name))) for name in names]

    def __enter__(self) -> Faults:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for patch in self._patches:
            patch.stop()

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        close = os.close

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            mine = self.error is not None and len(self.calls) == self.at
            over = self.raised and isinstance(self.error, Killed)
            if over or (mine and not self.after):
                self.raised = True
                if name == "close":
                    real(*args, **kwargs)  # Linux closes the descriptor whatever close(2) says
                raise self._fresh()
            result: Any = None if name == "fsync" else real(*args, **kwargs)  # it would only take time
            if mine:
                self.raised = True
                if name == "open":
                    close(result)
                raise self._fresh()
            return result

        return call

    def _fresh(self) -> BaseException:
        """Return an error without the traceback of the one before."""
        assert self.error is not None
        return type(self.error)(*self.error.args)
