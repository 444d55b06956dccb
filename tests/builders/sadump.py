"""sadump's files out of struct.pack and literal numbers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tests.builders.samples import PAGES, Sample

SYSTEM, SET, TIME = b"system" + bytes(10), b"disk set" + bytes(8), b"time" + bytes(12)


def part_header(number: int = 0, used: int = 0, set_id: bytes = SET) -> bytes:
    """Return a partition's header: ``number`` of its set, or 0."""
    raw = b"sadump\0\0" + struct.pack("<4I", 1, 0, 0, 1) + bytes(64) + SYSTEM + set_id + bytes(16) + TIME
    raw += struct.pack("<IIQ", number, 0, used)
    value = 12345
    while len(raw) < 4096:
        raw += struct.pack("<I", value)
        value = (value + 7) * 11 & 0xFFFFFFFF
    return raw


def bitmap(pfns: Sequence[int], blocks: int) -> bytes:
    """Return a bitmap whose highest bits come first."""
    bits = bytearray(4096 * blocks)
    for pfn in pfns:
        bits[pfn >> 3] |= 0x80 >> (pfn & 7)
    return bytes(bits)


SMRAM = {
    **{f"r{i}": 0x7F54 - 8 * (i - 8) for i in range(8, 16)},
    **dict(zip("rax rcx rdx rbx rsp rbp rsi rdi".split(), range(0x7F5C, 0x7F9C, 8), strict=True)),
    **dict(zip("es cs ss ds fs gs".split(), range(0x7FA8, 0x7FC0, 4), strict=True)),
    "rip": 0x7FD8,
    "efer": 0x7FE0,
    "eflags": 0x7FE8,
    "cr3": 0x7FF0,
    "cr0": 0x7FF8,
}
"""Offsets in Intel's SDM, volume 3, "SMRAM State Save Map for Intel 64 Architecture"."""


def cpu_state(regs: Mapping[str, int]) -> bytes:
    """Return what a CPU in 64-bit mode saves when it enters system management mode."""
    raw = bytearray(0x400)
    for name, value in {"efer": 0xD01, "cr0": 0x80050033, **regs}.items():
        if name in SMRAM:
            at, size = SMRAM[name] - 0x7C00, 4 if name[1:] == "s" else 8
            raw[at : at + size] = value.to_bytes(size, "little")
    return bytes(raw)


def build_sadump(
    pages: Mapping[int, bytes],
    *,
    excluded: Sequence[int] = (),
    cpus: Sequence[bytes] = (),
    version: int = 0,
    media: bool = False,
    disks: Sequence[int] = (),
    patches: Mapping[int, bytes] = {},
) -> tuple[bytes, ...]:
    """Return a dump's file, or the files of a set.

    Args:
        excluded: RAM that was not dumped.
        cpus: the state of each.
        version: of the header; from 1 on, the number of page frames stands elsewhere.
        media: a backup.
        disks: pages on each disk of a set but the last.
        patches: offset in the dump's header -> bytes that are there instead.
    """
    end = max([*pages, *excluded]) + 1
    blocks = -(-end // (8 * 4096))
    sub = struct.pack("<I", sum(map(len, cpus))) + b"".join(struct.pack("<QQ", i, 0) for i in range(len(cpus)))
    sub = sub + b"".join(cpus) if cpus else b""
    sub += bytes(-len(sub) % 4096)
    header = bytearray(4096)
    header[:8] = b"sadump\0\0"
    small = 0xFFFFFFFF if version else end
    sizes = (0, 0, 4096, 0, len(sub) // 4096, blocks, blocks, small, len(pages), 0, 0, 0, len(cpus))
    struct.pack_into("<II16s13I", header, 8, version, 0, TIME, *sizes)
    if version:
        struct.pack_into("<4Q", header, 88, end, len(pages), 0, 0)
    for at, patch in patches.items():
        header[at : at + len(patch)] = patch
    rest = bytes(header) + sub + bitmap([*pages, *excluded], blocks) + bitmap(list(pages), blocks)
    data = [pages[pfn] for pfn in sorted(pages)]
    if not disks:
        front = (SYSTEM + SET + TIME + b"\1").ljust(4096, b"\0") if media else b""
        return (front + part_header() + rest + b"".join(data),)
    files = []
    for number, count in enumerate((*disks, len(data)), 1):
        head = struct.pack("<IIQ", 1, len(disks) + 1, 0).ljust(4096, b"\0") + rest if number == 1 else b""
        mine, data = data[:count], data[count:]
        used = 4096 + len(head) + 4096 * len(mine)
        files.append(part_header(number, used) + head + b"".join(mine))
    return tuple(files)


SAMPLES = {
    "sadump": Sample("sadump", build_sadump(PAGES, excluded=(5, 6))),
    "sadump-v1-media": Sample("sadump", build_sadump(PAGES, version=1, media=True)),
    "sadump-set": Sample("sadump", build_sadump(PAGES, disks=(4, 3))),
}
