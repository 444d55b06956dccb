"""Writes a minidump of a process, for crash report servers and stack walkers.

It has a core's memory, except the untouched pages of very large mappings, which a minidump cannot store as holes. Each
thread's stack comes first, for readers that do not know MDMemory64List. Unknown bytes are in no memory range; our own
note, in the minidump's comment, says what is missing and why.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from vmcore2core.addresses import align_down, align_up
from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.corefile.contexts import ContextForm, form_of
from vmcore2core.corefile.minidump_head import Facts, MemoryRanges, Range, head_of
from vmcore2core.corefile.plan import segments_of
from vmcore2core.corefile.sink import FileSink
from vmcore2core.corefile.stored import StoredMemory
from vmcore2core.corefile.writer import PROGRESS_EVERY, Output, PagesChanged, Progress, WriteReport, write_pages
from vmcore2core.errors import OutputError
from vmcore2core.interfaces import PageStream
from vmcore2core.printable import text
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.process.secrets import merged


def write_minidump(
    facts: Facts,
    snapshot: ProcessSnapshot,
    stream: PageStream,
    output: Output,
) -> WriteReport:
    """Write the minidump of a process.

    Args:
        facts: facts that the snapshot does not have.
        snapshot: the process.
        stream: its pages.
        output: where it goes; minidumps are never compressed, as no reader supports it.

    Raises:
        OutputError: minidumps have no form for the machine's registers; or the file cannot be written.
        PagesChanged: ``still_valid`` returned False.
    """
    form = form_of(snapshot.e_machine, snapshot.elf_class)
    if form is None:
        raise OutputError(
            f"{snapshot.tgid} ({text(snapshot.comm)}) gets no minidump: there is no form for registers of e_machine "
            f"{snapshot.e_machine}, class ELF{snapshot.elf_class}, expected an x86-64, i386, arm64 or arm process"
        )
    options = output.options
    if options.compression is not None:
        raise OutputError(f"{output.path}: a minidump is not compressed here")
    memory = memory_of(snapshot, form)
    head = head_of(facts, snapshot, StoredMemory(snapshot, stream), form, memory, output.origin, options.secrets)
    base = align_up(len(head), snapshot.page_size)
    with atomic_file(output.path, force=options.force, inputs=output.inputs) as fd:
        target = FileSink(fd, base + memory.size)
        target.write(memoryview(head), 0)
        present, zero = _write_memory(target, stream, memory, base, output.progress)
        target.finish(base + memory.size)
        if not output.still_valid():
            raise PagesChanged
    written = len(head) + (present - zero) * snapshot.page_size
    return WriteReport(base + memory.size, written, present, zero, len(memory.ranges))


def memory_of(snapshot: ProcessSnapshot, form: ContextForm) -> MemoryRanges:
    """Return the memory ranges that go into a process's minidump."""
    segments = [s for s in segments_of(snapshot) if s.filesz and not s.shared]
    stored = merged((segment.start, segment.start + segment.filesz) for segment in segments)
    stacks = merged(_stack_ranges(snapshot, form, stored))
    return MemoryRanges(tuple(stacks), tuple(_without(stored, stacks)))


def _stack_ranges(snapshot: ProcessSnapshot, form: ContextForm, stored: Sequence[Range]) -> Iterator[Range]:
    """Yield each thread's stack: from its stack pointer up to the first unknown byte or the mapping's end."""
    ends = [int(vma.end) for vma in snapshot.vmas]
    for thread in snapshot.threads:
        pointer = form.registers(thread)[form.stack_pointer]
        low = align_down(max(0, pointer - form.red_zone), snapshot.page_size)
        number = bisect_right(ends, pointer)
        vma = snapshot.vmas[number] if number < len(ends) else None
        piece = stored[max(0, bisect_right(stored, pointer, key=lambda one: one[0]) - 1)] if stored else (0, 0)
        if vma is not None and vma.start <= pointer and piece[0] <= pointer < piece[1]:
            yield max(low, piece[0], int(vma.start)), min(piece[1], int(vma.end))


def _without(stored: Sequence[Range], stacks: Sequence[Range]) -> Iterator[Range]:
    """Yield the parts of the stored ranges outside all stacks; each stack lies in one range, and all are ascending."""
    number = 0
    for start, end in stored:
        at = start
        while number < len(stacks) and stacks[number][0] < end:
            low, high = stacks[number]
            if at < low:
                yield at, low
            at, number = high, number + 1
        if at < end:
            yield at, end


def _write_memory(
    target: FileSink, stream: PageStream, memory: MemoryRanges, base: int, progress: Progress | None
) -> tuple[int, int]:
    """Write the pages; return the number of pages, and how many of them hold only zeros."""
    present = zero = told = 0
    size = base + memory.size
    for ranges in (memory.stacks, memory.rest):
        starts = np.array([start for start, _ in ranges], np.uint64)
        sizes = np.array([end - start for start, end in ranges], np.uint64)
        offsets = np.uint64(base) + np.cumsum(sizes, dtype=np.uint64) - sizes
        for vaddr, pages in stream.batches(ranges):
            full = pages.view(np.bool_).any(axis=1)
            present, zero = present + len(vaddr), zero + int(np.count_nonzero(~full))
            which = np.searchsorted(starts, vaddr, side="right") - 1
            places = offsets[which] + (vaddr - starts[which])
            if full.any():
                write_pages(target, places[full], pages[full])
            if progress is not None and len(places) and int(places[-1]) - told >= PROGRESS_EVERY:
                told = int(places[-1])
                progress(told, size)
        base += int(sizes.sum())
    if progress is not None:
        progress(size, size)
    return present, zero
