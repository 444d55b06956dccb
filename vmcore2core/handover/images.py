"""Where each ELF file of a process is loaded. A debugger needs this if the core lacks the dynamic linker's list.

The list (r_debug, link_map) is data, which a filtered dump lacks; mappings and program headers say the same.

References: System V gABI, "Program Loading"; fs/binfmt_elf.c: elf_load() (Linux 7.2) for which file offset goes where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmcore2core.elf.build_id import build_id
from vmcore2core.elf.headers import ElfHeaders, parse_headers
from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import elf
from vmcore2core.kernel.mm import VM_EXEC
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.filebacking import FileBacking
from vmcore2core.process.linkmap import link_map, program_path
from vmcore2core.process.model import ProcessSnapshot, Vma
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.sysroot import mapped

IMAGES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Image:
    """One ELF file, loaded.

    Attributes:
        path: as its mappings have it.
        address: where some of its text is mapped.
        offset: file offset of this text, in bytes.
        bias: load address minus the file's own addresses; None if its program headers are not in memory.
        build_id: hexadecimal digits, or None if it has none or it is not in memory.
        program: whether it is the process's program.
        listed: whether the dump has its entry in the dynamic linker's list, which gdb and lldb follow.
        size: of the file in bytes, or None if unknown.
        mtime: time of last modification, in seconds since 1970, or None if unknown.
    """

    path: bytes
    address: int
    offset: int
    bias: int | None = None
    build_id: str | None = None
    program: bool = False
    listed: bool = False
    size: int | None = None
    mtime: int | None = None


def images_of(captured: Captured) -> tuple[Image, ...]:
    """Return the ELF files that a process runs code of, in address order."""
    found = list(_Finder(captured.snapshot, captured.memory).run())[:IMAGES_MAX]
    return tuple(sorted(found, key=lambda image: image.address))


class _Finder:
    """Finds the images of one process; the attributes are the steps' shared state."""

    def __init__(self, snapshot: ProcessSnapshot, memory: UserMemory) -> None:
        self.snapshot, self.memory = snapshot, memory
        self.program = program_path(snapshot)
        self.listed = {loaded.l_addr for loaded in link_map(snapshot, memory.read).objects}
        self.executable = [vma for vma in snapshot.vmas if vma.vm_flags & VM_EXEC]
        self.covered: set[int] = set()
        self.backings = {region.start: region.backing for region in memory.regions}

    def run(self) -> Iterator[Image]:
        for vma in self.snapshot.vmas:
            if vma.path is not None and vma.pgoff == 0:
                yield from self._with_headers(vma)
        at = 0
        for vma in self.executable:
            # If a file's headers are missing, take the first text of each loading of it, then search behind that.
            if vma.path is not None and vma.pgoff is not None and vma.start not in self.covered and vma.start >= at:
                at = self._end_of_file(vma)
                yield self._image(vma, vma.start, vma.pgoff * self.snapshot.page_size, None, None)

    def _with_headers(self, first: Vma) -> Iterator[Image]:
        """Yield the image that begins in a mapping, if its text is mapped where its headers say."""
        snapshot, read = self.snapshot, mapped(first, self.snapshot.vmas, self.memory)
        try:
            headers = parse_headers(read, snapshot.elf_class, snapshot.byte_order)
        except CorruptStructure:
            return
        bias = None if headers is None else self._bias(headers, first)
        if headers is None or bias is None:
            return
        text = self._text(headers, bias)
        if text is not None:
            found = build_id(read, snapshot.elf_class, snapshot.byte_order)
            self._cover(first, headers, bias)
            yield self._image(first, *text, bias, None if found is None else found.hex())

    def _bias(self, headers: ElfHeaders, first: Vma) -> int | None:
        page = self.snapshot.page_size
        for segment in headers.segments:
            if segment.p_type == elf.PT_LOAD and segment.p_offset < page:
                return (first.start - (segment.p_vaddr & -page)) % (1 << self.snapshot.elf_class)
        return None

    def _text(self, headers: ElfHeaders, bias: int) -> tuple[int, int] | None:
        """Return address and file offset of the first page that is text by the headers and is mapped executable."""
        page, bits = self.snapshot.page_size, self.snapshot.elf_class
        for segment in headers.segments:
            at = (bias + (segment.p_vaddr & -page)) % (1 << bits)
            is_text = segment.p_type == elf.PT_LOAD and segment.p_flags & elf.PF_X
            if is_text and any(vma.start <= at < vma.end for vma in self.executable):
                return at, segment.p_offset & -page
        return None

    def _cover(self, first: Vma, headers: ElfHeaders, bias: int) -> None:
        end = max(segment.p_vaddr + segment.p_memsz for segment in headers.segments if segment.p_type == elf.PT_LOAD)
        mask = (1 << self.snapshot.elf_class) - 1
        self.covered |= {vma.start for vma in self.executable if first.start <= vma.start < (bias + end) & mask}

    def _end_of_file(self, first: Vma) -> int:
        """Return the end of the mappings that belong to one loading of a file, starting at its text."""
        end, offset = first.end, first.pgoff or 0
        for vma in self.snapshot.vmas:
            if vma.start >= first.end and vma.path == first.path:
                if vma.pgoff is None or vma.pgoff < offset:
                    break
                end, offset = vma.end, vma.pgoff
        return end

    def _image(self, vma: Vma, address: int, offset: int, bias: int | None, found: str | None) -> Image:
        path, backing = vma.path or b"", self.backings.get(vma.start)
        return Image(
            path=path,
            address=address,
            offset=offset,
            bias=bias,
            build_id=found,
            program=path == self.program,
            listed=bias is not None and bias in self.listed,
            size=backing.file_size if isinstance(backing, FileBacking) else None,
            mtime=backing.file_mtime if isinstance(backing, FileBacking) else None,
        )
