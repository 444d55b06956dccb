"""Progress bars on stderr, if that is a terminal.

A label may have a name from the dump: it is shown as it is, and neither rich nor the terminal takes it for more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vmcore2core.printable import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Update = Callable[[int, int], None]
"""Called with (bytes done, bytes in all, or 0 if that is not known)."""


LONG_S = 1.0
"""Seconds after which a task gets a bar."""


@contextmanager
def progress_bars(processes: int) -> Iterator[Callable[[str], Update | None]]:
    """Yield a function that takes the next core's label, and returns its progress callback.

    The core has a bar; if there are several cores, a bar for all of them is above it.
    """
    if not sys.stderr.isatty():
        yield lambda _label: None
        return
    with _bars() as bars:
        every = bars.add_task("processes", total=processes, amount=f"0/{processes}", visible=processes > 1)
        core = bars.add_task("", total=None, amount="")
        count = 0

        def bar(label: str) -> Update:
            nonlocal count
            bars.update(every, completed=count, amount=f"{count}/{processes}")
            count += 1
            bars.reset(core, description=one_line(label), total=None, amount="")
            return _updater(bars, core)

        yield bar


@contextmanager
def one_bar(label: str) -> Iterator[Update | None]:
    """Yield a progress callback for one task; a bar appears if the task takes long."""
    if not sys.stderr.isatty():
        yield None
        return
    begun = time.monotonic()
    with ExitStack() as stack:
        shown: Update | None = None

        def update(done: int, total: int) -> None:
            nonlocal shown
            if shown is None and time.monotonic() - begun >= LONG_S:
                bars = stack.enter_context(_bars())
                shown = _updater(bars, bars.add_task(one_line(label), total=None, amount=""))
            if shown is not None:
                shown(done, total)

        yield update


def _bars() -> Progress:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.fields[amount]}", markup=False),
        rich_progress.TimeRemainingColumn(),
    )
    return rich_progress.Progress(*columns, console=Console(stderr=True), transient=True)


def _updater(bars: Progress, task: TaskID) -> Update:
    from rich.filesize import decimal

    def update(done: int, total: int) -> None:
        amount = f"{decimal(done)}/{decimal(total)}" if total else decimal(done)
        bars.update(task, completed=done, total=total or None, amount=amount)

    return update
