"""VMware's checkpoints out of struct.pack and literal numbers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tests.builders.samples import PAGE_SIZE, Sample, ranges

GENERAL = "rax rcx rdx rbx rbp rsp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
SEGMENTS = "es cs ss ds fs gs".split()


def tag(name: bytes, value: bytes, *indices: int) -> bytes:
    head = len(name) << 8 | len(indices) << 6 | len(value)
    return struct.pack("<H", head) + name + struct.pack(f"<{len(indices)}I", *indices) + value


def block(name: bytes, value: bytes, *indices: int, pad: int = 0, compressed: bool = False) -> bytes:
    head = len(name) << 8 | len(indices) << 6 | (0x3E if compressed else 0x3F)
    sizes = struct.pack("<QQH", len(value), len(value), pad)
    return struct.pack("<H", head) + name + struct.pack(f"<{len(indices)}I", *indices) + sizes + bytes(pad) + value


def u32(name: bytes, value: int, *indices: int) -> bytes:
    return tag(name, struct.pack("<I", value), *indices)


def u64(name: bytes, value: int, *indices: int) -> bytes:
    return tag(name, struct.pack("<Q", value), *indices)


def memory_group(regions: Sequence[tuple[int, int, int]], memory: bytes | None) -> bytes:
    """Return the group's tags of (page frame, page of the file, pages); with memory as a block where it is inside."""
    tags = u32(b"regionsCount", len(regions))
    for i, (ppn, number, size) in enumerate(regions):
        tags += u32(b"regionPageNum", number, i) + u32(b"regionPPN", ppn, i) + u32(b"regionSize", size, i)
    tags += u32(b"align_mask", 0xFFFF)
    return tags + (b"" if memory is None else block(b"Memory", memory, 0, 0, pad=77))


def cpu_group(cpus: Sequence[Mapping[str, int]], idt: int = 0xFFFF_FE00_0000_0000, blocks: bool = False) -> bytes:
    """Return the group's tags: registers as a tag each, or in blocks."""
    tags = u32(b"cpu:numVCPUs", len(cpus))
    for i, cpu in enumerate(cpus):
        if blocks:
            tags += block(b"gpregs", struct.pack("<16Q", *(cpu[name] for name in GENERAL[:16])), i)
            tags += block(b"CR64", struct.pack("<9Q", *(cpu.get(f"cr{n}", 0) for n in range(9))), i)
            tags += block(b"IDTR", struct.pack("<HQ", 0xFFF, idt), i) + u64(b"rip", cpu["rip"], i)
        else:
            tags += b"".join(u64(name.encode(), cpu[name], i) for name in GENERAL)
            tags += b"".join(u64(b"CR64", cpu.get(f"cr{n}", 0), i, n) for n in range(5))
            tags += u32(b"IDTR", 0xFFF, i, 0) + u32(b"IDTR", idt & 0xFFFFFFFF, i, 1) + u32(b"IDTR", idt >> 32, i, 2)
        tags += u32(b"eflags", cpu["eflags"] & 0x8D5, i) + u32(b"EFLAGS", cpu["eflags"] & ~0x8D5, i)
        for n, name in enumerate(SEGMENTS):
            tags += u32(b"S", cpu[name], i, n) + u64(b"S.base64", cpu.get(f"{name}_base", 0), i, n)
    return tags


def build_vmss(groups: Mapping[bytes, bytes], magic: int = 0xBED2BED2) -> bytes:
    """Return a checkpoint of the groups' tags."""
    at = 12 + 80 * len(groups)
    table, body = b"", b""
    for name, tags in groups.items():
        table += struct.pack("<64sQQ", name, at + len(body), len(tags) + 2)
        body += tags + b"\0\0"
    return struct.pack("<III", magic, 8, len(groups)) + table + body


_RUNS = ranges()
_MEMORY = b"".join(data for _, data in _RUNS)
_STARTS = [sum(len(data) for _, data in _RUNS[:i]) // PAGE_SIZE for i in range(len(_RUNS))]
_REGIONS = [
    (start // PAGE_SIZE, number, len(data) // PAGE_SIZE) for (start, data), number in zip(_RUNS, _STARTS, strict=True)
]

SAMPLES = {
    "VMware, memory inside": Sample("VMware", (build_vmss({b"memory": memory_group(_REGIONS, _MEMORY)}),)),
    "VMware, memory beside": Sample("VMware", (build_vmss({b"memory": memory_group(_REGIONS, None)}), _MEMORY)),
}
