"""s390 stand-alone dumps out of struct.pack and literal numbers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tests.builders.samples import PAGE_SIZE, PAGES, Sample, ranges

MAGIC, MAGIC_EXT = 0xA8190173618F23FD, 0xA8190173618F23FE
END = b"DUMP_END" + struct.pack(">Q", 0xD1000000_00000001)


def header(size: int, prefixes: Sequence[int] = (), *, magic: int = MAGIC, patches: Mapping[int, bytes] = {}) -> bytes:
    """Return the header of ``size`` bytes of memory, and CPUs with these prefixes.

    Args:
        patches: offset -> bytes that are there instead.
    """
    raw = bytearray(4096)
    struct.pack_into(">QIIIIQQQII", raw, 0, magic, 5, 4096, 4, 4096, size, 0, size, size >> 12, 0)
    struct.pack_into(">QQIIIQ", raw, 0x38, 0xD1000000_00000000, 0xFF00_0000, 2, 0, 2, size)
    struct.pack_into(">HH", raw, 0x5D, len(prefixes), len(prefixes))
    struct.pack_into(f">{len(prefixes)}I", raw, 0x800, *prefixes)
    for at, patch in patches.items():
        raw[at : at + len(patch)] = patch
    return bytes(raw)


def build_s390(memory: bytes, prefixes: Sequence[int] = (), end: bytes = END, **more: Mapping[int, bytes]) -> bytes:
    """Return a dump of all memory from address 0 on."""
    return header(len(memory), prefixes, **more) + memory + end  # type: ignore[arg-type]


def build_s390_ext(
    size: int, segments: Sequence[tuple[int, bytes]], prefixes: Sequence[int] = (), end: bytes = END
) -> bytes:
    """Return a dump in the extended format: memory of ``size`` bytes, of which the file has these segments."""
    out = header(size, prefixes, magic=MAGIC_EXT)
    for number, (start, data) in enumerate(segments):
        stop = (1 << 64) - 1 if number == len(segments) - 1 else 0
        out += struct.pack(">QQQ", start, len(data), stop).ljust(4096, b"\0") + data
    return out + end


def stored(lowcore: bytes, regs: bytes, floats: bytes, ctrs: bytes, prefix: int) -> bytes:
    """Return a CPU's two pages of lowcore after the store-status operation.

    Args:
        lowcore: as memory has it.
        regs: elf_gregset_t: PSW, general and access registers, orig_r2.
        floats: elf_fpregset_t: control, padding, registers.
        ctrs: control registers.
    """
    out = bytearray(lowcore)
    for at, data in (
        (0x1200, floats[8:]),
        (0x1280, regs[16:144]),
        (0x1300, regs[:16]),
        (0x1318, struct.pack(">I", prefix)),
        (0x131C, floats[:4]),
        (0x1340, regs[144:208]),
        (0x1380, ctrs),
    ):
        out[at : at + len(data)] = data
    return bytes(out)


_END = max(PAGES) + 1
_MEMORY = b"".join(PAGES.get(pfn, bytes(PAGE_SIZE)) for pfn in range(_END))
_HOLES = frozenset(set(range(_END)) - set(PAGES))

SAMPLES = {
    "s390": Sample("s390", (build_s390(_MEMORY),), zeros=_HOLES),
    "s390-extended": Sample("s390", (build_s390_ext(_END * PAGE_SIZE, ranges()),), zeros=_HOLES),
}
