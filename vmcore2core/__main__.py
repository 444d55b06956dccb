"""The commands' entry points, and ``python -m vmcore2core``.

Until the first large import, an interrupt ends the process in the system's default way: nothing needs cleaning up.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_STDERR = 2
GC_THRESHOLD = 10_000


def _prepare() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # When numpy loads OpenBLAS, it starts one thread per CPU, each with 40 MiB of address space. Nothing here uses
    # them, and a process with threads must not fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Most objects made here stay, and are in no cycle. To look for cycles each 700 objects, Python's default, takes a
    # tenth of a process of thousands of threads.
    gc.set_threshold(GC_THRESHOLD)
    _open_standard_streams()


def _open_standard_streams() -> None:
    """Open the standard streams that the caller closed: else a core could get descriptor 2, and our messages."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - likewise


COMMANDS = ("debug", "verify", "capture", "journal")


def vmcore2core() -> None:
    """Run ``vmcore2core``, or one of its subcommands ``COMMANDS``; a dump of the same name takes precedence."""
    _prepare()
    # When a shell asks for completions, typer's environment variables hold the words typed so far.
    asked = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    words = (*sys.argv[1:2], *asked.split()[1:2])
    command = next((name for name in COMMANDS if name in words and not Path(name).exists()), None)
    if command is not None:
        del sys.argv[1:2]
    _main_of(command)()


def _main_of(command: str | None) -> Callable[[], None]:
    if command == "debug":
        from vmcore2core.commands.debug import main
    elif command == "verify":
        from vmcore2core.commands.verify import main
    elif command == "capture":
        from vmcore2core.commands.capture import main
    elif command == "journal":
        from vmcore2core.commands.journal import main
    else:
        from vmcore2core.commands.convert import main
    return main


def vmcore_tasks() -> None:
    """Run ``vmcore-tasks``."""
    _prepare()
    from vmcore2core.commands.tasks.app import main

    main()


if __name__ == "__main__":
    vmcore2core()
