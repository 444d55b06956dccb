"""Where a saved QEMU machine's main memory is: in which RAM blocks, and at which physical addresses.

References: QEMU's hw/i386/{pc,pc_piix,pc_q35,microvm}.c: pc_memory_init(), pc_init1(), pc_q35_init(),
microvm_memory_init(); hw/arm/virt.c, hw/riscv/virt.c, hw/s390x/s390-virtio-ccw.c, hw/ppc/spapr.c,
hw/mips/{malta,loongson3_virt}.c (7.2 to 11.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmcore2core.containers.ram_blocks import RamBlock
from vmcore2core.containers.raw import parse_map
from vmcore2core.errors import FormatError, UsageError
from vmcore2core.formats import qemu_migration as fmt


def main_blocks(blocks: Mapping[bytes, RamBlock]) -> tuple[RamBlock, ...]:
    """Return the blocks of main memory in the order of their addresses.

    With NUMA, the nodes' blocks. Else the block with the machine's name for it, which may be smaller than flash. Else
    the largest.
    """
    nodes = {int(match[1]): blocks[name] for name in blocks if (match := re.fullmatch(fmt.NODE_RAM, name))}
    if nodes:
        return tuple(nodes[number] for number in sorted(nodes))
    named = [block for name, block in blocks.items() if name in fmt.RAM_BASES]
    return (max(named or blocks.values(), key=lambda block: block.size),)


def main_memory(
    blocks: Sequence[RamBlock], machine: bytes, cmos: bytes | None = None
) -> tuple[tuple[int, int, int], ...]:
    """Return (physical address, offset in the blocks, bytes) of a machine's main memory.

    Args:
        blocks: of main memory.
        machine: QEMU's name of its type.
        cmos: the memory of a PC's clock, if known; it tells the firmware how much memory is below 4 GiB.

    Raises:
        FormatError: it is not known where this machine has its memory.
    """
    name, size = blocks[0].name, sum(block.size for block in blocks)
    base = _base(name, machine)
    if name in fmt.MIPS_BLOCKS or machine.startswith(fmt.MIPS_MACHINES):
        low = min(size, fmt.MIPS_LOW)
        return ((0, 0, low), *(((fmt.MIPS_HIGH, low, size - low),) if low < size else ()))
    if name not in fmt.PC_BLOCKS and not machine.startswith(fmt.PC_MACHINES):
        return ((base, 0, size),)
    low = _cmos_low(cmos, size) or _usual_low(size, machine)
    return ((0, 0, low), (fmt.FOUR_GIB, low, size - low)) if low < size else ((0, 0, size),)


def mapped_memory(blocks: Sequence[RamBlock], memory_map: str) -> tuple[tuple[int, int, int], ...]:
    """Return the same as ``main_memory``, by the user's map.

    Args:
        blocks: of main memory.
        memory_map: see ``raw.parse_map``; offsets are those in the blocks.

    Raises:
        UsageError: it is not a map, or does not map whole pages of this memory.
    """
    size = sum(block.size for block in blocks)
    pieces = parse_map(memory_map, [(Path("memory"), 0, size)])
    for start, offset, length in pieces:
        if (start | offset | length) % fmt.TARGET_PAGE_SIZE or offset + length > size:
            raise UsageError(
                f"--map {start:#x}:{length:#x}@{offset:#x}: expected pages of {fmt.TARGET_PAGE_SIZE} bytes of the "
                f"machine's {size:#x} bytes of memory"
            )
    return tuple(pieces)


def _base(name: bytes, machine: bytes) -> int:
    if name in fmt.RAM_BASES:
        return fmt.RAM_BASES[name]
    for start, base in fmt.MACHINE_BASES.items():
        if machine.startswith(start):
            return base
    if machine == fmt.RISCV_MACHINE:
        return fmt.RISCV_RAM_BASE
    known = ", ".join(base.decode() for base in fmt.RAM_BASES)
    what = f"the largest RAM block is {name.decode('latin-1')!r} of a machine of type {machine.decode('latin-1')!r}"
    raise FormatError(what, 0, f"one of {known}")


def _cmos_low(cmos: bytes | None, size: int) -> int | None:
    """Return the bytes below 4 GiB by the clock's memory; None if that is inconsistent."""
    if cmos is None or len(cmos) < fmt.CMOS_SIZE:
        return None
    low = fmt.CMOS_BASE + int.from_bytes(cmos[fmt.CMOS_LOW], "little") * fmt.CMOS_UNIT
    high = int.from_bytes(cmos[fmt.CMOS_HIGH], "little") * fmt.CMOS_UNIT
    return low if low < fmt.FOUR_GIB and low + high == size else None


def _usual_low(size: int, machine: bytes) -> int:
    """Return the bytes below 4 GiB of a machine without the option max-ram-below-4g."""
    for part, (most, low) in fmt.LOW_MAX.items():
        if part in machine:
            return size if size < most else low
    if size < min(most for most, _ in fmt.LOW_MAX.values()):
        return size
    what = f"a machine of type {machine.decode('latin-1')!r} with {size:#x} bytes of memory"
    raise FormatError(what, 0, "pc-i440fx, pc-q35 or microvm, whose hole below 4 GiB is known")
