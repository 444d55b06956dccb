"""In tests, a layout refuses a question that ``layout/asked.py`` does not list."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import vmcore2core
from vmcore2core.arch import all_archs
from vmcore2core.layout import asked
from vmcore2core.layout.resolver import KernelLayout

PACKAGE = Path(vmcore2core.__file__).parent
PASSING_ON = {
    "layout/resolver.py",
    "layout/export.py",
    *(f"kernel/{name}.py" for name in ("struct", "structs", "list", "bounds")),
}
"""Files that ask what they are asked."""


@cache
def listed() -> frozenset[str]:
    """All keys of the list, and of the machines' own lists."""
    return frozenset((*asked.keys(), *(key for arch in all_archs() for key in arch.layout_keys)))


def who_asks() -> str | None:
    """Return the file of the package that asks the layout, or None if a test asks."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        file = Path(frame.f_code.co_filename)
        if not file.is_relative_to(PACKAGE):
            return None
        if str(file.relative_to(PACKAGE)) not in PASSING_ON:
            return str(file.relative_to(PACKAGE))
        frame = frame.f_back
    return None


def refuse_what_is_not_listed() -> None:
    """Let every layout of this program fail if it is asked for something else."""
    ask: Callable[..., Any] = KernelLayout._ask

    def checked(self: KernelLayout, item: str, question: Callable[..., Any]) -> Any:
        if item not in listed() and (file := who_asks()) is not None:
            raise AssertionError(f"{file} asks {item}, which neither layout/asked.py nor a machine's layout_keys has")
        return ask(self, item, question)

    KernelLayout._ask = checked  # type: ignore[method-assign,assignment]
