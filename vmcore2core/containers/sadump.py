"""sadump: a partition, a set of disks, a backup of one.

Built from the readers in makedumpfile, crash and libkdumpfile, without a real file.

References: see ``formats.sadump``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import ContainerDoc, DumpContainer, PageState
from vmcore2core.containers.bitmap import Bitmap, RankedBitmap
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.containers.x86_cpus import CPUS_MAX, prstatus
from vmcore2core.elf.notes import Note
from vmcore2core.errors import FormatError, UsageError
from vmcore2core.formats import sadump as fmt
from vmcore2core.formats.elf import EM_386, EM_X86_64
from vmcore2core.formats.x86_64 import CPU_NOTE, cpu_state
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override
from vmcore2core.printable import counted

DISKS_MAX = 16
"""SADUMP_MAX_DISK_SET_NUM."""
RUNS_MAX = 1 << 20
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8).reshape(-1, 1), axis=1)[:, ::-1], axis=1).ravel()
"""Each byte with its bits reversed: in this format, bit 7 is the first page frame."""


@dataclass
class _Disk:
    """One file: where its part of the dump begins, its number in the set, and where its pages are."""

    file: DumpFile
    number: int
    identity: tuple[bytes, ...]
    used: int
    at: int
    data: int = 0


class SadumpContainer(DumpContainer):
    """A dump of sadump.

    A RAM page that was not dumped is ``EXCLUDED``: the file does not tell whether it was zeros.
    """

    DOC = ContainerDoc(
        name="sadump",
        summary="sadump of Fujitsu's firmware: a partition, a set of disks given together in any order, a backup",
        references=("makedumpfile sadump_mod.h and sadump_info.c", "crash sadump.c", "libkdumpfile sadump.c"),
        limitations=(
            "built from those readers, without a real file; blocks of 4 KiB, a backup in one file",
            "fs_base and gs_base of a running thread are the values that the kernel last saved",
        ),
    )

    page_size = fmt.BLOCK_SIZE

    def __init__(self, files: Sequence[DumpFile]) -> None:
        self._files = tuple(files)
        self.paths = tuple(file.path for file in files)
        self.byte_order: ByteOrder = "little"
        self.warnings = [file.cut_off for file in files if file.cut_off is not None]
        disks = {disk.number: disk for disk in _disks(files)}
        first = disks.get(1)
        if first is None:
            raise UsageError(f"{self.paths[0]} is disk {min(disks)} of a set of sadump: disk 1 is missing")
        count = self._disk_count(first)
        at = first.at
        header = self._header(first, at)
        at += fmt.BLOCK_SIZE
        self._cpus_at = at
        at += int(header["sub_hdr_size"]) * fmt.BLOCK_SIZE
        sizes = [int(header[name]) * fmt.BLOCK_SIZE for name in ("bitmap_blocks", "dumpable_bitmap_blocks")]
        self._end = min(self._max_mapnr(header), 8 * min(sizes))
        size = -(-self._end // 8)  # a bitmap's blocks may be far more
        self._ram = Bitmap(first.file, at, size, "a bitmap of page frames", _reversed)
        self._dumped = RankedBitmap(first.file, at + sizes[0], size, "a bitmap of page frames", _reversed)
        first.data = at + sum(sizes)
        if first.data > first.file.size:
            what = f"bitmaps of {sum(sizes):#x} bytes at {at:#x} are cut off by the end of the file"
            raise FormatError(what, first.file.size, f"at least {first.data:#x} bytes")
        self._place(disks, count)
        states = list(self._cpu_states(first.file, header))
        self.e_machine = (
            EM_X86_64 if not states or all(int(s["Ia32Efer"]) & fmt.EFER_LMA for _, s in states) else EM_386
        )
        self.notes = tuple(_notes(states)) if self.e_machine == EM_X86_64 else ()

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with the header of a partition, or one is behind a block."""
        head = f.read(fmt.BLOCK_SIZE + len(fmt.SADUMP_PART_SIGNATURE))
        return head.startswith(fmt.SADUMP_PART_SIGNATURE) or head[fmt.BLOCK_SIZE :] == fmt.SADUMP_PART_SIGNATURE

    def _disk_count(self, first: _Disk) -> int:
        """Return how many disks the set has, and skip its header."""
        if not first.identity:
            return 1
        raw = first.file.read_exactly(first.at, fmt.sadump_disk_set_header.itemsize, "sadump_disk_set_header")
        header = np.frombuffer(raw, fmt.sadump_disk_set_header)[0]
        blocks, count = int(header["disk_set_header_size"]), int(header["disk_num"])
        if not 1 <= blocks <= DISKS_MAX or not 1 <= count <= DISKS_MAX:
            what = f"sadump_disk_set_header with {blocks} blocks and disk_num {count}"
            raise FormatError(what, first.at, f"1 to {DISKS_MAX} of each")
        first.at += blocks * fmt.BLOCK_SIZE
        return count

    @staticmethod
    def _header(first: _Disk, at: int) -> np.void:
        raw = first.file.read_exactly(at, fmt.sadump_header.itemsize, "sadump_header")
        header: np.void = np.frombuffer(raw, fmt.sadump_header)[0]
        if raw[:8] != fmt.SADUMP_SIGNATURE:
            raise FormatError(f"sadump_header with signature {raw[:8].hex()}", at, fmt.SADUMP_SIGNATURE.hex())
        if int(header["block_size"]) != fmt.BLOCK_SIZE:
            raise FormatError(f"sadump_header with block_size {int(header['block_size'])}", at, str(fmt.BLOCK_SIZE))
        for name in ("bitmap_blocks", "dumpable_bitmap_blocks"):
            if not int(header[name]):
                raise FormatError(f"sadump_header with {name} 0", at, "1 and more")
        return header

    @staticmethod
    def _max_mapnr(header: np.void) -> int:
        return int(header["max_mapnr_64" if int(header["header_version"]) else "max_mapnr"])

    def _place(self, disks: dict[int, _Disk], count: int) -> None:
        """Set where the pages are: one run for each disk, the last one open-ended. Warn of missing pages.

        Raises:
            FormatError: a disk is smaller than its headers, as it says.
        """
        self._extents: list[tuple[_Disk | None, int]] = []
        reached, total = 0, self._dumped.count_below(self._end)
        for number in range(1, count + 1):
            disk = disks.get(number)
            if disk is None:
                self.warnings.append(
                    f"disk {number} of the {count} of the set is missing, with all pages from there on"
                )
                self._extents.append((None, reached))
                return
            self._extents.append((disk, reached))
            pages = total - reached if number == count else (disk.used - disk.data) // self.page_size
            if pages < 0:
                raise FormatError(f"used_device {disk.used:#x} in {disk.file.path}", 0, f"{disk.data:#x} and more")
            pages = min(pages, total - reached)
            there = max(disk.file.size - disk.data, 0) // self.page_size
            if there < pages:
                self.warnings.append(
                    f"{disk.file.path} is cut off: it ends at {disk.file.size:#x}, and has {there} of "
                    f"{counted(pages, 'page')}"
                )
            reached += pages

    @override
    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return the runs of RAM in the first bitmap."""
        ranges = tuple(_range(*pfns) for pfns in itertools.islice(self._ram.runs(self._end), RUNS_MAX + 1))
        if len(ranges) > RUNS_MAX:
            raise FormatError(f"more than {RUNS_MAX} runs of page frames in a bitmap", 0, "fewer")
        return ranges

    @override
    def dumped_ranges(self) -> tuple[AddressRange, ...]:
        """Return ranges of 128 MiB and more in which the second bitmap has pages."""
        return tuple(_range(*pfns) for pfns in self._dumped.neighbourhoods(self._end))

    @override
    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame."""
        return self._locate(np.asarray(pfns, np.uint64))[0]

    def _locate(self, pfns: U64Array) -> tuple[U8Array, U64Array, U8Array]:
        """Return the state of each page frame, its offset in its file, and the index of its extent."""
        states = np.full(len(pfns), PageState.MISSING, np.uint8)
        inside = np.flatnonzero(pfns < np.uint64(self._end))
        known = inside[self._ram.has(pfns[inside])]
        states[known] = PageState.EXCLUDED
        dumped = known[self._dumped.has(pfns[known])]
        states[dumped] = PageState.TRUNCATED
        ranks = self._dumped.rank(pfns[dumped])
        starts = np.array([start for _, start in self._extents], np.uint64)
        which = (np.searchsorted(starts, ranks, side="right") - 1).astype(np.uint8)
        offsets, extents = np.zeros(len(pfns), np.uint64), np.zeros(len(pfns), np.uint8)
        extents[dumped] = which
        for index, (disk, start) in enumerate(self._extents):
            mine = which == index
            if disk is not None and mine.any():
                at = np.uint64(disk.data) + (ranks[mine] - np.uint64(start)) * np.uint64(self.page_size)
                rows = dumped[mine]
                offsets[rows] = at
                states[rows[at + np.uint64(self.page_size) <= np.uint64(disk.file.size)]] = PageState.PRESENT
        return states, offsets, extents

    @override
    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Copy page frames from the files into ``out``."""
        states, offsets, extents = self._locate(np.asarray(pfns, np.uint64))
        present = states == PageState.PRESENT
        out[~present] = 0
        for index, (disk, _) in enumerate(self._extents):
            rows = np.flatnonzero(present & (extents == index))
            if disk is not None and len(rows):
                bad = disk.file.gather(offsets[rows], rows.astype(np.uint64), out)
                out[bad] = 0
                states[bad] = PageState.DAMAGED
        return states

    def _cpu_states(self, file: DumpFile, header: np.void) -> Iterator[tuple[int, np.void]]:
        """Yield APIC ID and registers of each CPU that has any."""
        count = int(header["nr_cpus"])
        if not int(header["sub_hdr_size"]) or not 0 < count <= CPUS_MAX:
            return
        raw = file.read(self._cpus_at, int(header["sub_hdr_size"]) * fmt.BLOCK_SIZE)
        layout = fmt.sadump_smram_cpu_state
        size = int.from_bytes(raw[: fmt.SUB_HEADER_SIZE], "little") // count
        at = fmt.SUB_HEADER_SIZE + count * fmt.sadump_apic_state.itemsize
        if size < layout.itemsize or at + size * count > len(raw):
            self.warnings.append(f"the registers of its CPUs cannot be read: states of {size} bytes in {len(raw)}")
            return
        for number in range(count):
            state = raw[at + number * size :][: layout.itemsize]
            if any(state):
                yield number, np.frombuffer(state, layout)[0]

    @override
    def close(self) -> None:
        """Release the files."""
        for file in self._files:
            file.close()


def _disks(files: Sequence[DumpFile]) -> Iterator[_Disk]:
    """Yield each file as a disk; a single partition is disk 1 of a set without an identity.

    Raises:
        FormatError: a header is broken.
        UsageError: the files do not belong together.
    """
    seen: dict[int, _Disk] = {}
    for file in files:
        media = file.read(0, 8) != fmt.SADUMP_PART_SIGNATURE
        at = fmt.BLOCK_SIZE if media else 0
        raw = file.read_exactly(at, fmt.BLOCK_SIZE, "sadump_part_header")
        numbers = np.frombuffer(raw[fmt.MAGICNUM_OFFSET :], "<u4")
        if raw[:8] != fmt.SADUMP_PART_SIGNATURE or ((numbers[:-1] + np.uint32(7)) * np.uint32(11) != numbers[1:]).any():
            raise FormatError("sadump_part_header with a broken signature or magicnum", at, "each from the one before")
        header = np.frombuffer(raw, fmt.sadump_part_header, 1)[0]
        number = 0 if media else int(header["set_disk_set"])
        if not number:
            only_file(files, "a partition of sadump, or a backup,")
            if media:
                _check_media(file, header)
            yield _Disk(file, 1, (), 0, at + fmt.BLOCK_SIZE)
            return
        if number > DISKS_MAX:
            raise FormatError(f"sadump_part_header with set_disk_set {number}", at, f"at most {DISKS_MAX}")
        identity = tuple(header[name].tobytes() for name in ("sadump_id", "disk_set_id", "time_stamp"))
        disk = _Disk(file, number, identity, int(header["used_device"]), fmt.BLOCK_SIZE, fmt.BLOCK_SIZE)
        other = next(iter(seen.values()), disk)
        if number in seen or other.identity != identity:
            raise UsageError(
                f"{file.path} is disk {number} of a set of sadump, and {other.file.path} is not of its set"
            )
        seen[number] = disk
        yield disk


def _check_media(file: DumpFile, part: np.void) -> None:
    """Check that the header of a backup belongs to this dump, and is its first one.

    Raises:
        FormatError: it does not, or is not.
    """
    media = np.frombuffer(file.read_exactly(0, fmt.BLOCK_SIZE, "sadump_media_header"), fmt.sadump_media_header, 1)[0]
    if any(media[name].tobytes() != part[name].tobytes() for name in ("sadump_id", "disk_set_id")):
        raise FormatError("sadump_media_header of another dump than sadump_part_header", 0, "the same IDs")
    if int(media["sequential_num"]) > 1:
        raise FormatError(f"sequential_num {int(media['sequential_num'])} in sadump_media_header", 48, "the first one")


def _reversed(raw: U8Array) -> U8Array:
    """Return a bitmap's bytes with the lowest page frame in the lowest bit."""
    result: U8Array = _REVERSED[raw]
    return result


def _range(start: int, end: int) -> AddressRange:
    return AddressRange(start * fmt.BLOCK_SIZE, end * fmt.BLOCK_SIZE)


def _notes(states: Sequence[tuple[int, np.void]]) -> Iterator[Note]:
    """Yield each CPU's NT_PRSTATUS, then its APIC ID and CR3."""
    for position, (_, state) in enumerate(states):
        regs = {name.lower(): int(state[name]) for name in fmt.GENERAL}
        regs |= {name.lower(): int(state[name]) & 0xFFFF for name in fmt.SEGMENTS}
        yield prstatus(position, regs | {"eflags": int(state["Rflags"])})
    for number, state in states:
        yield Note(CPU_NOTE, 0, np.array((number, state["Cr3"]), cpu_state).tobytes())


CONTAINER = SadumpContainer
