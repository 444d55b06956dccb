"""Leave data out of a core on purpose, so that it can be given to others.

Pages that are left out are in no PT_LOAD, with ``AbsentReason.REDACTED``. If only some bytes of a page must go, they
become zeros, and the core's own note lists them (``ProcessSnapshot.blanked``). The bytes that a debugger needs for
backtraces stay: ELF headers of mapped files, the dynamic linker's list, the vDSO, and each thread's stack from its
stack pointer up to its outermost frame. Only ``--redact secrets`` searches the rest for secrets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from vmcore2core.addresses import U8Array, U64Array, UserAddr, align_down, align_up
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.errors import TaskError, UsageError
from vmcore2core.formats import link
from vmcore2core.interfaces import PageStream
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.linkmap import auxv_value, link_map
from vmcore2core.process.model import AbsentReason, AbsentRun, ProcessSnapshot, TagRun, Vma
from vmcore2core.process.secrets import ALL, ONE, Secrets, merged, parse_secrets
from vmcore2core.process.snapshot import Captured, Processes
from vmcore2core.process.stack import InitialStack

PROFILES = ("stacks", "no-files", "no-anon", "no-env")
GIVEN = f"{ONE}..."
"""How messages and the index show ``secret:`` with the user's secret."""
ENVIRONMENT_MAX = 1 << 24  # more than arguments and environment can have: three quarters of 8 MiB
DELETED = " (deleted)"
VM_GROWSDOWN = 0x100
"""Flags of the mapping that the kernel made for the initial stack (include/linux/mm.h, Linux 7.2)."""
FRAME_SLACK = 512
"""Bytes to keep above the outermost frame's stack pointer: its function seldom uses more."""
SIGNAL_SLACK = 1 << 12
"""The same if that frame is the return from a signal handler, which has the interrupted function's registers."""
GUARD_MAX = 1 << 20
"""Most bytes of a guard mapping below a thread's stack."""
THREAD_STACK_MAX = 64 << 20
"""Most bytes of a mapping above such a guard that counts as a thread's stack."""

Ranges = list[tuple[int, int]]


class ThreadFrames(NamedTuple):
    """The frames of a thread, innermost first.

    Attributes:
        tid: the thread.
        pointers: stack pointer of each frame, and whether the frame is the return from a signal handler.
        complete: whether the last one is the outermost.
    """

    tid: int
    pointers: tuple[tuple[int, bool], ...]
    complete: bool


Frames = Callable[[Captured], Iterable[ThreadFrames]]
"""Unwinds the stacks of a process: ``unwind.extents.thread_frames``."""


@dataclass(frozen=True, slots=True)
class Redaction:
    """What to remove.

    Attributes:
        files: memory of mapped files, shared memory included.
        anonymous: other memory.
        environment: the strings of the initial environment.
        patterns: shell patterns of paths or of names such as "[heap]": all memory of matching mappings goes.
        secrets: which secrets to search for in the remaining memory, or None.
        words: what ``--redact`` asked for, sorted, as the index records it: without the user's secrets.
    """

    files: bool = False
    anonymous: bool = False
    environment: bool = False
    patterns: tuple[str, ...] = ()
    secrets: Secrets | None = None
    words: tuple[str, ...] = field(default=(), compare=False)

    def unmatched(self, snapshot: ProcessSnapshot) -> tuple[str, ...]:
        """Return the patterns that match no mapping of a process."""
        names = [_name(vma) for vma in snapshot.vmas]
        return tuple(pattern for pattern in self.patterns if not any(_matches(name, pattern) for name in names))


def parse_redaction(words: Sequence[str]) -> Redaction | None:
    """Return what ``--redact`` asks for; None for nothing.

    Args:
        words: profiles, patterns, which have a "/", "[" or "*", and what ``parse_secrets`` takes.

    Raises:
        UsageError: one is neither.
    """
    secrets = [word for word in words if word == ALL or word.startswith(ONE)]
    patterns = tuple(word for word in words if word not in PROFILES and word not in secrets)
    for word in patterns:
        if not set(word) & set("/[*"):
            expected = f"{', '.join(PROFILES)}, {ALL}, {ONE}FILE|REGEX"
            raise UsageError(f"--redact {word}: expected {expected}, or a pattern such as '/dev/shm/*'")
    if not words:
        return None
    return Redaction(
        files=bool({"stacks", "no-files"} & set(words)),
        anonymous=bool({"stacks", "no-anon"} & set(words)),
        environment="no-env" in words,
        patterns=patterns,
        secrets=parse_secrets(secrets),
        words=tuple(sorted(GIVEN if word.startswith(ONE) else word for word in words)),
    )


def _name(vma: Vma) -> str:
    return vma.path.decode("utf-8", "surrogateescape") if vma.path is not None else vma.name


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a mapping's name matches, with or without the " (deleted)" of /proc/PID/maps.

    Names begin with "/" or "[", so that no set of characters can be meant by a "[" there.
    """
    shell = f"[[]{pattern[1:]}" if pattern.startswith("[") else pattern
    return any(one == pattern or fnmatchcase(one, shell) for one in (name, name.removesuffix(DELETED)))


def redact(
    redaction: Redaction, processes: Processes, leader: StructView, captured: Captured, frames: Frames
) -> Captured:
    """Return a process without the redacted data; redacting the result again changes nothing.

    Args:
        redaction: what to remove.
        processes: of the dump.
        leader: the thread group's leader.
        captured: the process.
        frames: unwinds its stacks.

    Raises:
        TaskError: the place of data that must go is not known, so no core may be written.
    """
    return _OfProcess(redaction, processes, leader, captured, frames).run()


def environment(processes: Processes, leader: StructView, captured: Captured) -> bytes:
    """Return the known strings of a process's initial environment, each with its NUL.

    Raises:
        TaskError: their place is not known.
    """
    page = captured.snapshot.page_size
    strings = b""
    for start, end in _OfProcess(Redaction(), processes, leader, captured, lambda _: ()).environment():
        for at in range(align_down(start, page), end, page):
            low, high = max(at, start), min(at + page, end)
            strings += captured.memory.read(low, high - low) or b"\0"
    return strings


class _OfProcess:
    def __init__(
        self, redaction: Redaction, processes: Processes, leader: StructView, captured: Captured, frames: Frames
    ) -> None:
        self.redaction, self.processes, self.leader, self.captured = redaction, processes, leader, captured
        self.frames = frames
        self.notices = list(captured.snapshot.notices)
        self.snapshot: ProcessSnapshot = captured.snapshot
        self.page = captured.snapshot.page_size

    def run(self) -> Captured:
        needed = self._needed() if self.redaction.files or self.redaction.anonymous else []
        stacks = self._stacks() if self.redaction.anonymous else []
        blanked: Ranges = []
        vmas: list[Vma] = []
        gone: Ranges = []
        for vma in self.snapshot.vmas:
            end = vma.dump_end(self.page)
            if end > vma.start and self._goes(vma):
                kept = [] if self._by_pattern(vma) else _within([*needed, *stacks], vma.start, end)
                self._tell(vma, kept, stacks)
                vma = self._without(vma, end, kept)
                blanked += _blank(kept, self.page)
                gone.append((int(vma.start), int(vma.end)))
            vmas.append(vma)
        if self.redaction.environment:
            blanked += self.environment()
        for pattern in self.redaction.unmatched(self.snapshot):
            self._notice(f"--redact {pattern!r} matches none of its mappings")
        snapshot = self.snapshot._replace(
            vmas=tuple(vmas),
            blanked=tuple(merged(blanked)),
            tags=self._tags(gone),
            notices=tuple(self.notices),
        )
        return self.captured._replace(snapshot=snapshot)

    def _notice(self, sentence: str) -> None:
        if sentence not in self.notices:
            self.notices.append(sentence)

    def _tell(self, vma: Vma, kept: Ranges, stacks: Ranges) -> None:
        """Say how many bytes of a mapping stay, and why."""
        if not kept:
            return
        size = sum(end - start for start, end in merged(kept))
        why = "stacks" if _within(stacks, vma.start, vma.end) else "ELF headers and the dynamic linker's list"
        name = text(_name(vma).encode("utf-8", "surrogateescape")) or "anonymous memory"
        self._notice(f"--redact keeps {size:#x} bytes of {vma.start:#x}-{vma.end:#x} ({name}): {why}")

    def _tags(self, gone: Ranges) -> tuple[TagRun, ...]:
        """Return the memory tags without those of mappings that lose any bytes."""
        starts = [start for start, _ in gone]
        tags = ((run, bisect_right(starts, run.start) - 1) for run in self.snapshot.tags)
        return tuple(run for run, before in tags if before < 0 or run.start >= gone[before][1])

    def _goes(self, vma: Vma) -> bool:
        if self._by_pattern(vma):
            return True
        return vma.name != "[vdso]" and (self.redaction.files if vma.path is not None else self.redaction.anonymous)

    def _by_pattern(self, vma: Vma) -> bool:
        return any(_matches(_name(vma), pattern) for pattern in self.redaction.patterns)

    def _without(self, vma: Vma, end: int, kept: Ranges) -> Vma:
        """Return a mapping that keeps only the pages with any byte of ``kept``."""
        pages = merged([(align_down(a, self.page), align_up(b, self.page)) for a, b in kept])
        runs = [
            AbsentRun(UserAddr(low), UserAddr(high), AbsentReason.REDACTED)
            for low, high in _gaps(pages, vma.start, end)
        ]
        for run in vma.absent:
            if run.reason is not AbsentReason.REDACTED:
                runs += [
                    AbsentRun(UserAddr(low), UserAddr(high), run.reason)
                    for low, high in _within(pages, run.start, run.end)
                ]
        return vma._replace(absent=tuple(sorted(runs, key=lambda run: run.start)))

    def _needed(self) -> Ranges:
        """Return the ranges that a debugger reads to find the files whose functions are on the stacks."""
        headers = [
            (vma.start, vma.start + self.page)
            for vma in self.snapshot.vmas
            if vma.path is not None and vma.pgoff == 0 and self.captured.memory.read(vma.start, 4) == b"\x7fELF"
        ]
        return [*headers, *link_map(self.snapshot, self.captured.memory.read).extents]

    def _stacks(self) -> Ranges:
        """Return the stacks: from the page below a stack pointer up to the outermost frame that is known.

        The initial stack stays up to its end, and as a whole where no thread's stack pointer is there: a signal handler
        may have a stack of its own. Any other mapping may be a heap or an arena in which a stack lies.
        """
        arch = self.processes.kernel.arch
        if arch.unwind.spec(self._machine()) is None:
            raise TaskError(self.snapshot.tgid, f"which memory is stacks is not known on {arch.name}")
        threads = list(self.frames(self.captured))
        stacks: Ranges = []
        below: Vma | None = None
        for vma in self.snapshot.vmas:
            own = [(thread, here) for thread in threads if (here := _frames_in(thread, vma))]
            if vma.name == "[stack]" or vma.vm_flags & VM_GROWSDOWN:
                lowest = min((here[0][0] for _, here in own), default=int(vma.start))
                stacks.append((self._page_below(lowest, vma), vma.end))
            else:
                guarded = below is not None and _guards(below, vma)
                stacks += [self._stack(thread, here, vma, guarded=guarded) for thread, here in own]
            below = vma
        return stacks

    def _machine(self) -> CoreMachine:
        snapshot = self.snapshot
        return CoreMachine(snapshot.e_machine, snapshot.elf_class, (), e_flags=snapshot.e_flags)

    def _page_below(self, pointer: int, vma: Vma) -> int:
        # A leaf function may use memory below the stack pointer (the red zone).
        return max(vma.start, align_down(pointer, self.page) - self.page)

    def _stack(self, thread: ThreadFrames, here: list[tuple[int, bool]], vma: Vma, *, guarded: bool) -> tuple[int, int]:
        """Return the part of a mapping that is a thread's stack."""
        start = self._page_below(here[0][0], vma)
        pointer, is_signal = here[-1]
        broken = not thread.complete and thread.pointers[-1] == here[-1]
        if broken and guarded:
            return start, vma.end
        if broken:
            self._notice(
                f"--redact keeps the stack of thread {thread.tid} up to {pointer:#x} alone: it cannot be unwound "
                "further, and what is above may not be stack"
            )
        return start, min(vma.end, pointer + (SIGNAL_SLACK if is_signal else FRAME_SLACK))

    def environment(self) -> Ranges:
        """Return where the strings of the initial environment are, according to both the kernel and the stack.

        A process may have moved either, and either may be damaged.
        """
        owner = self.processes.mm_of(self.leader)
        word = self.processes.kernel.arch.pointer_size
        start, end, arg_end = (owner.find_uint(name, word) for name in ("env_start", "env_end", "arg_end"))
        stack = InitialStack(owner, self.captured.memory, self._machine())
        # On the initial stack the environment lies between the arguments and the program's name
        # (fs/exec.c: do_execveat_common(), Linux 7.2).
        names = {auxv_value(self.snapshot, link.AT_EXECFN), stack.program_name()} - {None}
        ranges: Ranges = []
        if start is not None and end is not None and start <= end <= start + ENVIRONMENT_MAX:
            ranges.append((start, end))
            agreed = end in names
        else:
            agreed = False
        for name in filter(None, names):
            first = min((at for at in stack.strings_between(start, arg_end) if at < name), default=None)
            if first is not None and name - first <= ENVIRONMENT_MAX:
                ranges.append((first, name))
                agreed = True
        if not agreed:
            raise TaskError(
                self.snapshot.tgid,
                f"{self.snapshot.tgid}: no core is written: --redact no-env is to blank its environment, and where "
                "that is, is not known",
            )
        return [(low, high) for low, high in merged(ranges) if low < high]


def _frames_in(thread: ThreadFrames, vma: Vma) -> list[tuple[int, bool]]:
    """Return the frames of a thread that are in a mapping, the lowest first."""
    return sorted(pointer for pointer in thread.pointers if vma.start <= pointer[0] < vma.end)


def _guards(below: Vma, vma: Vma) -> bool:
    """Tell whether the mapping below makes one a thread's stack, as pthread_create(3) makes them."""
    return (
        below.end == vma.start
        and not below.p_flags
        and below.end - below.start <= GUARD_MAX
        and vma.end - vma.start <= THREAD_STACK_MAX
    )


def _within(ranges: Ranges, start: int, end: int) -> Ranges:
    """Return the parts of ranges that are in ``[start, end)``."""
    return [(max(a, start), min(b, end)) for a, b in ranges if a < end and b > start]


def _gaps(ranges: Ranges, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``[start, end)`` outside the ranges, which are merged."""
    at = start
    for low, high in [*ranges, (end, end)]:
        if low > at:
            yield at, low
        at = max(at, high)


def _blank(kept: Ranges, page: int) -> Iterator[tuple[int, int]]:
    """Yield the bytes to blank in pages that also have bytes to keep."""
    parts = merged(kept)
    for start, end in merged([(align_down(a, page), align_up(b, page)) for a, b in parts]):
        yield from _gaps(_within(parts, start, end), start, end)


class BlankedStream:
    """A ``PageStream`` with zeros in some ranges.

    Args:
        stream: the pages.
        blanked: ``(start, end)`` of user addresses.
        page_size: bytes.
    """

    def __init__(self, stream: PageStream, blanked: Sequence[tuple[int, int]], page_size: int) -> None:
        self.stream, self.blanked, self.page = stream, blanked, page_size

    def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[U64Array, U8Array]]:
        """Yield the pages with the blanked ranges zeroed."""
        blanked = list(self.blanked)
        for vaddr, pages in self.stream.batches(ranges):
            within = _within(blanked, int(vaddr[0]), int(vaddr[-1]) + self.page) if blanked and len(vaddr) else []
            yield vaddr, self._blanked(within, vaddr, pages)

    def _blanked(self, ranges: Ranges, vaddr: U64Array, pages: U8Array) -> U8Array:
        copied = False
        for low, high in ranges:
            first, last = np.searchsorted(vaddr, np.array([align_down(low, self.page), high], np.uint64)).tolist()
            for row in range(first, last):
                if not copied:
                    pages, copied = pages.copy(), True
                at = int(vaddr[row])
                pages[row, max(0, low - at) : high - at] = 0
        return pages
