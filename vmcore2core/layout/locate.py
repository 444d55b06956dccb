"""The place of the kernel image in memory, if VMCOREINFO was cut off before the architecture's keys.

The keys of the task and VMA export overflow the note's 4096 bytes, and the architecture's keys come last
(arch_crash_save_vmcoreinfo()): the place of the image, and the number of page-table levels. The image is found by the
kernel's own name, ``init_uts_ns``. A find is trusted only if the kernel's page table agrees.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from vmcore2core.arch.base import Arch
from vmcore2core.errors import MemoryFault
from vmcore2core.layout.uts import NAME_OFFSETS, UTS_FIELD
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.memory.pagetable import translate
from vmcore2core.memory.physical import PhysicalMemory

log = logging.getLogger(__name__)

ALIGN = 2 << 20  # the image moves by whole steps of this (CONFIG_PHYSICAL_ALIGN), so the low bits stay
SYSNAME = b"Linux\0"
RELEASE_FIELD = 2 * UTS_FIELD


def locate_image(physical: PhysicalMemory, arch: Arch, info: VmcoreInfo) -> VmcoreInfo:
    """Return the text with the architecture's missing keys, if memory proves them; else unchanged."""
    symbol, release = info.symbol("init_uts_ns"), info.osrelease
    if symbol is None or release is None:
        return info
    offset = info.offset("uts_namespace", "name")
    names = [symbol + at for at in ((offset,) if offset is not None else NAME_OFFSETS)]
    for name, paddr in ((at, paddr) for at in names for paddr in _places(physical, at, release.encode())):
        whole = proved(physical, arch, info, name, paddr)
        if whole is not None:
            return whole
    return info


def proved(physical: PhysicalMemory, arch: Arch, info: VmcoreInfo, address: int, paddr: int) -> VmcoreInfo | None:
    """Return the text with those keys that make the kernel's page table map ``address`` to ``paddr``, or None.

    Raises:
        LayoutError: the text lacks more than the architecture's own keys.
    """
    for keys in arch.paging.located_keys(info, address, paddr):
        whole = VmcoreInfo({**info.values, **keys}, info.truncated_line, info.ignored)
        kernel_map = arch.paging.kernel_map(whole)
        try:
            base, size = translate(physical, kernel_map.spec, kernel_map.root, address)
        except MemoryFault:
            continue
        if base + (address & (size - 1)) == paddr:
            told = ", ".join(f"{k}={v}" for k, v in keys.items())
            log.info("VMCOREINFO does not tell where the kernel image is; found in memory: %s", told)
            return whole
    return None


def _places(physical: PhysicalMemory, address: int, release: bytes) -> Iterator[int]:
    """Yield the physical addresses at which ``struct new_utsname`` of this release may be."""
    page_size = physical.page_size
    for memory_range in physical.container.dumped_ranges():
        first = memory_range.start + (address - memory_range.start) % ALIGN
        for start in range(first, memory_range.end, ALIGN * 512):
            paddrs = np.arange(start, min(start + ALIGN * 512, memory_range.end), ALIGN, dtype=np.uint64)
            pages, _ = physical.read_blocks(paddrs & ~np.uint64(page_size - 1), page_size)
            for paddr, page in zip(paddrs.tolist(), pages, strict=True):
                text = page[paddr % page_size :][: len(SYSNAME)].tobytes()  # shorter at the end of a page
                if SYSNAME.startswith(text) and _release(physical, paddr) == release:
                    yield paddr


def _release(physical: PhysicalMemory, paddr: int) -> bytes | None:
    try:
        return physical.read(paddr + RELEASE_FIELD, UTS_FIELD).split(b"\0", 1)[0]
    except MemoryFault:
        return None
