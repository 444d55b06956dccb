"""Where everything goes in the file: Ehdr, program headers, PT_NOTE, PT_LOADs.

A mapping without absent pages is one PT_LOAD, as the kernel writes it: p_filesz is p_memsz, and pages that were never
touched are holes. Absent pages are in no PT_LOAD: they must never read as zeros, and debuggers differ in what they make
of p_memsz beyond p_filesz (gdb 13.1, lldb 14.0.6, both tried in tests/corefile/test_debuggers.py):

- gdb looks at the contents of PT_LOADs first, then at the files of NT_FILE, and then reads a PT_LOAD's part without
  contents as zeros. So it takes absent pages of a mapped file from that file, or says that it cannot access them.
- lldb takes the first PT_LOAD with contents that has the address, and fails beyond its contents. So PT_LOADs may not
  overlap, and present pages behind absent ones need a PT_LOAD of their own.

If a mapping extends beyond the mapped file's end, its PT_LOAD goes on there without contents, because no such pages
exist; the kernel's cores have zeros there.

Mappings that do not belong in the core (VM_DONTDUMP, VM_IO, coredump_filter) get a PT_LOAD without contents, as in the
kernel's cores; gdb reads them from the mapped file, or shows zeros, as it does with the kernel's.

If a process has terabytes of untouched memory, the PT_LOADs of that memory share one hole in the file. Each has full
contents, so both debuggers read zeros, and the file stays within file systems' limits.

Memory tags follow the pages, and their program headers follow the PT_LOADs, as in the kernel's cores. The kernel writes
one such header per mapping; we write one per run of pages whose tags are known.

References: System V gABI, "Program Header"; fs/binfmt_elf.c: elf_core_dump(), fill_extnum_info();
arch/arm64/kernel/elfcore.c (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np

from vmcore2core.corefile.head import Head
from vmcore2core.errors import OutputError
from vmcore2core.formats import elf as fmt
from vmcore2core.formats._cabi import ByteOrder, ElfClass, align_up
from vmcore2core.process.model import NO_SUCH_PAGE, AbsentReason, ProcessSnapshot, Vma

PT_NOTE_ALIGN = 4
HOLE_SIZE = 1 << 34
"""Bytes of the hole that untouched memory shares."""


class Segment(NamedTuple):
    """One PT_LOAD: ``[start, start + memsz)``, of which the first ``filesz`` bytes are at ``offset`` in the file.

    Attributes:
        shared: whether these bytes are the hole that all shared segments use.
    """

    start: int
    memsz: int
    filesz: int
    p_flags: int
    offset: int = 0
    shared: bool = False


class CorePlan(NamedTuple):
    """A core file without the bytes of its pages.

    Attributes:
        head: everything before the first page: Ehdr, program headers, the section header of PN_XNUM, PT_NOTE.
        segments: PT_LOADs in address order, with their offsets.
        file_size: bytes of the finished file.
        tail: what follows the last page: memory tags.
    """

    head: Head
    segments: tuple[Segment, ...]
    file_size: int
    tail: bytes = b""


def segments_of(snapshot: ProcessSnapshot) -> Iterator[Segment]:
    """Yield the PT_LOADs of a process, without offsets."""
    for vma in snapshot.vmas:
        size = vma.end - vma.start
        if not vma.dumped or (vma.first_page_only and vma.absent):
            yield Segment(vma.start, size, 0, vma.p_flags)
        elif vma.first_page_only:
            yield Segment(vma.start, size, snapshot.page_size, vma.p_flags)
        else:
            for segment in _pieces(vma, snapshot.page_size):
                yield from _apart(segment, vma.untouched)


def _apart(segment: Segment, untouched: Sequence[tuple[int, int]]) -> Iterator[Segment]:
    """Split a segment, so that each piece of untouched memory is at most as long as the shared hole."""
    at, end, flags = segment.start, segment.start + segment.filesz, segment.p_flags
    for start, stop in untouched:
        start, stop = max(start, at), min(stop, end)
        if start >= stop:
            continue
        if start > at:
            yield Segment(at, start - at, start - at, flags)
        for low in range(start, stop, HOLE_SIZE):
            size = min(HOLE_SIZE, stop - low)
            yield Segment(low, size, size, flags, shared=True)
        at = stop
    rest = segment.start + segment.memsz - at
    if rest:
        yield Segment(at, rest, end - at, flags)


def _pieces(vma: Vma, page_size: int) -> Iterator[Segment]:
    """Yield one PT_LOAD for a mapping or, if pages are absent, one for each run of the other pages.

    If pages are left to the mapped file, the first page gets a PT_LOAD of its own. jhsdb matches a PT_LOAD to a
    library's segment by its start, and accepts only the segment's size or one page (ps_core_common.c:
    read_lib_segments(), JDK 21); it reads the rest from the library.

    Pages beyond the end of the mapped file, which do not exist, belong to the last piece.
    """
    absent = list(vma.absent)
    filled = vma.end
    while absent and absent[-1].reason in NO_SUCH_PAGE and absent[-1].end == filled:
        filled = absent.pop().start
    at: int = vma.start
    first_end = vma.start + page_size
    if any(run.reason is AbsentReason.IN_FILE for run in absent) and absent[0].start > first_end:
        yield Segment(vma.start, page_size, page_size, vma.p_flags)
        at = first_end
    for run in absent:
        if run.start > at:
            yield Segment(at, run.start - at, run.start - at, vma.p_flags)
        at = run.end
    if at < vma.end:
        yield Segment(at, vma.end - at, filled - at, vma.p_flags)


def check_class(snapshot: ProcessSnapshot) -> None:
    """Check that the mappings' addresses fit the core's ELF class.

    Raises:
        OutputError: they do not.
    """
    end = max((vma.end for vma in snapshot.vmas), default=0)
    if end > 1 << snapshot.elf_class:
        raise OutputError(
            f"a core of class ELF{snapshot.elf_class} cannot hold this process: its mappings end at {end:#x}, "
            f"expected at most {1 << snapshot.elf_class:#x}"
        )


def build_plan(snapshot: ProcessSnapshot, notes: Sequence[bytes] = ()) -> CorePlan:
    """Return the plan of a core.

    Args:
        snapshot: the process.
        notes: the PT_NOTE segment in pieces.

    Raises:
        OutputError: the core is too large for its ELF class.
    """
    variant = cast("ElfClass", snapshot.elf_class), snapshot.byte_order
    ehdr, phdr, shdr = fmt.Ehdr[variant], fmt.Phdr[variant], fmt.Shdr[variant]
    segments = list(segments_of(snapshot))
    phnum = 1 + len(segments) + len(snapshot.tags)
    extended = phnum >= fmt.PN_XNUM
    notes_offset, notes_size = ehdr.sizeof() + phnum * phdr.sizeof(), sum(map(len, notes))
    notes_end = notes_offset + notes_size
    shoff = align_up(notes_end, 8) if extended else 0
    head_size = shoff + shdr.sizeof() if extended else notes_end
    offset = align_up(head_size, snapshot.page_size)
    limit = (1 << snapshot.elf_class) - 1
    placed, hole = [], offset
    offset += max((segment.filesz for segment in segments if segment.shared), default=0)
    for segment in segments:
        placed.append(_at(segment, hole if segment.shared else offset))
        offset += 0 if segment.shared else segment.filesz
    tags_offset, tail = offset, b"".join(run.tags for run in snapshot.tags)
    offset += len(tail)
    e_ident = fmt.ELFMAG + bytes(
        (
            fmt.ELFCLASS64 if snapshot.elf_class == 64 else fmt.ELFCLASS32,
            fmt.ELFDATA2LSB if snapshot.byte_order == "little" else fmt.ELFDATA2MSB,
            fmt.EV_CURRENT,
            fmt.ELFOSABI_NONE,
        )
    )
    header = ehdr.build(
        {
            "e_ident": e_ident.ljust(fmt.EI_NIDENT, b"\0"),
            "e_type": fmt.ET_CORE,
            "e_machine": snapshot.e_machine,
            "e_version": fmt.EV_CURRENT,
            "e_entry": 0,
            "e_phoff": ehdr.sizeof(),
            "e_shoff": shoff,
            "e_flags": snapshot.e_flags,
            "e_ehsize": ehdr.sizeof(),
            "e_phentsize": phdr.sizeof(),
            "e_phnum": fmt.PN_XNUM if extended else phnum,
            "e_shentsize": shdr.sizeof() if extended else 0,
            "e_shnum": 1 if extended else 0,
            "e_shstrndx": fmt.SHN_UNDEF,
        }
    )
    if offset > limit:
        raise OutputError(
            f"a core of class ELF{snapshot.elf_class} cannot hold this process: it would have {offset:#x} bytes, "
            f"expected at most {limit:#x}"
        )
    headers = _program_headers(snapshot, variant, notes_offset, notes_size, placed)
    pieces = [header, headers, _tag_headers(snapshot, variant, tags_offset), *notes]
    if extended:
        fields = dict.fromkeys(
            ("sh_name", "sh_type", "sh_flags", "sh_addr", "sh_offset", "sh_addralign", "sh_entsize"), 0
        )
        pieces.append(bytes(shoff - notes_end))
        pieces.append(shdr.build({**fields, "sh_size": 1, "sh_link": fmt.SHN_UNDEF, "sh_info": phnum}))
    return CorePlan(Head(pieces), tuple(placed), offset, tail)


def _at(segment: Segment, offset: int) -> Segment:
    """Return a segment with its offset; avoids ``replace``, which is five times slower, for up to 64,000 segments."""
    return Segment(segment.start, segment.memsz, segment.filesz, segment.p_flags, offset, segment.shared)


def _program_headers(
    snapshot: ProcessSnapshot,
    variant: tuple[ElfClass, ByteOrder],
    notes_offset: int,
    notes_size: int,
    segments: list[Segment],
) -> bytes:
    table = np.zeros(len(segments) + 1, fmt.PHDR_DTYPE[variant])
    table["p_type"] = fmt.PT_LOAD
    table["p_align"] = snapshot.page_size
    table["p_flags"][1:] = [segment.p_flags for segment in segments]
    table["p_offset"][1:] = [segment.offset for segment in segments]
    table["p_vaddr"][1:] = [segment.start for segment in segments]
    table["p_filesz"][1:] = [segment.filesz for segment in segments]
    table["p_memsz"][1:] = [segment.memsz for segment in segments]
    note = table[:1]
    note["p_type"], note["p_align"] = fmt.PT_NOTE, PT_NOTE_ALIGN
    note["p_offset"], note["p_filesz"] = notes_offset, notes_size
    return table.tobytes()


def _tag_headers(snapshot: ProcessSnapshot, variant: tuple[ElfClass, ByteOrder], offset: int) -> bytes:
    table = np.zeros(len(snapshot.tags), fmt.PHDR_DTYPE[variant])
    table["p_type"] = [run.p_type for run in snapshot.tags]
    sizes = np.array([len(run.tags) for run in snapshot.tags], np.uint64)
    table["p_filesz"] = sizes
    table["p_offset"] = np.uint64(offset) + np.cumsum(sizes, dtype=np.uint64) - sizes
    table["p_vaddr"] = [run.start for run in snapshot.tags]
    table["p_memsz"] = [run.end - run.start for run in snapshot.tags]
    return table.tobytes()
