"""kdump-compressed dumps ("KDUMP   ") and their ancestor diskdump ("DISKDUMP").

A file is, in blocks of ``block_size`` bytes: 1 block ``disk_dump_header``; ``sub_hdr_size`` blocks with
``kdump_sub_header``, ELF notes and the like; ``bitmap_blocks`` blocks with the bitmaps of page frames (first: RAM that
exists, second: pages that are in the dump); then one ``page_desc`` for each bit set in the second bitmap, in order of
page frames; then the pages.

Structures depend on the word size of the machine (or program) that wrote the file, and its byte order. On 32-bit
machines a 64-bit member is aligned to 4 bytes (i386, and QEMU for any machine: "packed") or to 8 ("padded").

References: makedumpfile's diskdump_mod.h, IMPLEMENTATION and write_kdump_header() (1.7.9); QEMU's
include/sysemu/dump.h, which has the same structures packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from construct import Bytes, Construct, Struct

from vmcore2core.formats._cabi import C_INTS, NUMPY_ORDER, ByteOrder, CMember, ElfClass, c_struct

KDUMP_SIGNATURE = b"KDUMP   "
DISK_DUMP_SIGNATURE = b"DISKDUMP"
SIG_LEN = 8
DISKDUMP_HEADER_BLOCKS = 1
"""Blocks that the header takes."""

KDUMP_HEADER_VERSION_MAX = 6

ERASEINFO_NOTE_NAME = "ERASEINFO"
"""The note of type 0 in which makedumpfile -E keeps the data at kdump_sub_header.offset_eraseinfo (elf_info.h)."""

NEW_UTSNAME_LEN = 65


class DumpStatus(IntFlag):
    """disk_dump_header.status of a "KDUMP   " file; the codecs are also page_desc.flags."""

    DUMP_DH_COMPRESSED_ZLIB = 0x1
    DUMP_DH_COMPRESSED_LZO = 0x2
    DUMP_DH_COMPRESSED_SNAPPY = 0x4
    DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
    """makedumpfile could not write everything (no space left)."""
    DUMP_DH_EXCLUDED_VMEMMAP = 0x10
    """The struct pages of excluded pages were excluded, too."""
    DUMP_DH_COMPRESSED_ZSTD = 0x20


DUMP_DH_COMPRESSED_ZLIB = DumpStatus.DUMP_DH_COMPRESSED_ZLIB
DUMP_DH_COMPRESSED_LZO = DumpStatus.DUMP_DH_COMPRESSED_LZO
DUMP_DH_COMPRESSED_SNAPPY = DumpStatus.DUMP_DH_COMPRESSED_SNAPPY
DUMP_DH_COMPRESSED_INCOMPLETE = DumpStatus.DUMP_DH_COMPRESSED_INCOMPLETE
DUMP_DH_EXCLUDED_VMEMMAP = DumpStatus.DUMP_DH_EXCLUDED_VMEMMAP
DUMP_DH_COMPRESSED_ZSTD = DumpStatus.DUMP_DH_COMPRESSED_ZSTD

DUMP_DH_CODECS = DUMP_DH_COMPRESSED_ZLIB | DUMP_DH_COMPRESSED_LZO | DUMP_DH_COMPRESSED_SNAPPY | DUMP_DH_COMPRESSED_ZSTD
"""The bits of page_desc.flags that name a codec; if none is set, the page is not compressed."""

DUMP_HEADER_COMPLETED = 0
DUMP_HEADER_INCOMPLETED = 1
DUMP_HEADER_COMPRESSED = 8
"""disk_dump_header.status of a "DISKDUMP" file."""


class DumpLevel(IntFlag):
    """kdump_sub_header.dump_level: makedumpfile's -d."""

    DL_EXCLUDE_ZERO = 0x01
    DL_EXCLUDE_CACHE = 0x02
    DL_EXCLUDE_CACHE_PRI = 0x04
    DL_EXCLUDE_USER_DATA = 0x08
    DL_EXCLUDE_FREE = 0x10


def _new_utsname() -> Struct:
    names = ("sysname", "nodename", "release", "version", "machine", "domainname")
    return c_struct(*((name, Bytes(NEW_UTSNAME_LEN), 1) for name in names))


def _disk_dump_header(word_size: ElfClass, order: ByteOrder) -> Struct:
    ints = C_INTS[order]
    timeval_word, align = (ints.s64, 8) if word_size == 64 else (ints.s32, 4)
    return c_struct(
        ("signature", Bytes(SIG_LEN), 1),
        ("header_version", ints.s32, 4),
        ("utsname", _new_utsname(), 1),
        ("timestamp", c_struct(("tv_sec", timeval_word, align), ("tv_usec", timeval_word, align)), align),
        ("status", ints.u32, 4),
        ("block_size", ints.s32, 4),
        ("sub_hdr_size", ints.s32, 4),  # in blocks
        ("bitmap_blocks", ints.u32, 4),  # of both bitmaps
        ("max_mapnr", ints.u32, 4),  # obsolete since header_version 6: max_mapnr_64
        ("total_ram_blocks", ints.u32, 4),
        ("device_blocks", ints.u32, 4),
        ("written_blocks", ints.u32, 4),
        ("current_cpu", ints.u32, 4),
        ("nr_cpus", ints.s32, 4),
    )


SubHeaderAbi = Literal["64", "32-packed", "32-padded"]


def _kdump_sub_header(abi: SubHeaderAbi, order: ByteOrder, header_version: int) -> Struct:
    """Return the members that a file of ``header_version`` has; each version appends some."""
    ints = C_INTS[order]
    u64_align = 4 if abi == "32-packed" else 8
    ulong: tuple[Construct[Any, Any], int] = (ints.u64, 8) if abi == "64" else (ints.u32, 4)
    off_t: tuple[Construct[Any, Any], int] = (ints.u64, u64_align)
    members: tuple[tuple[int, CMember], ...] = (
        (0, ("phys_base", *ulong)),
        (1, ("dump_level", ints.s32, 4)),
        (2, ("split", ints.s32, 4)),
        (2, ("start_pfn", *ulong)),  # obsolete since header_version 6: start_pfn_64
        (2, ("end_pfn", *ulong)),  # obsolete since header_version 6: end_pfn_64
        (3, ("offset_vmcoreinfo", *off_t)),
        (3, ("size_vmcoreinfo", *ulong)),
        (4, ("offset_note", *off_t)),
        (4, ("size_note", *ulong)),
        (5, ("offset_eraseinfo", *off_t)),
        (5, ("size_eraseinfo", *ulong)),
        (6, ("start_pfn_64", ints.u64, u64_align)),
        (6, ("end_pfn_64", ints.u64, u64_align)),
        (6, ("max_mapnr_64", ints.u64, u64_align)),
    )
    return c_struct(*(member for since, member in members if since <= header_version))


def _page_desc_dtype(order: ByteOrder) -> np.dtype[np.void]:
    char = NUMPY_ORDER[order]
    return np.dtype(
        [("offset", f"{char}u8"), ("size", f"{char}u4"), ("flags", f"{char}u4"), ("page_flags", f"{char}u8")]
    )


_ORDERS: tuple[ByteOrder, ...] = ("little", "big")
_WORD_SIZES: tuple[ElfClass, ...] = (64, 32)
_ABIS: tuple[SubHeaderAbi, ...] = ("64", "32-packed", "32-padded")

DISK_DUMP_HEADER: Mapping[tuple[ElfClass, ByteOrder], Struct] = MappingProxyType(
    {(w, o): _disk_dump_header(w, o) for w in _WORD_SIZES for o in _ORDERS}
)
"""``struct disk_dump_header`` by bits of a word and byte order; status is at 424 (64 bits) or 412 (32 bits)."""

KDUMP_SUB_HEADER: Mapping[tuple[SubHeaderAbi, ByteOrder, int], Struct] = MappingProxyType(
    {
        (abi, order, version): _kdump_sub_header(abi, order, version)
        for abi in _ABIS
        for order in _ORDERS
        for version in range(KDUMP_HEADER_VERSION_MAX + 1)
    }
)
"""``struct kdump_sub_header`` by ABI, byte order and header_version; 104, 80 and 96 bytes in version 6."""

SUB_HEADER_ABIS: Mapping[ElfClass, tuple[SubHeaderAbi, ...]] = MappingProxyType(
    {64: ("64",), 32: ("32-packed", "32-padded")}
)
"""The possible forms of a sub-header after a header of 32 or 64 bits; 32-bit ones differ since version 3."""

PAGE_DESC_DTYPE: Mapping[ByteOrder, np.dtype[np.void]] = MappingProxyType({o: _page_desc_dtype(o) for o in _ORDERS})
"""``page_desc_t``, 24 bytes everywhere."""
