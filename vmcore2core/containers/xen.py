"""Xen's dumps of guests (xl dump-core, virsh dump with libxl) whose page tables have the guest's page frames.

A paravirtualised guest's page tables have the machine's page frames, and its kernel's symbols the guest's. Such dumps,
and dumps of a whole machine under Xen, are refused by name.

Built from the description alone: no file of Xen's own was seen.

References: see ``formats.xen``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.containers.base import ContainerDoc
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.containers.segmented import PAGE_SIZE, PHYS_BITS, SegmentedContainer, segment_table
from vmcore2core.containers.x86_cpus import CPUS_MAX, cpu_notes
from vmcore2core.elf.notes import NOTES_SIZE_MAX, Note, parse_notes
from vmcore2core.errors import FormatError, UnknownFormat
from vmcore2core.formats import xen as fmt
from vmcore2core.formats.elf import EI_CLASS, EI_DATA, ELFMAG, EM_X86_64, ET_CORE, Ehdr, Shdr
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override

PAGES_MAX = 1 << 32


class _Section(NamedTuple):
    offset: int
    size: int


def is_xen_core(head: bytes) -> bool:
    """Tell whether an ELF file's first bytes are of a core that has sections and no segments."""
    layout = Ehdr[64, "little"]
    if len(head) < layout.sizeof() or not head.startswith(ELFMAG) or (head[EI_CLASS], head[EI_DATA]) != (2, 1):
        return False
    ehdr = layout.parse(head)
    return bool(ehdr.e_type == ET_CORE and not ehdr.e_phnum and ehdr.e_shoff and ehdr.e_shnum >= fmt.SECTIONS_MIN)


def refuse_machine(file: DumpFile, notes: Sequence[Note]) -> None:
    """Raise ``UnknownFormat`` for a dump of a whole machine under Xen: its kernel's page tables belong to one guest."""
    if any(note.name in fmt.CRASH_NOTES for note in notes):
        raise UnknownFormat(
            f"{file.path} is a dump of a machine under Xen, which is not supported: its memory is the machine's, and "
            f"dom0's own page frames are elsewhere in it"
        )


class XenContainer(SegmentedContainer):
    """A dump of a guest of Xen."""

    DOC = ContainerDoc(
        name="Xen",
        summary="Xen's xl dump-core of HVM and PVH guests",
        references=("Xen docs/misc/dump-core-format.txt", "Xen tools/libs/ctrl/xc_core.c", "crash xendump.c"),
        limitations=(
            "built from the description, without a real file",
            "no paravirtualised guests, no dumps of the machine with dom0 (the error names these)",
            "no registers of 32-bit guests, nor of machines other than x86",
        ),
    )

    def __init__(self, files: Sequence[DumpFile]) -> None:
        self._file = only_file(files, "a dump of Xen")
        self.paths = (self._file.path,)
        self.byte_order: ByteOrder = "little"
        self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
        layout = Ehdr[64, "little"]
        ehdr = layout.parse(self._file.read_exactly(0, layout.sizeof(), "the ELF header"))
        self.e_machine = int(ehdr.e_machine)
        sections = self._sections(int(ehdr.e_shoff), int(ehdr.e_shnum), int(ehdr.e_shstrndx))
        self.notes = self._read_notes(_of(sections, fmt.SECTION_NOTE))
        nr_vcpus = self._check_header()
        pages = _of(sections, fmt.SECTION_PAGES)
        pfns = self._pfns(_of(sections, fmt.SECTION_PFN), pages)
        self._set_segments(segment_table(_runs(pfns, pages.offset)), "its sections")
        if self.e_machine == EM_X86_64 and fmt.SECTION_PRSTATUS in sections:
            self.notes += cpu_notes(list(self._cpus(sections[fmt.SECTION_PRSTATUS], nr_vcpus)))

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with an ELF header of a core that has sections and no segments."""
        return is_xen_core(f.read(Ehdr[64, "little"].sizeof()))

    def _sections(self, shoff: int, shnum: int, shstrndx: int) -> Mapping[bytes, _Section]:
        """Return the sections by name.

        Raises:
            FormatError: the table is cut off or broken.
        """
        if not shstrndx < shnum <= fmt.SECTIONS_MAX:
            raise FormatError(f"e_shnum {shnum} and e_shstrndx {shstrndx}", 60, f"at most {fmt.SECTIONS_MAX}")
        layout = Shdr[64, "little"]
        size = layout.sizeof()
        raw = self._file.read_exactly(shoff, shnum * size, "the section header table")
        headers = [layout.parse(raw[i * size : (i + 1) * size]) for i in range(shnum)]
        strings = self._file.read(int(headers[shstrndx].sh_offset), min(int(headers[shstrndx].sh_size), 1 << 16))
        found: dict[bytes, _Section] = {}
        for header in headers:
            name = strings[int(header.sh_name) :].split(b"\0", 1)[0]
            if int(header.sh_offset) + int(header.sh_size) >= 1 << 63:
                raise FormatError(f"a section of {int(header.sh_size):#x} bytes", shoff, "less than 2^63")
            found.setdefault(name, _Section(int(header.sh_offset), int(header.sh_size)))
        return found

    def _read_notes(self, section: _Section) -> tuple[Note, ...]:
        raw = self._file.read_exactly(section.offset, min(section.size, NOTES_SIZE_MAX), "the notes")
        notes, warning = parse_notes(raw, "little", section.offset)
        if warning is not None:
            self.warnings.append(warning)
        return notes

    def _check_header(self) -> int:
        """Return the number of CPUs, from the notes.

        Raises:
            FormatError: the notes have another version or another page size.
            UnknownFormat: the guest is paravirtualised.
        """
        descs = {note.n_type: note.desc for note in self.notes if note.name == fmt.NOTE_NAME}
        raw = descs.get(fmt.XEN_ELFNOTE_DUMPCORE_HEADER, b"")
        layout = fmt.xen_dumpcore_elfnote_header_desc
        if len(raw) < layout.itemsize:
            raise FormatError("no note with the header of a dump of Xen", 0, f"one of {layout.itemsize} bytes")
        header = np.frombuffer(raw, layout, 1)[0]
        version = int.from_bytes(descs.get(fmt.XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION, b"")[:8], "little")
        if version >> fmt.FORMAT_VERSION_MAJOR_SHIFT:
            raise FormatError(f"format version {version:#x} of a dump of Xen", 0, "0 above its low 32 bits")
        if int(header["xch_magic"]) == fmt.XC_CORE_MAGIC:
            raise UnknownFormat(
                f"{self.paths[0]} is a dump of a paravirtualised guest of Xen, which is not supported: its page tables "
                f"have the machine's page frames; dump with kdump in the guest"
            )
        if int(header["xch_magic"]) != fmt.XC_CORE_MAGIC_HVM:
            raise FormatError(f"xch_magic {int(header['xch_magic']):#x}", 0, f"{fmt.XC_CORE_MAGIC_HVM:#x}")
        if int(header["xch_page_size"]) != PAGE_SIZE:
            raise FormatError(f"xch_page_size {int(header['xch_page_size'])}", 0, str(PAGE_SIZE))
        return int(header["xch_nr_vcpus"])

    def _pfns(self, section: _Section, pages: _Section) -> NDArray[np.uint64]:
        """Return the page frame of each page, uint64[n], in the order of the file.

        Raises:
            FormatError: there are none, or not as many as pages, or one is too large.
        """
        count = section.size // 8
        if not 0 < count <= PAGES_MAX or pages.size != count * PAGE_SIZE:
            what = f"{count} page frames and {pages.size:#x} bytes of pages"
            raise FormatError(what, section.offset, "as many pages")
        pfns = np.frombuffer(self._file.read_exactly(section.offset, count * 8, "the table of page frames"), "<u8")
        bad = np.flatnonzero(pfns >= 1 << PHYS_BITS - 12)
        if len(bad):
            at = section.offset + 8 * int(bad[0])
            raise FormatError(f"page frame {int(pfns[bad[0]]):#x}", at, f"one below 2^{PHYS_BITS - 12}")
        return pfns

    def _cpus(self, section: _Section, nr_vcpus: int) -> Iterator[dict[str, int]]:
        """Yield each CPU's registers; none for a CPU outside of 64-bit mode, or if they have another size."""
        layout = fmt.vcpu_guest_context
        if not 0 < nr_vcpus <= CPUS_MAX or section.size != nr_vcpus * layout.itemsize:
            return
        contexts = np.frombuffer(self._file.read_exactly(section.offset, section.size, "the CPUs' registers"), layout)
        # In a 64-bit kernel, one of the two is the kernel's gs base: an address in the kernel's half.
        if not ((contexts["gs_base_kernel"] | contexts["gs_base_user"]) >> np.uint64(63)).all():
            return
        for context in contexts:
            saved = context["user_regs"]
            regs = {name: int(saved[name]) for name in saved.dtype.names if name not in ("pad", "error_code")}
            regs |= {name: int(saved[name]) & 0xFFFF for name in ("cs", "ss", "es", "ds", "fs", "gs")}
            regs |= {f"cr{i}": int(context["ctrlreg"][i]) for i in (0, 2, 3, 4)}
            user = regs["cs"] & 3 == 3
            bases = ("gs_base_user", "gs_base_kernel") if user else ("gs_base_kernel", "gs_base_user")
            regs |= {"fs_base": int(context["fs_base"]), "gs_base": int(context[bases[0]])}
            yield regs | {"kernel_gs_base": int(context[bases[1]])}


def _of(sections: Mapping[bytes, _Section], name: bytes) -> _Section:
    if name not in sections:
        raise FormatError(f"no section {name.decode()}", 0, "one, as Xen's dumps have")
    return sections[name]


def _runs(pfns: NDArray[np.uint64], offset: int) -> Iterator[tuple[int, int, int]]:
    """Yield (physical address, file offset, bytes) of each run of pages."""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(pfns) != 1) + 1, [len(pfns)]))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield int(pfns[start]) * PAGE_SIZE, offset + start * PAGE_SIZE, (end - start) * PAGE_SIZE


CONTAINER = XenContainer
