"""What is left out of a core on purpose, so that it can be given to somebody else.

Pages that are left out are in no PT_LOAD, with ``AbsentReason.REDACTED``; where only some bytes of a page must go,
these are zeros, and the core's own note says which (``ProcessSnapshot.blanked``). What a debugger needs for backtraces
stays, byte by byte: ELF headers of mapped files, the dynamic linker's list, the vDSO, and each thread's stack from its
stack pointer up. A copy of a secret in what stays, such as on a stack, is not looked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from vmcore2core.addresses import U8Array, U64Array, UserAddr, align_down, align_up
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.errors import TaskError, UsageError
from vmcore2core.formats import link
from vmcore2core.interfaces import PageStream
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.capture import Captured, Processes
from vmcore2core.process.linkmap import auxv_value, link_map
from vmcore2core.process.model import AbsentReason, AbsentRun, ProcessSnapshot, TagRun, Vma

PROFILES = ("stacks", "no-files", "no-anon", "no-env")
ENVIRONMENT_MAX = 1 << 24  # more than MAX_ARG_STRINGS ever come to: three quarters of 8 MiB

Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Redaction:
    """What goes.

    Attributes:
        files: memory of mapped files, shared memory included.
        anonymous: other memory.
        environment: the strings of the initial environment.
        patterns: shell patterns of the mappings' paths, or names such as "[heap]", of which all memory goes.
    """

    files: bool = False
    anonymous: bool = False
    environment: bool = False
    patterns: tuple[str, ...] = ()


def parse_redaction(words: Sequence[str]) -> Redaction | None:
    """Return what ``--redact`` asks for; None for nothing.

    Args:
        words: profiles, and patterns, which have a "/", "[" or "*".

    Raises:
        UsageError: one is neither.
    """
    patterns = tuple(word for word in words if word not in PROFILES)
    for word in patterns:
        if not set(word) & set("/[*"):
            raise UsageError(f"--redact {word}: expected {', '.join(PROFILES)}, or a pattern such as '/dev/shm/*'")
    if not words:
        return None
    return Redaction(
        files=bool({"stacks", "no-files"} & set(words)),
        anonymous=bool({"stacks", "no-anon"} & set(words)),
        environment="no-env" in words,
        patterns=patterns,
    )


def redact(redaction: Redaction, processes: Processes, leader: StructView, captured: Captured) -> Captured:
    """Return a process without what is to go; done again with what it returned, it changes nothing.

    Args:
        redaction: what goes.
        processes: of the dump.
        leader: the thread group's leader.
        captured: the process.

    Raises:
        TaskError: where something is that must go is not known, so no core may be written.
    """
    return _OfProcess(redaction, processes, leader, captured).run()


class _OfProcess:
    def __init__(self, redaction: Redaction, processes: Processes, leader: StructView, captured: Captured) -> None:
        self.redaction, self.processes, self.leader, self.captured = redaction, processes, leader, captured
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
                vma = self._without(vma, end, kept)
                blanked += _blank(kept, self.page)
                gone.append((int(vma.start), int(vma.end)))
            vmas.append(vma)
        if self.redaction.environment:
            blanked += self._environment()
        snapshot = replace(self.snapshot, vmas=tuple(vmas), blanked=tuple(_merged(blanked)), tags=self._tags(gone))
        return replace(self.captured, snapshot=snapshot)

    def _tags(self, gone: Ranges) -> tuple[TagRun, ...]:
        """Return the memory tags without those of mappings of which anything goes."""
        starts = [start for start, _ in gone]
        tags = ((run, bisect_right(starts, run.start) - 1) for run in self.snapshot.tags)
        return tuple(run for run, before in tags if before < 0 or run.start >= gone[before][1])

    def _goes(self, vma: Vma) -> bool:
        if self._by_pattern(vma):
            return True
        return vma.name != "[vdso]" and (self.redaction.files if vma.path is not None else self.redaction.anonymous)

    def _by_pattern(self, vma: Vma) -> bool:
        name = vma.path.decode("utf-8", "surrogateescape") if vma.path is not None else vma.name
        return any(fnmatchcase(name, pattern) or name == pattern for pattern in self.redaction.patterns)

    def _without(self, vma: Vma, end: int, kept: Ranges) -> Vma:
        """Return a mapping of which only the pages that have any byte of ``kept`` stay."""
        pages = _merged([(align_down(a, self.page), align_up(b, self.page)) for a, b in kept])
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
        return replace(vma, absent=tuple(sorted(runs, key=lambda run: run.start)))

    def _needed(self) -> Ranges:
        """Return what a debugger reads to find the files whose functions are on the stacks."""
        headers = [
            (vma.start, vma.start + self.page)
            for vma in self.snapshot.vmas
            if vma.path is not None and vma.pgoff == 0 and self.captured.memory.read(vma.start, 4) == b"\x7fELF"
        ]
        return [*headers, *link_map(self.snapshot, self.captured.memory.read).extents]

    def _stacks(self) -> Ranges:
        """Return the stacks: from the page of each stack pointer to the end of its mapping.

        Where no thread's stack pointer is in the initial stack, that stays as a whole: a signal handler may have a
        stack of its own.
        """
        arch = self.processes.kernel.arch
        spec = arch.unwind_spec(
            CoreMachine(self.snapshot.e_machine, self.snapshot.elf_class, (), e_flags=self.snapshot.e_flags)
        )
        if spec is None:
            raise TaskError(self.snapshot.tgid, f"which memory is stacks is not known on {arch.name}")
        name = spec.registers[spec.stack_pointer]
        pointers = [
            regs.regs[name] for _, regs in self.captured.answers if not isinstance(regs, str) and name in regs.regs
        ]
        stacks: Ranges = []
        for vma in self.snapshot.vmas:
            inside = [pointer for pointer in pointers if vma.start <= pointer < vma.end]
            if inside:
                # The page below as well: a leaf function may use memory below the stack pointer (the red zone).
                stacks.append((max(vma.start, align_down(min(inside), self.page) - self.page), vma.end))
            elif vma.name == "[stack]":
                stacks.append((vma.start, vma.end))
        return stacks

    def _environment(self) -> Ranges:
        """Return where the strings of the initial environment are."""
        owner = self.processes.mm_of(self.leader)
        word = self.processes.kernel.arch.pointer_size
        start, end = (owner.find_uint(name, word) for name in ("env_start", "env_end"))
        if start is None or end is None:
            # On the initial stack the environment lies between the arguments and the program's name
            # (fs/exec.c: do_execveat_common(), Linux 7.2).
            start, end = owner.find_uint("arg_end", word), auxv_value(self.snapshot, link.AT_EXECFN)
        if start is None or end is None or not start <= end <= start + ENVIRONMENT_MAX:
            raise TaskError(
                self.snapshot.tgid,
                f"{self.snapshot.tgid}: no core is written: where its environment is, which --redact no-env is to "
                "blank, is not known",
            )
        return [(start, end)] if start < end else []


def _merged(ranges: Ranges) -> Ranges:
    merged: Ranges = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _within(ranges: Ranges, start: int, end: int) -> Ranges:
    """Return the parts of ranges that are in ``[start, end)``."""
    return [(max(a, start), min(b, end)) for a, b in ranges if a < end and b > start]


def _gaps(ranges: Ranges, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield what of ``[start, end)`` is in none of the ranges, which are merged."""
    at = start
    for low, high in [*ranges, (end, end)]:
        if low > at:
            yield at, low
        at = max(at, high)


def _blank(kept: Ranges, page: int) -> Iterator[tuple[int, int]]:
    """Yield what is not to be kept of the pages that have any byte that is."""
    parts = _merged(kept)
    for start, end in _merged([(align_down(a, page), align_up(b, page)) for a, b in parts]):
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

    def batches(self, start: int, end: int) -> Iterator[tuple[U64Array, U8Array]]:
        """See ``PageStream.batches``."""
        ranges = _within(list(self.blanked), start, end)
        for vaddr, pages in self.stream.batches(start, end):
            yield vaddr, self._blanked(ranges, vaddr, pages)

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
