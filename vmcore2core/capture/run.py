"""Write the cores of one crash within the limits of the configuration.

First the run writes the registers and stacks of all chosen processes, most important first. Then, in the same order,
it replaces them by whole cores, as far as the limits allow. At any moment each core and the index are whole or absent,
even if the time limit, a full disk, SIGKILL or a panic of the capture kernel ends the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vmcore2core.capture.config import Config, Limits, Wanted
from vmcore2core.choose import choose
from vmcore2core.convert import core_path
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import OutputError, Vmcore2coreError, sentence_of
from vmcore2core.folders import bytes_on_disk
from vmcore2core.handover.entry import KernelReaders, identity_entry
from vmcore2core.handover.index import Index, entry_text
from vmcore2core.printable import amount, text
from vmcore2core.process.copies import Copies
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.identity import Identity
from vmcore2core.process.redact import Redaction
from vmcore2core.process.snapshot import Captured
from vmcore2core.run.index_entries import core_entry, described, index_head, kernel_stacks_of, stacks_of
from vmcore2core.run.space import core_size
from vmcore2core.session import CoreResult, Session
from vmcore2core.unwind.originals import Files

CORES = "cores"
STACKS = DumpFilter.ANON_PRIVATE | DumpFilter.ELF_HEADERS
"""The kinds of mappings that hold stacks, and data that a debugger needs to follow them."""
CACHED_PAGES = 1024
"""Most pages of kernel memory to cache: 4 MiB."""
LOG_NAME = "capture.log"
DATE_FORMAT = "%Y%m%d%H%M"
"""Format of kdump-tools' names for a dump's directory."""

Say = Callable[[str], None]


class TimeUp(BaseException):
    """The time is over, or the service manager stops us; no ``Exception``, so handlers for one process let it pass."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise ``TimeUp`` in the block once the seconds are over, or when SIGTERM comes."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    # Cleanup is short; a second signal must not interrupt it.
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise TimeUp("the time is over" if number == signal.SIGALRM else "SIGTERM came")


@dataclass(frozen=True, slots=True)
class Room:
    """The space that a file system has left for cores.

    Attributes:
        directory: a directory on it.
        limits: the limits to keep to.
    """

    directory: Path
    limits: Limits

    def refusal(self, needed: int, written: int) -> str | None:
        """Return why a core of ``needed`` bytes has no room after ``written`` bytes of cores, or None."""
        limits = self.limits
        if limits.core is not None and needed > limits.core:
            return f"it would take {amount(needed)}, and one core may take {amount(limits.core)}"
        if limits.total is not None and written + needed > limits.total:
            return (
                f"it would take {amount(needed)}, and of the {amount(limits.total)} for all cores "
                f"{amount(max(limits.total - written, 0))} are left"
            )
        free, least = self._free()
        if free - needed < least:
            wanted = f"it would take {amount(needed)}, " if needed else ""
            return f"{wanted}{amount(free)} are free, and {amount(least)} must stay free"
        return None

    def watch(self, _done: int, _total: int) -> None:
        """Stop writing a core when it uses space that must stay free (``corefile.writer.Progress``).

        Raises:
            OutputError: it does.
        """
        free, least = self._free()
        if free < least:
            raise OutputError(f"{self.directory} has {amount(free)} free, and {amount(least)} must stay free")

    def _free(self) -> tuple[int, int]:
        found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize, self.limits.free_at_least(found.f_blocks * found.f_frsize)


@dataclass(frozen=True, slots=True)
class Target:
    """One wanted process."""

    chosen: Identity
    stacks_only: bool

    @property
    def who(self) -> str:
        """Its PID and name, for people."""
        return f"{self.chosen.pid} ({text(self.chosen.comm)})"


def targets(session: Session, wanted: Sequence[Wanted], say: Say) -> list[Target]:
    """Return the wanted processes, most important first, without repeats.

    Raises:
        LayoutError: the layout lacks a member that the conditions need.
    """
    found: dict[int, Target] = {}
    for number, one in enumerate(wanted, 1):
        chosen, errors = choose(session.processes, one.choice)
        for _, error in errors:
            say(f"[[process]] number {number}: {error}")
        for process in chosen:
            found.setdefault(process.pid, Target(process, one.stacks_only))
    return list(found.values())


class Capture:
    """The cores of one crash.

    Args:
        session: the dump.
        config: the configuration.
        directory: where the cores go; it exists.
        say: takes each sentence for people.

    Attributes:
        whole, stacks, nothing: the processes with whole cores, with stacks only, and without a core.
        finished: whether every process had its turn.
    """

    def __init__(self, session: Session, config: Config, directory: Path, say: Say) -> None:
        self.session, self.config, self.directory, self._say = session, config, directory, say
        session.boot.memory.physical.cached_pages = CACHED_PAGES
        self._room = Room(directory, config.limits)
        self._index = Index(directory, index_head(session, config.words))
        self._sizes: dict[int, int] = {}
        self._began = time.monotonic()
        self._wanted: list[Target] = []
        self.whole: list[Target] = []
        self.stacks: list[Target] = []
        self.nothing: list[Target] = []
        self.finished = False

    def run(self) -> None:
        """Write the cores that the limits allow, until all are done or ``TimeUp`` is raised.

        Raises:
            OutputError: the index cannot be written.
        """
        with self._until_time_is_up():
            self._index.write()
            self._wanted = targets(self.session, self.config.wanted, self._say)
            self._write_all_stacks()
            self._write_whole_cores()
            self._describe_all()
            self.finished = True
        self._index.warnings = list(self.session.warnings)
        self._index.write(finished=self.finished)

    @contextlib.contextmanager
    def _until_time_is_up(self) -> Iterator[None]:
        """If ``TimeUp`` or an error ends the block, say what is left undone."""
        try:
            yield
        except TimeUp as over:
            self._say(f"{over} after {self._elapsed}")
            self._left_over(str(over))
        except Vmcore2coreError as error:
            self._say(str(error))
            self._index.errors.append({"pid": None, "comm": None, "error": str(error)})

    def _write_all_stacks(self) -> None:
        for target in self._wanted:
            self._write_stacks(target)
            self.session.boot.layout.forget()
        self._index.write()
        self._say(f"stacks of {len(self.stacks)} processes after {self._elapsed}")

    def _write_whole_cores(self) -> None:
        for target in list(self.stacks):
            self._write_whole(target)

    def _describe_all(self) -> None:
        for target in (*self.whole, *self.stacks):
            self._describe(target)

    @property
    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._began:.1f} s"

    def _write_stacks(self, target: Target) -> None:
        """Write registers and stacks of a process."""
        core = self.config.core
        redaction = replace(core.redaction or Redaction(), files=True, anonymous=True)
        try:
            self._refuse(target, 0)
            result = self._extract(target, replace(core, dump_filter=STACKS, redaction=redaction))
            identity = identity_entry(target.chosen, result.snapshot)
        except Exception as error:  # one process must not cost the others their cores
            self._failed(target, sentence_of(error))
            return
        reason = "stacks_only is set" if target.stacks_only else "its turn for more had not come"
        later: dict[str, Any] = {"threads": [], "vmas": [], "images": [], "files": None}
        self._index.add(
            entry_text({**identity, **later, "core": core_entry(result), "capture": _kept("stacks", reason)})
        )
        self.stacks.append(target)

    def _write_whole(self, target: Target) -> None:
        """Replace a process's core of stacks by a whole core, if there is room."""
        if target.stacks_only:
            return
        pid = target.chosen.pid
        try:
            captured = self.session.capture(target.chosen.leader, self.config.core)
            self._refuse(target, core_size(captured).on_disk)
            result = self._extract(target, replace(self.config.core, force=True), captured)
        except Exception as error:  # likewise; its stacks stay
            self._keep_stacks(target, sentence_of(error))
            return
        self._index.amend(pid, core=core_entry(result), capture=_kept("whole"))
        self._index.write()
        self.stacks.remove(target)
        self.whole.append(target)

    def _describe(self, target: Target) -> None:
        """Add the stacks with names, the mappings and the build IDs to the index."""
        leader, pid = target.chosen.leader, target.chosen.pid
        try:
            captured = self.session.capture(leader, self.config.core)
            stacks = stacks_of(self.session, captured, self._stack_files)
            self._index.amend(pid, **described(self.session, leader, captured, stacks, self._kernel_readers))
        except Exception as error:  # likewise; its core is there
            self._say(f"{target.who} is not described: {sentence_of(error)}")

    @cached_property
    def _stack_files(self) -> Files:
        return Files(copies=Copies(self.session.processes))

    @cached_property
    def _kernel_readers(self) -> KernelReaders:
        return KernelReaders(kernel_stacks_of(self.session))

    def _extract(self, target: Target, options: CoreOptions, captured: Captured | None = None) -> CoreResult:
        leader = target.chosen.leader
        path = core_path(self.directory, leader, options)
        result = self.session.extract(leader, path, options, captured=captured, progress=self._room.watch)
        self._sizes[target.chosen.pid] = bytes_on_disk(path.stat())
        return result

    def _refuse(self, target: Target, needed: int) -> None:
        """Raise ``OutputError`` if a core of ``needed`` bytes has no room; it replaces the process's core of stacks."""
        written = sum(size for pid, size in self._sizes.items() if pid != target.chosen.pid)
        reason = self._room.refusal(needed, written)
        if reason is not None:
            raise OutputError(reason)

    def _keep_stacks(self, target: Target, reason: str) -> None:
        self._say(f"{target.who} keeps its stacks alone: {reason}")
        self._index.amend(target.chosen.pid, capture=_kept("stacks", reason))

    def _failed(self, target: Target, reason: str) -> None:
        self._say(f"{target.who} has no core: {reason}")
        identity = target.chosen
        self._index.errors.append({"pid": identity.pid, "comm": text(identity.comm), "error": reason})
        self.nothing.append(target)

    def _left_over(self, reason: str) -> None:
        """For each process whose turn did not come, say what was written of it."""
        done = {target.chosen.pid for target in (*self.whole, *self.stacks, *self.nothing)}
        for target in self._wanted:
            if target.chosen.pid not in done:
                self._failed(target, reason)
        for target in self.stacks:
            if not target.stacks_only:
                self._keep_stacks(target, reason)


def _kept(what: str, reason: str | None = None) -> dict[str, str | None]:
    """Return the index's fields that say how much of a process was written, and why no more."""
    return {"kept": what, "reason": reason}
