"""Page tables of each architecture, whose entries lead anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from tests.builders.paging import FlatContainer
from tests.fuzz.harness import Choices, Harness, Parts
from vmcore2core.addresses import PhysAddr
from vmcore2core.arch.arm64 import paging as arm64_paging
from vmcore2core.arch.i386 import paging as i386_paging
from vmcore2core.arch.loongarch64 import paging as loongarch64_paging
from vmcore2core.arch.mips64 import paging as mips64_paging
from vmcore2core.arch.ppc64le import paging as ppc64le_paging
from vmcore2core.arch.riscv64 import paging as riscv64_paging
from vmcore2core.arch.s390x import paging as s390x_paging
from vmcore2core.arch.spec import PageTableLevel, PageTableSpec
from vmcore2core.arch.x86.paging import decode as decode_x86
from vmcore2core.memory.pagetable import Ranges, translate, walk
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory

PAGES = 32
X86 = (
    PageTableLevel("pgd", 39, 9),
    PageTableLevel("pud", 30, 9),
    PageTableLevel("pmd", 21, 9),
    PageTableLevel("pte", 12, 9),
)


def riscv(bits: int) -> PageTableSpec:
    levels = riscv64_paging.LEVELS[bits]
    return PageTableSpec(
        levels,
        np.dtype("<u8"),
        partial(riscv64_paging.decode, levels=levels),
        address_bits=partial(riscv64_paging.napot_address_bits, levels=levels),
    )


SPECS: dict[str, PageTableSpec] = {
    "x86_64": PageTableSpec(X86, np.dtype("<u8"), partial(decode_x86, levels=X86, pfn_mask=0x000F_FFFF_FFFF_F000)),
    "i386": i386_paging.TWO_LEVELS,
    "i386 PAE": i386_paging.PAE,
    "arm64 4K": arm64_paging.page_table_spec(arm64_paging.TableForm(12, 52, 52)),
    "arm64 64K": arm64_paging.page_table_spec(arm64_paging.TableForm(16, 52, 48)),
    "riscv64": riscv(48),
    "s390x": s390x_paging.SPECS[max(s390x_paging.SPECS)],
    "ppc64le": ppc64le_paging.radix_spec(4096),
    "loongarch64": loongarch64_paging.page_table_spec(16384, 3),
    "mips64": mips64_paging.page_table_spec(mips64_paging.TableForm(4096, 3, 10, 11), ">"),
}


def seeds() -> Sequence[bytes]:
    return [bytes([number]) + bytes(range(250)) for number in range(len(SPECS))]


def tables(choices: Choices, spec: PageTableSpec) -> bytes:
    """Return memory with entries that lead into it, and others."""
    memory = bytearray(PAGES * 4096)
    size, big = spec.entry_dtype.itemsize, spec.entry_dtype.str[0] == ">"
    mask = (1 << 8 * size) - 1
    while choices.left:
        run = 1 + choices.below(64) * (choices.below(4) == 0)
        at = choices.below(len(memory) // size)
        flags = int.from_bytes(choices.take(2), "little")
        entry = choices.below(PAGES) << 12 | flags & 0xFFF | (flags >> 12) << 60
        if choices.below(4) == 0:
            entry = choices.word(entry)
        raw = (entry & mask).to_bytes(size, "big" if big else "little") * run
        memory[at * size : at * size + len(raw)] = raw[: len(memory) - at * size]
    return bytes(memory)


def run(data: bytes) -> str:
    parts, choices = Parts(), Choices(data)
    spec = list(SPECS.values())[choices.take(1)[0] % len(SPECS)]
    root = PhysAddr(choices.below(4) * 4096)
    top = spec.levels[0].shift + spec.levels[0].bits
    start = (choices.word() % (1 << min(top, 63))) & ~(spec.page_size - 1)
    memory = PhysicalMemory(FlatContainer(tables(choices, spec)))
    end = min(start + (1 << 34), 1 << min(top, 63))
    for batch in walk(memory, spec, root, Ranges(np.array([start], np.uint64), np.array([end], np.uint64))):
        assert len(batch.vaddr) == len(batch.kind)
    for address in (start, 0, end - 1):
        with parts.one():
            translate(memory, spec, root, address)
    region = Region(start, min(start + (1 << 24), end))  # type: ignore[arg-type]
    user = UserMemory(memory, spec, root, (region, region._replace(start=region.end, end=region.end)))
    user.survey(region)
    for _ in user.batches([(region.start, region.end)]):
        pass
    with parts.one():
        user.read(region.start, 100)
    return parts.result


HARNESS = Harness("pagetables", seeds, run, 4096)
