"""The headers of a kdump-compressed dump: which variant the file has, and the values.

The file does not name its word size. If both variants make sense, the 64-bit one is taken.

References: makedumpfile's diskdump_mod.h and write_kdump_header() (1.7.9); QEMU's include/sysemu/dump.h.
"""

from __future__ import annotations

from typing import NamedTuple

from vmcore2core.addresses import AddressRange
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import FormatError
from vmcore2core.formats._cabi import ElfClass, offsetof
from vmcore2core.formats.diskdump import (
    DISK_DUMP_HEADER,
    DISK_DUMP_SIGNATURE,
    DISKDUMP_HEADER_BLOCKS,
    KDUMP_HEADER_VERSION_MAX,
    KDUMP_SIGNATURE,
    KDUMP_SUB_HEADER,
    SIG_LEN,
    SUB_HEADER_ABIS,
    SubHeaderAbi,
)
from vmcore2core.formats.utsname import e_machine_of, is_32_bit
from vmcore2core.interfaces import ByteOrder

UINT_MAX = (1 << 32) - 1
BYTE_ORDERS: tuple[ByteOrder, ...] = ("little", "big")
WORD_SIZES: tuple[ElfClass, ...] = (64, 32)

BLOCK_SIZE_MIN = 4096
BLOCK_SIZE_MAX = 1 << 20
"""Page sizes of Linux are 4 KiB to 256 KiB."""

MAX_MAPNR_MAX = 1 << 36
"""Page frames, 256 TiB of 4 KiB pages: more than any dump has; bounds the tables made for a sparse hostile file."""

_NOWHERE = AddressRange(0, 0)


class DiskDumpHeader(NamedTuple):
    """The checked values of ``struct disk_dump_header`` and ``struct kdump_sub_header``.

    Attributes:
        is_kdump: the signature is "KDUMP   ", not "DISKDUMP".
        word_size: 64 or 32, of the structures.
        machine: utsname.machine; empty in some of QEMU's files.
        block_size: bytes of a page and of a block.
        max_mapnr: page frames that the bitmaps describe, from the 64-bit field if there is one.
        bitmap_offset: of the first bitmap in the file.
        bitmap_size: bytes of each bitmap; those behind the bits of max_mapnr page frames mean nothing.
        bitmap_count: 2, or 1 in diskdumps without filtering.
        page_desc_offset: of the table of page descriptors.
        vmcoreinfo: its place in the file; size 0 if the file has none. Likewise note and eraseinfo.
        timestamp: when the dump was written, in seconds and microseconds.
        split_pfns: start_pfn and end_pfn of a part of a split dump, or None for a dump in one file.
    """

    is_kdump: bool
    header_version: int
    word_size: ElfClass
    byte_order: ByteOrder
    release: str
    machine: str
    timestamp: tuple[int, int]
    status: int
    block_size: int
    max_mapnr: int
    bitmap_offset: int
    bitmap_size: int
    bitmap_count: int
    page_desc_offset: int
    phys_base: int | None = None
    dump_level: int | None = None
    vmcoreinfo: AddressRange = _NOWHERE
    note: AddressRange = _NOWHERE
    eraseinfo: AddressRange = _NOWHERE
    split_pfns: tuple[int, int] | None = None

    @property
    def dump_identity(self) -> tuple[object, ...]:
        """The values that all parts of one split dump have in common."""
        return (
            *(self.is_kdump, self.header_version, self.word_size, self.byte_order, self.release, self.machine),
            *(self.timestamp, self.block_size, self.max_mapnr, self.bitmap_size, self.phys_base, self.dump_level),
        )

    @property
    def e_machine(self) -> int | None:
        """ELF machine number for utsname.machine, or None."""
        return e_machine_of(self.machine)


class _MainHeader(NamedTuple):
    """``struct disk_dump_header``; max_mapnr_at is the offset of max_mapnr."""

    is_kdump: bool
    header_version: int
    word_size: ElfClass
    byte_order: ByteOrder
    release: str
    machine: str
    timestamp: tuple[int, int]
    status: int
    block_size: int
    sub_hdr_size: int
    bitmap_blocks: int
    max_mapnr: int
    max_mapnr_at: int


class _SubHeader(NamedTuple):
    """``struct kdump_sub_header``, as far as the header_version has it."""

    phys_base: int | None = None
    dump_level: int | None = None
    split: int = 0
    start_pfn: int = 0
    end_pfn: int = 0
    start_pfn_at: int = 0
    vmcoreinfo: AddressRange = _NOWHERE
    note: AddressRange = _NOWHERE
    eraseinfo: AddressRange = _NOWHERE
    max_mapnr_64: int | None = None
    max_mapnr_at: int = 0


def read_header(file: DumpFile) -> DiskDumpHeader:
    """Read both headers and check that everything they describe lies in the file.

    Raises:
        FormatError: a field is impossible, or the file ends inside headers or bitmaps.
    """
    signature = file.read_exactly(0, SIG_LEN, "the signature")
    if signature not in (KDUMP_SIGNATURE, DISK_DUMP_SIGNATURE):
        raise FormatError(f"signature {signature!r}", 0, f"{KDUMP_SIGNATURE!r} or {DISK_DUMP_SIGNATURE!r}")
    main = _read_disk_dump_header(file)
    # The sub-header of a diskdump is another structure, with registers.
    sub = _read_sub_header(file, main) if main.is_kdump else _SubHeader()
    return _place_bitmaps(file, main, sub)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("latin-1")


def _read_disk_dump_header(file: DumpFile) -> _MainHeader:
    """Return the header in the first variant that makes sense."""
    raw = file.read_exactly(SIG_LEN, 4, "header_version")
    byte_orders = [order for order in BYTE_ORDERS if int.from_bytes(raw, order) <= KDUMP_HEADER_VERSION_MAX]
    if not byte_orders:
        version = int.from_bytes(raw, "little")
        raise FormatError(f"diskdump header_version {version}", SIG_LEN, f"0 to {KDUMP_HEADER_VERSION_MAX}")
    problems: list[FormatError] = []
    for byte_order in byte_orders:
        for word_size in WORD_SIZES:
            try:
                return _parse_disk_dump_header(file, word_size, byte_order)
            except FormatError as problem:
                problems.append(problem)
    # The variant in which block_size makes sense is the intended one.
    raise next((p for p in problems if not p.what.startswith("block_size")), problems[0])


def _parse_disk_dump_header(file: DumpFile, word_size: ElfClass, byte_order: ByteOrder) -> _MainHeader:
    layout = DISK_DUMP_HEADER[word_size, byte_order]
    fields = layout.parse(file.read_exactly(0, layout.sizeof(), "disk_dump_header"))
    block_size, sub_hdr_size, bitmap_blocks = fields.block_size, fields.sub_hdr_size, fields.bitmap_blocks
    if not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX or block_size & (block_size - 1):
        expected = f"a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}"
        raise FormatError(f"block_size {block_size}", offsetof(layout, "block_size"), expected)
    is_kdump = fields.signature == KDUMP_SIGNATURE
    if sub_hdr_size < int(is_kdump):
        expected = f"at least {int(is_kdump)}"
        raise FormatError(f"sub_hdr_size {sub_hdr_size}", offsetof(layout, "sub_hdr_size"), expected)
    end = (DISKDUMP_HEADER_BLOCKS + sub_hdr_size) * block_size
    if end > file.size:
        what = f"headers of {end:#x} bytes (sub_hdr_size {sub_hdr_size}) are cut off by the end of the file"
        raise FormatError(what, file.size, f"at least {end:#x} bytes")
    if not bitmap_blocks or bitmap_blocks * block_size * 8 < fields.max_mapnr:
        expected = f"enough blocks of {block_size} bytes for the bits of {fields.max_mapnr} page frames"
        raise FormatError(f"bitmap_blocks {bitmap_blocks}", offsetof(layout, "bitmap_blocks"), expected)
    return _MainHeader(
        is_kdump=is_kdump,
        header_version=fields.header_version,
        word_size=word_size,
        byte_order=byte_order,
        release=_text(fields.utsname.release),
        machine=_text(fields.utsname.machine),
        timestamp=(fields.timestamp.tv_sec, fields.timestamp.tv_usec),
        status=fields.status,
        block_size=block_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks,
        max_mapnr=fields.max_mapnr,
        max_mapnr_at=offsetof(layout, "max_mapnr"),
    )


def _read_sub_header(file: DumpFile, main: _MainHeader) -> _SubHeader:
    """Return the sub-header in the first variant that agrees with the header and the file, else in the first."""
    abis = SUB_HEADER_ABIS[main.word_size]
    if is_32_bit(main.machine):
        # With a 64-bit time_t, the header of a 32-bit makedumpfile looks like the 64-bit one.
        abis = (*abis, *SUB_HEADER_ABIS[32])
    candidates = [_parse_sub_header(file, main, abi) for abi in abis]
    return next((c for c in candidates if _is_plausible(c, main, file.size)), candidates[0])


def _parse_sub_header(file: DumpFile, main: _MainHeader, abi: SubHeaderAbi) -> _SubHeader:
    layout = KDUMP_SUB_HEADER[abi, main.byte_order, main.header_version]
    start = DISKDUMP_HEADER_BLOCKS * main.block_size
    fields = layout.parse(file.read_exactly(start, layout.sizeof(), "kdump_sub_header"))
    since = main.header_version
    sign = 1 << (63 if abi == "64" else 31)
    wide = "_64" if since >= 6 else ""
    return _SubHeader(
        phys_base=(fields.phys_base ^ sign) - sign,
        dump_level=fields.dump_level if since >= 1 else None,
        split=fields.split if since >= 2 else 0,
        start_pfn=fields[f"start_pfn{wide}"] if since >= 2 else 0,
        end_pfn=fields[f"end_pfn{wide}"] if since >= 2 else 0,
        start_pfn_at=start + offsetof(layout, f"start_pfn{wide}") if since >= 2 else 0,
        vmcoreinfo=_range(fields.offset_vmcoreinfo, fields.size_vmcoreinfo) if since >= 3 else _NOWHERE,
        note=_range(fields.offset_note, fields.size_note) if since >= 4 else _NOWHERE,
        eraseinfo=_range(fields.offset_eraseinfo, fields.size_eraseinfo) if since >= 5 else _NOWHERE,
        max_mapnr_64=fields.max_mapnr_64 if since >= 6 else None,
        max_mapnr_at=start + offsetof(layout, "max_mapnr_64") if since >= 6 else 0,
    )


def _range(offset: int, size: int) -> AddressRange:
    return AddressRange(offset, offset + size)


def _is_plausible(header: _SubHeader, main: _MainHeader, file_size: int) -> bool:
    if header.max_mapnr_64 is not None and min(header.max_mapnr_64, UINT_MAX) != main.max_mapnr:
        return False
    ranges = (header.vmcoreinfo, header.note, header.eraseinfo)
    return all(r == _NOWHERE or main.block_size <= r.start < r.end <= file_size for r in ranges)


def _place_bitmaps(file: DumpFile, main: _MainHeader, sub: _SubHeader) -> DiskDumpHeader:
    """Return both headers as one record, with the offsets that follow from them.

    Of a KDUMP file, bitmap_blocks counts both bitmaps; a diskdump without filtering has only one.
    """
    # Since header_version 6 the 32-bit max_mapnr may be cut off.
    max_mapnr, max_mapnr_at = (
        (sub.max_mapnr_64, sub.max_mapnr_at) if sub.max_mapnr_64 else (main.max_mapnr, main.max_mapnr_at)
    )
    block_size = main.block_size
    total = main.bitmap_blocks * block_size
    blocks = -(-max_mapnr // (8 * block_size))
    count = 2 if main.is_kdump or main.bitmap_blocks >= 2 * blocks else 1
    bitmap_offset = (DISKDUMP_HEADER_BLOCKS + main.sub_hdr_size) * block_size
    if not 0 < max_mapnr <= MAX_MAPNR_MAX or blocks * count > main.bitmap_blocks:
        most = min(MAX_MAPNR_MAX, main.bitmap_blocks // count * block_size * 8)
        raise FormatError(
            f"max_mapnr {max_mapnr}", max_mapnr_at, f"1 to {most}, as bitmap_blocks is {main.bitmap_blocks}"
        )
    if bitmap_offset + total > file.size:
        what = f"bitmaps of {total:#x} bytes at {bitmap_offset:#x} are cut off by the end of the file"
        raise FormatError(what, file.size, f"at least {bitmap_offset + total:#x} bytes")
    return DiskDumpHeader(
        is_kdump=main.is_kdump,
        header_version=main.header_version,
        word_size=main.word_size,
        byte_order=main.byte_order,
        release=main.release,
        machine=main.machine,
        timestamp=main.timestamp,
        status=main.status,
        block_size=block_size,
        max_mapnr=max_mapnr,
        bitmap_offset=bitmap_offset,
        bitmap_size=total // count,
        bitmap_count=count,
        page_desc_offset=bitmap_offset + total,
        phys_base=sub.phys_base,
        dump_level=sub.dump_level,
        vmcoreinfo=sub.vmcoreinfo,
        note=sub.note,
        eraseinfo=sub.eraseinfo,
        split_pfns=_split_pfns(sub, max_mapnr),
    )


def _split_pfns(sub: _SubHeader, max_mapnr: int) -> tuple[int, int] | None:
    """Return the page frames that this part of a split dump has; makedumpfile writes empty parts too."""
    if not sub.split:
        return None
    if not sub.start_pfn <= sub.end_pfn <= max_mapnr:
        what = f"start_pfn {sub.start_pfn:#x} and end_pfn {sub.end_pfn:#x} of a part of a split dump"
        raise FormatError(what, sub.start_pfn_at, f"a range of page frames up to {max_mapnr:#x}")
    return sub.start_pfn, sub.end_pfn
