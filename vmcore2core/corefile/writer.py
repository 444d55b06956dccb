"""Writing a core: headers first, then pages as they come, in bounded memory; zero pages stay holes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.corefile.copying import Copied, copy_with, pieces
from vmcore2core.corefile.notes import notes_of
from vmcore2core.corefile.options import PLAIN, CoreOptions
from vmcore2core.corefile.plan import CorePlan, build_plan, check_class
from vmcore2core.corefile.sink import FileSink, Sink, sink
from vmcore2core.elf.notes import build_notes
from vmcore2core.interfaces import PageStream
from vmcore2core.process.model import ProcessSnapshot

PROGRESS_EVERY = 16 << 20
HEAD_AT_ONCE = 1 << 20
"""Bytes of the head to write with one system call."""
TOGETHER_MIN = 32 << 20
"""From this many bytes on, several processes copy user memory: starting one costs as much as decoding 1,000 pages."""

Progress = Callable[[int, int], None]


class PagesChanged(Exception):
    """The stream's pages do not match the plan; no core was written."""


class WriteReport(NamedTuple):
    """What was written.

    Attributes:
        file_size: bytes of the core, holes included.
        written_bytes: bytes of it that are not holes.
        present_pages: pages that came from the dump.
        zero_pages: of these, pages that hold only zeros.
        segments: PT_LOADs.
    """

    file_size: int
    written_bytes: int
    present_pages: int
    zero_pages: int
    segments: int


@dataclass(frozen=True, slots=True)
class Output:
    """Where a core or minidump goes, and how it is written.

    Attributes:
        path: the file's name, which it gets only when it is complete.
        options: ``force``, ``compression``, ``copiers`` and ``secrets`` are used; the snapshot obeys the others.
        inputs: files that must never be replaced: the dump's.
        origin: facts about the dump for our own note.
        progress: called with (bytes done, total bytes) of the file.
        still_valid: called after all pages were read; tells whether ``snapshot.vmas`` still lists the absent pages.
    """

    path: Path
    options: CoreOptions = PLAIN
    inputs: tuple[Path, ...] = ()
    origin: Mapping[str, str | None] = field(default_factory=dict)
    progress: Progress | None = None
    still_valid: Callable[[], bool] = lambda: True


Writer = Callable[[ProcessSnapshot, PageStream, Output], WriteReport]
"""Writes a file of a process: ``write_core``, or ``minidump.write_minidump``."""


def write_core(snapshot: ProcessSnapshot, stream: PageStream, output: Output, *, verify: bool = True) -> WriteReport:
    """Write the core of a process.

    Args:
        snapshot: the process.
        stream: its pages.
        output: where it goes.
        verify: read the headers back with another ELF reader before the core gets its name.

    Raises:
        OutputError: it cannot be written.
        PagesChanged: ``still_valid`` returned False, or untouched memory has contents.
    """
    check_class(snapshot)
    options, progress, still_valid = output.options, output.progress, output.still_valid
    notes = build_notes(notes_of(snapshot, output.origin, options.secrets), snapshot.byte_order)
    plan = build_plan(snapshot, notes)
    pages = _Pages(plan, stream, snapshot.page_size, progress)
    with atomic_file(output.path, force=options.force, inputs=output.inputs) as fd:
        if options.compression is None:
            FileSink(fd, plan.file_size)  # which finds that the file may not be so large
        copied = pages.copy_together(fd, 1 if options.compression else options.copiers, still_valid)
        if copied is None:
            os.ftruncate(fd, 0)
        report = _write(sink(fd, options.compression, plan.file_size), plan, pages, snapshot.page_size, copied)
        if progress is not None:  # which may refuse, so before the core gets its name
            progress(plan.file_size, plan.file_size)
        if not still_valid():
            raise PagesChanged
        if verify:
            from vmcore2core.corefile.verify import verify_head

            verify_head(plan, snapshot, output.path)
    return report


class _Pages:
    """The pages of one core on their way into its file.

    Args:
        plan: where everything goes.
        stream: the pages.
        page_size: bytes of each.
        progress: called with (bytes done, total bytes).
    """

    def __init__(self, plan: CorePlan, stream: PageStream, page_size: int, progress: Progress | None) -> None:
        self._plan, self._stream, self._page_size, self._progress = plan, stream, page_size, progress
        filled = [segment for segment in plan.segments if segment.filesz]
        self.ranges = [(segment.start, segment.start + segment.filesz) for segment in filled]
        self._starts, self._offsets = (
            np.array([getattr(s, name) for s in filled], np.uint64) for name in ("start", "offset")
        )
        self._shared = np.array([segment.shared for segment in filled], np.bool_)
        self._reported = 0

    def copy(self, target: Sink, ranges: Sequence[tuple[int, int]]) -> Copied:
        """Copy the pages of some ranges, and return how many were copied.

        Raises:
            PagesChanged: untouched memory has contents.
        """
        present = zero = 0
        for vaddr, pages in self._stream.batches(ranges):
            # A view as bool tests eight megabytes a millisecond, three times as fast as comparing.
            full = pages.view(np.bool_).any(axis=1)
            nr_full = int(np.count_nonzero(full))
            which = np.searchsorted(self._starts, vaddr, side="right") - 1
            if self._shared[which[full]].any():
                raise PagesChanged
            present += len(vaddr)
            zero += len(vaddr) - nr_full
            places = self._offsets[which] + (vaddr - self._starts[which])
            if nr_full:
                whole = nr_full == len(vaddr)
                write_pages(target, places if whole else places[full], pages if whole else pages[full])
            if len(vaddr):
                self._tell(int(places[-1]))
        return Copied(present, zero)

    def copy_together(self, fd: int, processes: int, still_valid: Callable[[], bool]) -> Copied | None:
        """Copy all pages with several processes; return None if they failed, or if it is not worthwhile.

        Args:
            fd: the file.
            processes: number of processes.
            still_valid: as in ``Output``.
        """
        if processes < 2 or sum(end - start for start, end in self.ranges) < TOGETHER_MIN:
            return None
        progress, self._progress = self._progress, None

        def copy(ranges: Sequence[tuple[int, int]]) -> Copied:
            copied = self.copy(FileSink(fd, self._plan.file_size), ranges)
            if not still_valid():
                raise PagesChanged
            return copied

        work = list(pieces(self.ranges))
        try:
            return copy_with(processes, work, copy, lambda done: self._tell(done * self._plan.file_size // len(work)))
        finally:
            self._progress = progress

    def _tell(self, done: int) -> None:
        if self._progress is not None and done - self._reported >= PROGRESS_EVERY:
            self._reported = done
            self._progress(done, self._plan.file_size)


def _write(target: Sink, plan: CorePlan, pages: _Pages, page_size: int, copied: Copied | None) -> WriteReport:
    """Write the rest of the file, including the pages unless ``copied`` says that they are written."""
    for offset in range(0, plan.head.size, HEAD_AT_ONCE):
        target.write(memoryview(plan.head.read(offset, HEAD_AT_ONCE)), offset)
    copied = copied or pages.copy(target, pages.ranges)
    if plan.tail:
        target.write(memoryview(plan.tail), plan.file_size - len(plan.tail))
    target.finish(plan.file_size)
    written = plan.head.size + (copied.present - copied.zero) * page_size + len(plan.tail)
    return WriteReport(plan.file_size, written, copied.present, copied.zero, len(plan.segments))


def write_pages(target: Sink, places: U64Array, pages: U8Array) -> None:
    """Write pages to their file offsets, adjacent pages in one call."""
    breaks = np.flatnonzero(np.diff(places) != pages.shape[1]) + 1
    firsts = [0, *breaks.tolist()]
    for first, last in zip(firsts, [*firsts[1:], len(places)], strict=True):
        target.write(pages[first:last].reshape(-1).data, int(places[first]))
