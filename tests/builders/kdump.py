"""kdump-compressed files and diskdumps out of struct.pack and literal numbers, never out of vmcore2core.formats."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

Order = Literal["little", "big"]
Abi = Literal["64", "32-packed", "32-padded"]

BLOCK = 4096

FLAGS = {"raw": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}


def _lzo(data: bytes) -> bytes:
    from lzallright import LZOCompressor

    return bytes(LZOCompressor().compress(data))


def _snappy(data: bytes) -> bytes:
    import cramjam

    return bytes(cramjam.snappy.compress_raw(data))


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=1).compress(data)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda data: data,
    "zlib": lambda data: zlib.compress(data, 1),
    "lzo": _lzo,
    "snappy": _snappy,
    "zstd": _zstd,
}


def bitmap(pfns: Iterable[int], size: int) -> bytes:
    """Return a bitmap of ``size`` bytes with the bits of ``pfns`` set."""
    bits = bytearray(size)
    for pfn in pfns:
        bits[pfn // 8] |= 1 << pfn % 8
    return bytes(bits)


def main_header(
    *,
    bits: int,
    order: Order,
    signature: bytes,
    version: int,
    machine: str,
    status: int,
    block_size: int,
    sub_hdr_size: int,
    bitmap_blocks: int,
    max_mapnr: int,
    timestamp: int = 0,
) -> bytes:
    """Return ``struct disk_dump_header``: 464 bytes with 64-bit words, 452 with 32."""
    char = "<" if order == "little" else ">"
    names = ("Linux", "(none)", "6.1.0", "#1 SMP", machine, "(none)")
    utsname = b"".join(name.encode().ljust(65, b"\0") for name in names)
    head = signature + struct.pack(char + "i", version) + utsname
    head += struct.pack(char + ("6xqq" if bits == 64 else "2xii"), timestamp, 0)
    return head + struct.pack(
        char + "IiiIIIIIIi",
        status,
        block_size,
        sub_hdr_size,
        bitmap_blocks,
        min(max_mapnr, 0xFFFFFFFF),
        0,
        0,
        0,
        0,
        1,
    )


SUB_FORMATS: dict[Abi, tuple[str, ...]] = {
    # phys_base; dump_level; split, start_pfn, end_pfn; vmcoreinfo; note; eraseinfo; start, end, max_mapnr_64
    "64": ("q", "i", "iQQ", "QQ", "QQ", "QQ", "QQQ"),
    "32-packed": ("i", "i", "iII", "QI", "QI", "QI", "QQQ"),
    "32-padded": ("i", "i", "iII", "4xQI", "4xQI", "4xQI", "4xQQQ"),
}
"""What each header_version adds."""

SUB_SIZES: dict[Abi, int] = {"64": 104, "32-packed": 80, "32-padded": 96}


def build_kdump(
    pages: Mapping[int, bytes],
    *,
    max_mapnr: int | None = None,
    excluded: Iterable[int] = (),
    version: int = 6,
    abi: Abi = "64",
    order: Order = "little",
    codec: str = "zlib",
    block_size: int = BLOCK,
    signature: bytes = b"KDUMP   ",
    machine: str = "x86_64",
    status: int | None = None,
    dump_level: int = 31,
    phys_base: int = 0,
    split: tuple[int, int] | None = None,
    timestamp: int = 0,
    notes: bytes = b"",
    vmcoreinfo: bytes = b"",
    eraseinfo: bytes = b"",
    main_bits: int | None = None,
    bitmaps: int = 2,
    max_mapnr_64: int | None = None,
    desc_override: Mapping[int, tuple[int, int, int]] | None = None,
) -> bytes:
    """Return a kdump-compressed file.

    Pages that a codec does not make smaller are stored as they are, and all pages of zeros share one descriptor's
    target, as makedumpfile and QEMU do.

    Args:
        pages: by page frame.
        excluded: page frames in the first bitmap only.
        vmcoreinfo: stored apart from ``notes``, as header_version 3 does.
        bitmaps: 2, or 1 as in old diskdumps.
        split: page frames of this part of a split dump: the bitmaps have all pages, descriptors and data those alone.
        timestamp: seconds.
        desc_override: by page frame, (offset, size, flags) to put into its page_desc.
    """
    char = "<" if order == "little" else ">"
    if max_mapnr is None:
        max_mapnr = max([*pages, *excluded], default=0) + 1
    bits = (64 if abi == "64" else 32) if main_bits is None else main_bits
    bitmap_size = -(-max_mapnr // (8 * block_size)) * block_size
    bitmap_blocks = bitmap_size // block_size * bitmaps
    extra_at = block_size + SUB_SIZES[abi]
    extra = notes + vmcoreinfo + eraseinfo
    sub_hdr_size = -(-(SUB_SIZES[abi] + len(extra)) // block_size)
    fields = (
        (phys_base,),
        (dump_level,),
        (int(split is not None), *(min(pfn, 0xFFFFFFFF) for pfn in split or (0, 0))),
        (extra_at + len(notes) if vmcoreinfo else 0, len(vmcoreinfo)),
        (extra_at if notes else 0, len(notes)),
        (extra_at + len(notes) + len(vmcoreinfo) if eraseinfo else 0, len(eraseinfo)),
        (*(split or (0, 0)), max_mapnr if max_mapnr_64 is None else max_mapnr_64),
    )
    sub = struct.pack(
        char + "".join(SUB_FORMATS[abi][: version + 1]), *(value for group in fields[: version + 1] for value in group)
    )
    header = main_header(
        bits=bits,
        order=order,
        signature=signature,
        version=version,
        machine=machine,
        status=FLAGS[codec] if status is None else status,
        block_size=block_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks,
        max_mapnr=max_mapnr,
        timestamp=timestamp,
    )
    blocks = header.ljust(block_size, b"\0")
    blocks += (sub.ljust(SUB_SIZES[abi], b"\0") + extra).ljust(sub_hdr_size * block_size, b"\0")
    if bitmaps == 2:
        blocks += bitmap([*pages, *excluded], bitmap_size)
    blocks += bitmap(pages, bitmap_size)
    mine = [pfn for pfn in sorted(pages) if split is None or split[0] <= pfn < split[1]]
    at = len(blocks) + 24 * len(pages)
    descs, data = bytearray(), bytearray()
    zero: tuple[int, int, int] | None = None
    for pfn in mine:
        packed, flags = COMPRESSORS[codec](pages[pfn]), FLAGS[codec]
        is_zero = not pages[pfn].strip(b"\0")
        if len(packed) >= block_size or is_zero:
            packed, flags = pages[pfn], 0
        if is_zero and zero is not None:
            offset, size, flags = zero
        else:
            offset, size = at + len(data), len(packed)
            data += packed
            zero = (offset, size, flags) if is_zero else zero
        if desc_override and pfn in desc_override:
            offset, size, flags = desc_override[pfn]
        descs += struct.pack(char + "QIIQ", offset, size, flags, 0)
    # makedumpfile leaves room for the descriptors of all parts.
    return bytes(blocks + descs.ljust(24 * len(pages), b"\0") + data)


def write_reaching(source: bytes, target: Path, end: int) -> None:
    """Write a dump again with bitmaps that reach to a physical address, and one more page right below that.

    What the bitmaps have between both is a hole of the file. The page has the bytes of the last one.

    Args:
        source: a file like those of ``build_kdump``, 64-bit and little-endian, of header_version 6.
        target: the new file.
        end: a multiple of the page size.
    """
    sub_hdr_size, bitmap_blocks = struct.unpack_from("<II", source, 432)
    bitmaps_at = (1 + sub_hdr_size) * BLOCK
    size = bitmap_blocks * BLOCK // 2
    descs_at = bitmaps_at + 2 * size
    nr_pages = int.from_bytes(source[bitmaps_at + size : descs_at], "little").bit_count()
    data_at = descs_at + 24 * nr_pages
    max_mapnr = end // BLOCK
    new_size = -(-max_mapnr // (8 * BLOCK)) * BLOCK
    moved = 2 * (new_size - size) + 24
    descs = [(at + moved, *rest) for at, *rest in struct.iter_unpack("<QIIQ", source[descs_at:data_at])]
    head = bytearray(source[:bitmaps_at])
    struct.pack_into("<II", head, 436, 2 * new_size // BLOCK, min(max_mapnr, 0xFFFFFFFF))
    struct.pack_into("<Q", head, BLOCK + 96, max_mapnr)
    with target.open("wb") as file:
        file.write(head)
        for i in range(2):
            file.seek(bitmaps_at + i * new_size)
            file.write(source[bitmaps_at + i * size : bitmaps_at + (i + 1) * size])
            file.seek(bitmaps_at + i * new_size + (max_mapnr - 1) // 8)
            file.write(bytes([1 << (max_mapnr - 1) % 8]))
        file.seek(bitmaps_at + 2 * new_size)
        file.write(b"".join(struct.pack("<QIIQ", *desc) for desc in [*descs, descs[-1]]))
        file.write(source[data_at:])
