"""ELF vmcores: /proc/vmcore, /proc/kcore, makedumpfile -E, QEMU's dump-guest-memory and virsh dump --memory-only.

Page frames are found by p_paddr. makedumpfile left out the memory between p_filesz and p_memsz. The file does not tell
whether it was zero, so it is ``EXCLUDED``.

References: System V gABI, "Program Header"; fs/proc/vmcore.c (v6.12); makedumpfile's write_elf_pages_cyclic() (1.7.9);
QEMU's dump/dump.c, write_elf64_phdr_loads().
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.containers.base import ContainerDoc
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.containers.eraseinfo import erased_notes
from vmcore2core.containers.kcore import LIVE, is_kcore, kernel_notes
from vmcore2core.containers.segmented import SegmentedContainer
from vmcore2core.containers.virtualbox import virtualbox_notes
from vmcore2core.containers.xen import is_xen_core, refuse_machine
from vmcore2core.elf.headers import ident_variant
from vmcore2core.elf.notes import NOTES_SIZE_MAX, Note, parse_notes
from vmcore2core.errors import FormatError, UnknownFormat
from vmcore2core.formats._cabi import ElfClass, offsetof
from vmcore2core.formats.elf import (
    EI_DATA,
    EI_NIDENT,
    ELFMAG,
    EM_NONE,
    ET_CORE,
    PHDR_DTYPE,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    Ehdr,
    Phdr,
    Shdr,
)
from vmcore2core.formats.elf_core import NT_AUXV, NT_FILE, NT_PRPSINFO
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override

PHNUM_MAX = 1 << 20
"""More than the memory ranges of any machine; keeps hostile tables from filling memory."""

NO_PADDR = (1 << 64) - 1
"""p_paddr of a segment that has no physical address (/proc/kcore's vmalloc area)."""


class _ElfHeader(NamedTuple):
    elf_class: ElfClass
    byte_order: ByteOrder
    e_machine: int
    e_phoff: int
    phnum: int


class ElfContainer(SegmentedContainer):
    """An ELF vmcore.

    Attributes:
        segments: its PT_LOAD program headers (structured array with p_offset, p_vaddr, p_paddr, p_filesz, p_memsz,
            p_flags, p_align) in file order. /proc/vmcore sets p_vaddr, QEMU leaves it 0 or equal to p_paddr.
        elf_class: 32 or 64.
    """

    zero_excluded: bool | None = False
    DOC = ContainerDoc(
        name="ELF",
        summary="/proc/vmcore, makedumpfile -E, QEMU dump-guest-memory (with -p, too), virsh dump --memory-only; "
        "/proc/kcore of the running kernel and copies of it; VBoxManage debugvm dumpvmcore",
        references=(
            "System V gABI, Program Header",
            "Linux fs/proc/vmcore.c",
            "makedumpfile write_elf_pages_cyclic()",
            "QEMU dump/dump.c",
            "Linux fs/proc/kcore.c",
            "VirtualBox DBGFCoreWrite.cpp",
        ),
        limitations=(
            "pages that makedumpfile left out are unknown, even zero pages",
            "VirtualBox: built from the description, without a real file; registers of format 1.6 only",
            "/proc/kcore: no registers of running tasks; what the kernel hides (poisoned memory) reads as zeros",
        ),
    )

    def __init__(self, files: Sequence[DumpFile]) -> None:
        self._file = only_file(files, "an ELF dump")
        self.paths = (self._file.path,)
        self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
        header = _read_header(self._file)
        self.elf_class = header.elf_class
        self.byte_order = header.byte_order
        self.e_machine = header.e_machine if header.e_machine != EM_NONE else None
        phdrs = _read_phdrs(self._file, header)
        self.notes = self._read_notes(phdrs[phdrs["p_type"] == PT_NOTE], header.byte_order)
        self.notes += virtualbox_notes(self.notes)
        if is_kcore(self.notes):
            self.notes = kernel_notes(self.notes)
            self.warnings.append(LIVE)
        self.warnings.extend(erased_notes(self.notes))
        refuse_machine(self._file, self.notes)
        loads = phdrs[phdrs["p_type"] == PT_LOAD]
        _refuse_application_core(self.paths[0], self.notes, loads)
        self.segments = _check_loads(loads, header)
        self._set_segments(self.segments, "its program headers")

    def _read_notes(self, headers: NDArray[np.void], byte_order: ByteOrder) -> tuple[Note, ...]:
        notes: list[Note] = []
        left = NOTES_SIZE_MAX
        for offset, filesz in zip(headers["p_offset"].tolist(), headers["p_filesz"].tolist(), strict=True):
            raw = self._file.read(offset, min(filesz, left))
            if len(raw) < filesz:
                self.warnings.append(
                    f"only {len(raw):#x} of the {filesz:#x} bytes of ELF notes at file offset {offset:#x} can be read"
                )
            left -= len(raw)
            found, warning = parse_notes(raw, byte_order, offset)
            notes.extend(found)
            if warning is not None:
                self.warnings.append(warning)
        return tuple(notes)

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with an ELF header of type ET_CORE."""
        ident = f.read(EI_NIDENT)
        variant = ident_variant(ident)
        if variant is None:
            return False
        rest = f.read(Ehdr[variant].sizeof() - EI_NIDENT)
        return int.from_bytes(rest[:2].ljust(2, b"\0"), variant[1]) == ET_CORE and not is_xen_core(ident + rest)


def _read_header(file: DumpFile) -> _ElfHeader:
    """Read Ehdr, and Shdr 0 if that has the number of program headers.

    QEMU writes 8 into e_ehsize and puts the section headers first, so neither is checked.
    """
    ident = file.read_exactly(0, EI_NIDENT, "e_ident")
    variant = ident_variant(ident)
    if variant is None:
        raise FormatError(f"e_ident {ident[: EI_DATA + 1].hex()}", 0, f"{ELFMAG.hex()}, then 1 or 2, and 1 or 2")
    layout = Ehdr[variant]
    ehdr = layout.parse(file.read_exactly(0, layout.sizeof(), "the ELF header"))
    if ehdr.e_type != ET_CORE:
        raise FormatError(f"e_type {ehdr.e_type}", offsetof(layout, "e_type"), f"{ET_CORE} (ET_CORE)")
    phentsize = Phdr[variant].sizeof()
    if ehdr.e_phentsize != phentsize:
        raise FormatError(f"e_phentsize {ehdr.e_phentsize}", offsetof(layout, "e_phentsize"), str(phentsize))
    phnum = int(ehdr.e_phnum)
    phnum_at = offsetof(layout, "e_phnum")
    if phnum == PN_XNUM:
        section = Shdr[variant]
        raw = file.read_exactly(int(ehdr.e_shoff), section.sizeof(), "section header 0, which has e_phnum,")
        phnum = int(section.parse(raw).sh_info)
        phnum_at = int(ehdr.e_shoff) + offsetof(section, "sh_info")
    if not 1 <= phnum <= PHNUM_MAX:
        sections = "" if phnum or not ehdr.e_shoff else ": sections alone are not read, as those of Xen's xl dump-core"
        raise FormatError(f"number of program headers {phnum}", phnum_at, f"1 to {PHNUM_MAX}{sections}")
    return _ElfHeader(*variant, int(ehdr.e_machine), int(ehdr.e_phoff), phnum)


def _read_phdrs(file: DumpFile, header: _ElfHeader) -> NDArray[np.void]:
    """Return the program headers, in the byte order of the file."""
    dtype = PHDR_DTYPE[header.elf_class, header.byte_order]
    raw = file.read_exactly(header.e_phoff, header.phnum * dtype.itemsize, "the program header table")
    return np.frombuffer(raw, dtype=dtype)


def _refuse_application_core(path: Path, notes: tuple[Note, ...], loads: NDArray[np.void]) -> None:
    """Raise ``UnknownFormat`` for the core of a process.

    /proc/kcore has NT_PRPSINFO as well, so that alone decides nothing.
    """
    if any(note.name == "VMCOREINFO" for note in notes):
        return
    types = {note.n_type for note in notes if note.name == "CORE"}
    if types & {NT_AUXV, NT_FILE} or (NT_PRPSINFO in types and not loads["p_paddr"].any()):
        raise UnknownFormat(f"{path} is an application core (the memory of one process), not a kernel dump")


def _check_loads(loads: NDArray[np.void], header: _ElfHeader) -> NDArray[np.void]:
    """Return the PT_LOAD headers that have a physical address, in host byte order."""
    loads = loads.astype(loads.dtype.newbyteorder("="))
    no_paddr = NO_PADDR & ((1 << header.elf_class) - 1)
    loads = loads[(loads["p_paddr"] != no_paddr) & (loads["p_memsz"] > 0)]
    if not len(loads):
        raise FormatError("no PT_LOAD program header with memory", header.e_phoff, "at least one")
    if len(loads) > 1 and not loads["p_paddr"].any() and loads["p_vaddr"].any():
        raise FormatError("p_paddr 0 in every PT_LOAD program header", header.e_phoff, "physical addresses")
    for start, size, sizes in (("p_paddr", "p_memsz", "memory"), ("p_offset", "p_filesz", "file")):
        first, length = loads[start].astype(np.uint64), loads[size].astype(np.uint64)
        bad = np.flatnonzero(first + length < first)
        if len(bad):
            what = f"PT_LOAD with {start} {first[bad[0]]:#x} and {size} {length[bad[0]]:#x}"
            raise FormatError(what, header.e_phoff, f"a {sizes} range that does not wrap around")
    bad = np.flatnonzero(loads["p_filesz"] > loads["p_memsz"])
    if len(bad):
        load = loads[bad[0]]
        what = f"PT_LOAD with p_filesz {load['p_filesz']:#x} and p_memsz {load['p_memsz']:#x}"
        raise FormatError(what, header.e_phoff, "p_filesz not above p_memsz")
    return loads


CONTAINER = ElfContainer
