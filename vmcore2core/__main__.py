"""The commands' entry points, and ``python -m vmcore2core``.

Before the first import of weight, an interrupt ends the process as the system does it: nothing is there to clean up.
"""

from __future__ import annotations

import signal


def _die_by_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def vmcore2core() -> None:
    """Run ``vmcore2core``."""
    _die_by_signals()
    from vmcore2core.cli import main

    main()


def vmcore_tasks() -> None:
    """Run ``vmcore-tasks``."""
    _die_by_signals()
    from vmcore2core.tasks_cli import main

    main()


if __name__ == "__main__":
    vmcore2core()
