"""The commands' entry points, and ``python -m vmcore2core``.

Before the first import of weight, an interrupt ends the process as the system does it: nothing is there to clean up.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def _die_by_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def vmcore2core() -> None:
    """Run ``vmcore2core``; ``vmcore2core verify`` is a command of its own, unless a dump has that very name."""
    _die_by_signals()
    if sys.argv[1:2] == ["verify"] and not Path("verify").exists():
        del sys.argv[1]
        from vmcore2core.verify_cli import main
    else:
        from vmcore2core.cli import main

    main()


def vmcore_tasks() -> None:
    """Run ``vmcore-tasks``."""
    _die_by_signals()
    from vmcore2core.tasks_cli import main

    main()


if __name__ == "__main__":
    vmcore2core()
