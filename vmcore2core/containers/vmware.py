"""VMware's suspended machines and snapshots: .vmss or .vmsn, with memory inside or in a .vmem beside it.

Built from the description alone: no file of VMware's own was seen.

References: see ``formats.vmware``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from vmcore2core.containers.base import ContainerDoc
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.segmented import PAGE_SIZE, PHYS_BITS, SegmentedContainer, segment_table
from vmcore2core.containers.x86_cpus import CPUS_MAX, cpu_notes
from vmcore2core.elf.notes import Note
from vmcore2core.errors import FormatError, UsageError
from vmcore2core.formats import vmware as fmt
from vmcore2core.overrides import override
from vmcore2core.printable import text

GROUPS_MAX = 1 << 10
TAGS_MAX = 1 << 17
"""Most tags of a group; a CPU has a few hundred."""
REGIONS_MAX = 1 << 10
VALUE_MAX = 256
"""Most bytes of a block that is read; those of registers are smaller."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One value: name, indices, offset, size, whether it is a block, and whether that is compressed."""

    name: str
    indices: tuple[int, ...]
    at: int
    size: int
    block: bool
    compressed: bool


class _Checkpoint:
    """A .vmss or .vmsn: its groups."""

    def __init__(self, file: DumpFile) -> None:
        self.file = file
        raw = file.read_exactly(0, fmt.cptdumpheader.itemsize, "cptdumpheader")
        header = np.frombuffer(raw, fmt.cptdumpheader)[0]
        magic, numgroups = int(header["id"]), int(header["numgroups"])
        if magic not in fmt.CPTDUMP_MAGIC_NUMBERS:
            known = ", ".join(f"{number:#x}" for number in fmt.CPTDUMP_MAGIC_NUMBERS)
            raise FormatError(f"cptdumpheader with id {magic:#x}", 0, f"{known}: 32-bit checkpoints are not read")
        if not 1 <= numgroups <= GROUPS_MAX:
            raise FormatError(f"cptdumpheader with numgroups {numgroups}", 8, f"1 to {GROUPS_MAX}")
        table = file.read_exactly(len(raw), numgroups * fmt.cptgroupdesc.itemsize, "the table of groups")
        self._groups = {g["name"].decode("latin-1"): int(g["position"]) for g in np.frombuffer(table, fmt.cptgroupdesc)}

    def tags(self, group: str) -> Iterator[Tag]:
        """Yield the tags of a group; none if there is no such group.

        Raises:
            FormatError: a tag is cut off, or the group does not end.
        """
        at = self._groups.get(group)
        if at is None:
            return
        for _ in range(TAGS_MAX):
            tag = int.from_bytes(self.file.read_exactly(at, fmt.TAG_SIZE, f"a tag of group {group}"), "little")
            if not tag:
                return
            found = self._tag(tag, at + fmt.TAG_SIZE, group)
            yield found
            at = found.at + found.size
        raise FormatError(f"group {group} of more than {TAGS_MAX} tags", at, "a tag of 0 that ends it")

    def _tag(self, tag: int, at: int, group: str) -> Tag:
        what = f"a tag of group {group}"
        length = tag >> fmt.TAG_NAMELEN_OFFSET
        count, size = tag >> fmt.TAG_NINDX_OFFSET & fmt.TAG_NINDX_MASK, tag & fmt.TAG_VALSIZE_MASK
        raw = self.file.read_exactly(at, length + 4 * count, what)
        at += len(raw)
        name = raw[:length].decode("latin-1")
        indices = tuple(np.frombuffer(raw[length:], "<u4").tolist())
        compressed = size == fmt.TAG_ISBLOCK_COMPRESSED
        block = compressed or size == fmt.TAG_ISBLOCK
        if block:
            header = np.frombuffer(self.file.read_exactly(at, fmt.cptblock.itemsize, what), fmt.cptblock)[0]
            size = int(header["nbytes"])
            if size >= 1 << PHYS_BITS:
                raise FormatError(f"block {text(raw[:length])} of {size:#x} bytes", at, f"less than 2^{PHYS_BITS}")
            at += fmt.cptblock.itemsize + int(header["padsize"])
        return Tag(name, indices, at, size, block, compressed)

    def value(self, tag: Tag) -> bytes:
        """Return a tag's value.

        Raises:
            FormatError: it is cut off, or too large.
        """
        if tag.size > VALUE_MAX:
            name = text(tag.name.encode("latin-1"))
            raise FormatError(f"{name} of {tag.size:#x} bytes", tag.at, f"at most {VALUE_MAX}")
        return self.file.read_exactly(tag.at, tag.size, tag.name)

    def number(self, tag: Tag) -> int:
        """Return a tag's value as a number."""
        return int.from_bytes(self.value(tag), "little")


class VmwareContainer(SegmentedContainer):
    """A suspended machine of VMware, or a snapshot."""

    DOC = ContainerDoc(
        name="VMware",
        summary="VMware's .vmss and .vmsn with memory inside, or given together with the .vmem, in any order",
        references=("crash vmware_vmss.c, of VMware's own authors", "volatility3 layers/vmware.py"),
        limitations=(
            "built from the description, without a real file",
            "no compressed memory, no 32-bit checkpoints",
            "no registers of 32-bit kernels; the user's gs_base of a CPU in the kernel is the one last saved",
        ),
    )

    def __init__(self, files: Sequence[DumpFile]) -> None:
        state, memory = _sort(files)
        self._files = tuple(files)
        self.paths = tuple(file.path for file in files)
        self.e_machine = None
        self.byte_order = None
        self.warnings = [file.cut_off for file in files if file.cut_off is not None]
        checkpoint = _Checkpoint(state)
        self._file, offset, size, regions = _memory(checkpoint, state, memory)
        segments = regions or [(0, 0, size)]
        for paddr, at, length in segments:
            if not length or at + length > size:
                what = f"a region of {length:#x} bytes at {paddr:#x}, from {at:#x} of memory on"
                raise FormatError(what, offset, f"one inside memory's {size:#x} bytes")
        self._set_segments(segment_table((paddr, offset + at, length) for paddr, at, length in segments), "its regions")
        try:
            self.notes: tuple[Note, ...] = cpu_notes(_cpus(checkpoint))
        except FormatError as error:
            self.notes = ()
            self.warnings.append(f"{state.path}: the registers of its CPUs cannot be read: {error}")

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with one of the magic numbers of a checkpoint."""
        return _is_checkpoint(f.read(4))

    @override
    def close(self) -> None:
        """Release the files."""
        for file in self._files:
            file.close()


def _is_checkpoint(head: bytes) -> bool:
    magic = int.from_bytes(head, "little")
    return magic in (*fmt.CPTDUMP_MAGIC_NUMBERS, fmt.CPTDUMP_OLD_MAGIC_NUMBER)


def _sort(files: Sequence[DumpFile]) -> tuple[DumpFile, DumpFile | None]:
    """Return the checkpoint, and the file with memory if one was given."""
    states = [file for file in files if _is_checkpoint(file.read(0, 4))]
    others = [file for file in files if file not in states]
    if len(states) != 1 or len(others) > 1:
        raise UsageError(
            f"a suspended machine of VMware is a .vmss or .vmsn, and a .vmem at most: {len(files)} files were given"
        )
    return states[0], others[0] if others else None


def _memory(
    checkpoint: _Checkpoint, state: DumpFile, memory: DumpFile | None
) -> tuple[DumpFile, int, int, list[tuple[int, int, int]]]:
    """Return the file with memory, its offset and size there, and (physical address, offset, bytes) of its regions.

    Raises:
        FormatError: there is no memory, or it is compressed, or the file does not tell its regions.
        UsageError: a .vmem was given, but the checkpoint has memory inside.
    """
    inside: Tag | None = None
    count = 0
    told: dict[str, dict[int, int]] = {name: {} for name in fmt.REGION}
    for tag in checkpoint.tags(fmt.MEMORY_GROUP):
        if tag.name == fmt.MEMORY and tag.block:
            inside = tag
        elif tag.name == fmt.REGIONS_COUNT:
            count = checkpoint.number(tag)
        elif tag.name in told and len(tag.indices) == 1:
            told[tag.name][tag.indices[0]] = checkpoint.number(tag)
        if tag.at + tag.size > state.size:
            break  # if memory is cut off, the part that is there is read
    if count > REGIONS_MAX:
        raise FormatError(f"regionsCount {count}", 0, f"at most {REGIONS_MAX}")
    if any(i not in told[name] for name in fmt.REGION for i in range(count)):
        raise FormatError(f"{fmt.MEMORY_GROUP} without {', '.join(fmt.REGION)} of each of {count} regions", 0, "all")
    regions = [tuple(told[name][i] * PAGE_SIZE for name in fmt.REGION) for i in range(count)]
    if any(number >= 1 << PHYS_BITS for region in regions for number in region):
        raise FormatError("a region of memory", 0, f"addresses below 2^{PHYS_BITS}")
    found = [(paddr, at, size) for paddr, at, size in regions]
    if inside is None:
        if memory is None:
            raise FormatError(f"no block {fmt.MEMORY} in {state.path}", 0, "one, or the .vmem given with it")
        return memory, 0, memory.size, found
    if memory is not None:
        raise UsageError(f"{state.path} has the machine's memory: {memory.path} is not needed")
    if inside.compressed:
        raise FormatError("compressed memory", inside.at, "memory as it is: crash has no description of another")
    return state, inside.at, inside.size, found


def _cpus(checkpoint: _Checkpoint) -> list[dict[str, int]]:
    """Return each CPU's registers, as far as the file tells them; none if a CPU is not in 64-bit mode."""
    cpus: list[dict[str, int]] = []
    for tag in checkpoint.tags(fmt.CPU_GROUP):
        if tag.name == fmt.NUM_VCPUS and not cpus:
            count = checkpoint.number(tag)
            if count > CPUS_MAX:
                raise FormatError(f"{fmt.NUM_VCPUS} {count}", tag.at, f"at most {CPUS_MAX}")
            cpus = [{} for _ in range(count)]
        elif tag.indices and tag.indices[0] < len(cpus) and tag.size <= VALUE_MAX:
            _take(checkpoint, tag, cpus[tag.indices[0]])
    # Linux has its interrupt table above 4 GiB only in 64-bit mode.
    return cpus if all(cpu.get("idtr", 0) >> 32 for cpu in cpus) else []


def _take(checkpoint: _Checkpoint, tag: Tag, cpu: dict[str, int]) -> None:
    """Store a tag's value as a register of its CPU, under the name that ``user_regs_struct`` has for it."""
    which = tag.indices[1] if len(tag.indices) > 1 else None
    if tag.block:
        _take_block(checkpoint, tag, cpu)
    elif tag.name in (*(fmt.gpregs.names or ()), "rip"):
        cpu[tag.name] = checkpoint.number(tag)
    elif tag.name in fmt.EFLAGS:
        cpu["eflags"] = cpu.get("eflags", 0) | checkpoint.number(tag)
    elif tag.name == fmt.CR64 and which is not None and which < fmt.CR64_NR:
        cpu[f"cr{which}"] = checkpoint.number(tag)
    elif tag.name == fmt.IDTR and which in (1, 2):
        cpu["idtr"] = cpu.get("idtr", 0) | (checkpoint.number(tag) & 0xFFFF_FFFF) << 32 * (which - 1)
    elif tag.name == fmt.SELECTOR and which is not None and which < len(fmt.SEGMENTS):
        cpu[fmt.SEGMENTS[which]] = checkpoint.number(tag) & 0xFFFF
    elif tag.name == fmt.SEGMENT_BASE and which is not None and which < len(fmt.SEGMENTS):
        cpu[f"{fmt.SEGMENTS[which]}_base"] = checkpoint.number(tag)


def _take_block(checkpoint: _Checkpoint, tag: Tag, cpu: dict[str, int]) -> None:
    if tag.name == fmt.GPREGS and tag.size == fmt.gpregs.itemsize:
        record = np.frombuffer(checkpoint.value(tag), fmt.gpregs)[0]
        cpu |= {name: int(record[name]) for name in fmt.gpregs.names or ()}
    elif tag.name == fmt.CR64 and tag.size == 8 * fmt.CR64_NR:
        cpu |= {f"cr{i}": n for i, n in enumerate(np.frombuffer(checkpoint.value(tag), "<u8").tolist())}
    elif tag.name == fmt.IDTR and tag.size == fmt.IDTR_BASE.stop:
        cpu["idtr"] = int.from_bytes(checkpoint.value(tag)[fmt.IDTR_BASE], "little")


CONTAINER = VmwareContainer
