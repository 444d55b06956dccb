"""s390 stand-alone dumps: written by zipl's dump tools and by ``zgetdump -f s390``.

The registers of each CPU are in its lowcore, because the dump tool made the CPU store them there.

Built from the description alone: no file of a dump tool's own was seen.

References: see ``formats.s390_dump``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers.base import ContainerDoc, PageState
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.containers.segmented import PAGE_SIZE, PHYS_BITS, SegmentedContainer, described_table
from vmcore2core.elf.notes import Note
from vmcore2core.errors import FormatError, UnknownFormat
from vmcore2core.formats import s390_dump as fmt
from vmcore2core.formats import s390x
from vmcore2core.formats.elf import EM_S390
from vmcore2core.formats.elf_core import NOTE_CORE, NOTE_LINUX, NT_FPREGSET, NT_PRSTATUS
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override

SEGMENTS_MAX = 1 << 20
"""Most segments of one dump; a segment has a MiB or more."""


class S390DumpContainer(SegmentedContainer):
    """An s390 stand-alone dump."""

    DOC = ContainerDoc(
        name="s390",
        summary="s390 stand-alone dumps of zipl's dump tools, copied from their partition or by zgetdump -f s390",
        references=("s390-tools include/dump/s390_dump.h", "s390-tools zipl/boot/stage2dump.c and zdump/"),
        limitations=(
            "built from the description: no file of a dump tool's own was seen",
            "one volume, not compressed, 64 bits: zgetdump -f elf converts the others",
            "addresses without memory read as zeros, whether the file has them or not",
        ),
    )

    def __init__(self, files: Sequence[DumpFile]) -> None:
        self._file = only_file(files, "an s390 stand-alone dump")
        self.paths = (self._file.path,)
        self.e_machine = EM_S390
        self.byte_order: ByteOrder = "big"
        self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
        header = self._header()
        size = int(header["mem_size"])
        if int(header["magic"]) == fmt.DF_S390_MAGIC_EXT:
            size, segments, end = self._segments(size)
        else:
            segments, end = [(0, fmt.DF_S390_HDR_SIZE, size)], fmt.DF_S390_HDR_SIZE + size
        self._set_segments(described_table(size, segments), "its headers")
        marker = self._file.read(end, fmt.DF_S390_EM_SIZE)
        if not self.warnings and not (len(marker) == fmt.DF_S390_EM_SIZE and marker.startswith(fmt.DF_S390_EM_STR)):
            self.warnings.append(f"the dump was not finished: there is no DUMP_END at file offset {end:#x}")
        self.notes: tuple[Note, ...] = tuple(self._cpu_notes(header))

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with one of the magic numbers."""
        return int.from_bytes(f.read(8), "big") in (fmt.DF_S390_MAGIC, fmt.DF_S390_MAGIC_EXT)

    def _header(self) -> np.void:
        raw = self._file.read_exactly(0, fmt.DF_S390_HDR_SIZE, "df_s390_hdr")
        header: np.void = np.frombuffer(raw, fmt.df_s390_hdr)[0]
        at: Mapping[str, Any] = fmt.df_s390_hdr.fields or {}
        for name, expected in (("hdr_size", fmt.DF_S390_HDR_SIZE), ("page_size", PAGE_SIZE)):
            if int(header[name]) != expected:
                raise FormatError(f"df_s390_hdr with {name} {int(header[name])}", at[name][1], str(expected))
        if int(header["arch"]) != fmt.DF_S390_ARCH_64:
            raise FormatError(f"df_s390_hdr with arch {int(header['arch'])}", at["arch"][1], "2, of 64 bits")
        size = int(header["mem_size"])
        if size % PAGE_SIZE or not 0 < size < 1 << PHYS_BITS:
            raise FormatError(f"df_s390_hdr with mem_size {size:#x}", at["mem_size"][1], f"pages below 2^{PHYS_BITS}")
        if int(header["cpu_cnt"]) > fmt.DF_S390_CPU_MAX:
            what = f"df_s390_hdr with cpu_cnt {int(header['cpu_cnt'])}"
            raise FormatError(what, at["cpu_cnt"][1], f"at most {fmt.DF_S390_CPU_MAX}")
        if int(header["mvdump_sign"]) == int(header["magic"]):
            raise UnknownFormat(f"{self.paths[0]} is one volume of a dump on several; join them with zgetdump -f elf")
        if int(header["magic"]) == fmt.DF_S390_MAGIC_EXT and int(header["zlib_version_s390"]):
            raise UnknownFormat(f"{self.paths[0]} is a compressed s390 dump; unpack it with zgetdump -f elf")
        return header

    def _segments(self, size: int) -> tuple[int, list[tuple[int, int, int]], int]:
        """Return the size of memory, (physical address, file offset, bytes) of each segment, and where they end.

        Raises:
            FormatError: a segment has no memory in the file, or lies beyond the machine's memory.
        """
        found: list[tuple[int, int, int]] = []
        at, reached = fmt.DF_S390_HDR_SIZE, 0
        layout = fmt.df_s390_dump_segm_hdr
        while len(found) < SEGMENTS_MAX:
            raw = self._file.read(at, layout.itemsize)
            if len(raw) < layout.itemsize and found:
                self.warnings.append(f"the file is cut off: it ends at {self._file.size:#x}, before the last segment")
                return reached, found, at
            if len(raw) < layout.itemsize:
                raise FormatError("the first df_s390_dump_segm_hdr is cut off", at, f"{layout.itemsize} bytes")
            header = np.frombuffer(raw, layout)[0]
            start, length = int(header["start"]), int(header["len"])
            # If there was nothing to dump, both are 0.
            if (length and not reached <= start < start + length <= size) or (start | length) % PAGE_SIZE:
                what = f"df_s390_dump_segm_hdr with start {start:#x} and len {length:#x}"
                raise FormatError(what, at, f"pages from {reached:#x} to mem_size {size:#x}")
            at += layout.itemsize
            if length:
                found.append((start, at, length))
                at, reached = at + length, start + length
            if int(header["stop_marker"]):
                return size, found, at
        raise FormatError(f"more than {SEGMENTS_MAX} segments", at, "a stop_marker")

    @override
    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame; frames in no segment were zeros, or had no memory."""
        return _zeros(super().page_states(pfns))

    @override
    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Copy page frames from the file into ``out``."""
        return _zeros(super().read_pages(pfns, out))

    @override
    def read_page(self, pfn: int) -> tuple[bytes, PageState]:
        """Read one page frame."""
        page, state = super().read_page(pfn)
        return page, PageState.ZERO if state is PageState.EXCLUDED else state

    def _memory(self, paddr: int, size: int) -> bytes | None:
        """Return memory, in whole pages; None if it is not in the file."""
        out = np.zeros((size // PAGE_SIZE, PAGE_SIZE), np.uint8)
        first = paddr // PAGE_SIZE
        states = self.read_pages(np.arange(first, first + len(out), dtype=np.uint64), out)
        return out.tobytes() if np.isin(states, (PageState.PRESENT, PageState.ZERO)).all() else None

    def _cpu_notes(self, header: np.void) -> Iterator[Note]:
        """Yield the CPUs' registers in the form of QEMU's notes, and warn of CPUs without registers."""
        if (self._memory(0, PAGE_SIZE) or b"").startswith(fmt.LIVE_MAGIC):
            self.warnings.append(LIVE)
            return
        told = int(header["magic"]) == fmt.DF_S390_MAGIC_EXT or int(header["version"]) >= fmt.DF_S390_VERSION_CPUS
        for prefix in header["lc_vec"][: int(header["cpu_cnt"]) if told else 0].tolist():
            raw = None if prefix % PAGE_SIZE else self._memory(prefix, fmt.LOWCORE_SIZE)
            area = None if raw is None else np.frombuffer(raw, fmt.lowcore)[0]
            if area is None or int(area["prefix"]) != prefix:
                self.warnings.append(f"the registers of the CPU with prefix {prefix:#x} were not stored in its lowcore")
                continue
            yield from self._registers(area)

    def _registers(self, area: np.void) -> Iterator[Note]:
        """Yield the notes of one CPU."""
        regs = area["psw"].tobytes() + area["gprs"].tobytes() + area["acrs"].tobytes()
        yield Note(NOTE_CORE, NT_PRSTATUS, (bytes(s390x.PRSTATUS_REGS) + regs).ljust(s390x.PRSTATUS_SIZE, b"\0"))
        fpc, floats = area["fpc"].tobytes(), area["fprs"].tobytes()
        yield Note(NOTE_CORE, NT_FPREGSET, fpc.ljust(8, b"\0") + floats)
        yield Note(NOTE_LINUX, s390x.NT_S390_PREFIX, int(area["prefix"]).to_bytes(4, "big"))
        yield Note(NOTE_LINUX, s390x.NT_S390_CTRS, area["ctrs"].tobytes())
        wide = int(area["vector_save_area_addr"])
        raw = None if not wide or wide % fmt.VECTOR_SAVE_AREA_ALIGN else self._memory(wide & -PAGE_SIZE, PAGE_SIZE)
        if raw is not None:
            vxrs = raw[wide % PAGE_SIZE :][: fmt.VECTOR_SAVE_AREA_SIZE]
            low, high = vxrs[: len(vxrs) // 2], vxrs[len(vxrs) // 2 :]
            # Vector registers contain the floating-point registers; if these differ, they are from different moments.
            if b"".join(low[at : at + 8] for at in range(0, len(low), 16)) == floats:
                halves = b"".join(low[at + 8 : at + 16] for at in range(0, len(low), 16))
                yield Note(NOTE_LINUX, s390x.NT_S390_VXRS_LOW, halves)
                yield Note(NOTE_LINUX, s390x.NT_S390_VXRS_HIGH, high)


def _zeros(states: U8Array) -> U8Array:
    states[states == PageState.EXCLUDED] = PageState.ZERO
    return states


LIVE = (
    "this is the memory of a running machine, which kept running while its memory was read: related data may come from "
    "different moments, and there are no registers of running tasks"
)

CONTAINER = S390DumpContainer
