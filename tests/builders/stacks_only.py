"""A dump as ``makedumpfile -d 31`` writes it, with or without what its userstack and elfheader extensions keep.

makedumpfile's -d 31 leaves out every page of a process and of the page cache. Of each thread, userstack keeps the pages
[sp, sp + 128 pages) of its stack's mapping; elfheader keeps the first page of each mapped file that somebody may
execute and that begins as an ELF file (``headers`` says of which paths). Which page frames these are, the dump's own
page tables tell; the file itself is written here, with struct alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fixtures.lab.cut_elf import cut
from tests.e2e.guests import bundled
from vmcore2core.addresses import UserAddr
from vmcore2core.arch.spec import UnwindSpec
from vmcore2core.memory.region import Region
from vmcore2core.process.snapshot import Captured
from vmcore2core.session import OpenOptions, Session
from vmcore2core.unwind.threads import spec_of

STACK_PAGES = 128
INDICES = 1 << 20  # pages of a file that are looked for in the page cache
DUMP_LEVEL = 31

Executable = Callable[[bytes], bool]


def stacks_only(
    dump: Path,
    target: Path,
    *,
    stacks: bool = True,
    headers: Executable = lambda _path: True,
    vmcoreinfo: Path | None = None,
) -> Path:
    """Write a dump of the same format without user pages, and return ``target``.

    Args:
        dump: kdump-compressed, or an ELF file.
        target: the new file.
        stacks: keep stacks and ELF headers; without, it is a plain ``-d 31``.
        headers: tells of a path whether the file is executable.
        vmcoreinfo: a layout that the dump needs.
    """
    gone, kept = _Pages(), _Pages()
    with Session([dump], OpenOptions(vmcoreinfo=vmcoreinfo)) as session:
        for leader in session.processes.with_mm():
            captured = session.processes.capture(leader, with_absent=False)
            gone.add_all(captured)
            if stacks:
                kept.add_stacks(captured, spec_of(captured.snapshot, session.kernel.arch))
                kept.add_headers(captured, headers)
        size = session.container.page_size
    paddrs = gone.paddrs - kept.paddrs
    if dump.read_bytes()[:4] == b"\x7fELF":
        cut(dump, target, [(paddr, paddr + size) for paddr in paddrs])
    else:
        target.write_bytes(without(dump.read_bytes(), {paddr // size for paddr in paddrs}))
    return target


def bundled_stacks_only(name: str, folder: Path, *, stacks: bool = True) -> Path:
    """Return a bundled dump without its processes' pages but stacks."""
    folder.mkdir(parents=True, exist_ok=True)
    return stacks_only(bundled(name, folder), folder / "vmcore.stacks", stacks=stacks)


@dataclass
class _Pages:
    """Physical addresses of pages."""

    paddrs: set[int] = field(default_factory=set)

    def add(self, captured: Captured, region: Region) -> None:
        for pages in captured.memory.known(region):
            self.paddrs.update(pages.paddrs().tolist())

    def add_all(self, captured: Captured) -> None:
        """Add what a process has mapped in, and what the page cache has of its files."""
        special = {int(vma.start) for vma in captured.snapshot.vmas if vma.name in ("[vdso]", "[vvar]", "[vsyscall]")}
        for region in captured.memory.regions:
            if int(region.start) in special:
                continue  # pages of the kernel image
            self.add(captured, region)
            if region.backing is not None:
                self.paddrs.update(region.backing.lookup(0, INDICES).paddrs().tolist())

    def add_stacks(self, captured: Captured, spec: UnwindSpec | None) -> None:
        if spec is None:
            return
        size = captured.snapshot.page_size
        for _, answer in captured.answers:
            if isinstance(answer, str):
                continue
            sp = answer.regs[spec.registers[spec.stack_pointer]] & -size
            for region in captured.memory.regions:
                if region.start <= sp < region.end:
                    self.add(captured, slice_of(region, sp, min(region.end, sp + STACK_PAGES * size), size))

    def add_headers(self, captured: Captured, wanted: Executable) -> None:
        regions = {region.start: region for region in captured.memory.regions}
        size = captured.snapshot.page_size
        for vma in captured.snapshot.vmas:
            whole = vma.path is not None and vma.pgoff == 0 and wanted(vma.path)
            if whole and captured.memory.read(vma.start, 4) == b"\x7fELF":
                self.add(captured, slice_of(regions[vma.start], vma.start, vma.start + size, size))


def slice_of(region: Region, start: int, end: int, page_size: int) -> Region:
    """Return ``[start, end)`` of a region."""
    pgoff = region.pgoff + (start - region.start) // page_size
    return region._replace(start=UserAddr(start), end=UserAddr(end), pgoff=pgoff)


def without(data: bytes, pfns: set[int]) -> bytes:
    """Return a kdump-compressed file of 64 bits, little-endian, in which these page frames are left out."""
    assert data[:8] == b"KDUMP   "
    at = (12 + 6 * 65 + 7 & ~7) + 16
    _, block, sub, bitmap, _ = struct.unpack_from("<IiiII", data, at)
    start, half = (1 + sub) * block, bitmap // 2 * block
    table = start + bitmap * block
    bits = np.unpackbits(np.frombuffer(data, np.uint8, half, start + half), bitorder="little")
    order = np.flatnonzero(bits)
    keep = ~np.isin(order, np.fromiter(pfns, np.int64, len(pfns)))
    descs = np.frombuffer(data, "V24", len(order), table)[keep].tobytes()
    bits[order[~keep]] = 0
    out = bytearray(data)
    out[start + half : start + 2 * half] = np.packbits(bits, bitorder="little").tobytes()
    out[table : table + 24 * len(order)] = descs.ljust(24 * len(order), b"\0")
    struct.pack_into("<i", out, block + 8, DUMP_LEVEL)  # kdump_sub_header.dump_level
    return bytes(out)
