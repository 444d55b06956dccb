"""VMCOREINFO made from memory, for a dump without the text: CONFIG_VMCORE_INFO is off, or its page is missing.

The kernel's own name (``init_uts_ns``) tells the machine, and roughly where the image is. kallsyms, found near it by
its form, has the symbols. The virtual address of the image comes from kallsyms, too; if its addresses are relative to
its own place, it comes from pointers in ``init_task`` to known symbols. The result is trusted only if the kernel's page
table maps the name to the place where it was found.

References: include/linux/utsname.h, init/init_task.c, kernel/vmcore_info.c (Linux 4.18 to 7.2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr
from vmcore2core.arch import all_archs
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import LinearMapping
from vmcore2core.containers.cache import Progress
from vmcore2core.elf.build_id import build_id_in
from vmcore2core.errors import LayoutError, LayoutUnknown, MemoryFault
from vmcore2core.layout.kallsyms import FORMS, WITNESSES, Form, KallsymsSource, KallsymsTables
from vmcore2core.layout.kallsyms_scan import find_kallsyms
from vmcore2core.layout.locate import SYSNAME, proved
from vmcore2core.layout.uts import NAME_OFFSETS, read_utsname
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.physical import PhysicalMemory

log = logging.getLogger(__name__)

NAMES_MAX = 256
"""Most copies of the kernel's name that are tried: processes have some, too."""
WORDS_MAX = 1 << 18
"""Most places with the word "Linux" alone: programs have it in strings, too."""
BEFORE, BEHIND = 160 << 20, 32 << 20
"""Bytes around the name in which the image's read-only data is searched for."""
PAGE_SIZES = (4096, 65536, 16384)
EXPORTED = (*WITNESSES, "init_top_pgt", "lowcore_ptr")
POINTED_TO = ("init_cred", "init_fs", "init_files", "init_nsproxy", "init_signals", "init_sighand", "init_mm")
"""Symbols that init_task has pointers to."""
POINTERS_MIN = 3
INIT_TASK_MAX = 16 << 10
NOTES_SIZE_MAX = 4096

SECTION_HAS_MEM = np.uint64(0x3)
"""SECTION_MARKED_PRESENT | SECTION_HAS_MEM_MAP."""
SECTION_FLAGS = np.uint64(0x3F)
_RELEASE = re.compile(r"\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class Name:
    """A ``struct new_utsname`` in memory."""

    paddr: int
    release: str
    arch: Arch


@dataclasses.dataclass(frozen=True)
class Window:
    """Physical memory as an image to search; virtual addresses equal physical ones."""

    physical: PhysicalMemory
    searched: tuple[LinearMapping, ...]

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory."""
        return self.physical.read(address, size)


def recovered(physical: PhysicalMemory, update: Progress | None = None) -> Iterator[tuple[Arch, VmcoreInfo, int]]:
    """Yield (architecture, VMCOREINFO, physical address of kallsyms_names); the page table proves each.

    Args:
        physical: memory of the dump.
        update: called with (bytes searched, bytes in all).
    """
    names = list(_names(physical, update))
    for arch in dict.fromkeys(name.arch for name in names):
        mine = [name for name in names if name.arch is arch]
        window = Window(physical, tuple(_around(name.paddr for name in mine)))
        for tables in find_kallsyms(window, arch.byte_order, arch.pointer_size):
            for info in _proven(window, arch, tables, mine):
                yield arch, info, tables.names


def _names(physical: PhysicalMemory, update: Progress | None) -> Iterator[Name]:
    """Yield possible names of the kernel, at most ``NAMES_MAX``, for supported machines."""
    archs: dict[str, list[Arch]] = {}
    for arch in all_archs():
        for machine in (arch.name, *arch.machine_names):
            archs.setdefault(machine, []).append(arch)
    done, total = 0, sum(memory_range.size for memory_range in physical.container.dumped_ranges())
    count = looked_at = 0
    for base, pages in physical.scan():
        block = pages.tobytes()
        at = block.find(SYSNAME)
        while at >= 0 and count < NAMES_MAX and looked_at < WORDS_MAX:
            looked_at += 1
            with contextlib.suppress(MemoryFault):
                uts = read_utsname(physical, base + at, 0)
                if uts.machine in archs and _RELEASE.match(uts.release):
                    count += 1
                    yield from (Name(base + at, uts.release, arch) for arch in archs[uts.machine])
            at = block.find(SYSNAME, at + 1)
        done += pages.nbytes
        if update is not None:
            update(done, total)


def _around(paddrs: Iterable[int]) -> Iterator[LinearMapping]:
    """Yield the ranges to search, each once."""
    end = 0
    for paddr in sorted(paddrs):
        start = max(end, (paddr - BEFORE) & -(1 << 20), 0)
        end = max(end, (paddr + BEHIND) & -(1 << 20))
        if start < end:
            yield LinearMapping(AddressRange(start, end), PhysAddr(start))


def _proven(window: Window, arch: Arch, tables: KallsymsTables, names: list[Name]) -> Iterator[VmcoreInfo]:
    """Yield VMCOREINFO by these tables, in each form that they may have, if the page table proves a name."""
    for form in FORMS:
        if (form == "place-relative") != (tables.relative_base is None):
            continue
        try:
            symbols = KallsymsSource(window, tables, arch.byte_order, {}, "kallsyms", word=arch.pointer_size, form=form)
            uts_ns = symbols.symbol("init_uts_ns")
        except (LayoutError, MemoryFault) as error:
            log.debug("what looks like kallsyms at physical %#x is not: %s", tables.names, error)
            continue
        for name in names if uts_ns is not None else ():
            assert uts_ns is not None  # noqa: S101 - for mypy
            for offset in NAME_OFFSETS:
                shift = _shift(window, arch, symbols, form, name.paddr - offset)
                if shift is not None:
                    told = _info(symbols, tables, name, offset, shift)
                    info = _proved(window.physical, arch, told, shift[0] + uts_ns + offset, name.paddr)
                    if info is not None:
                        memory = KernelMemory(window.physical, arch.paging.kernel_map(info))
                        yield VmcoreInfo({**info.values, **_more(memory, arch, symbols, shift[0])})


Shift = tuple[int, int]
"""What to add to an address of kallsyms, and to a physical address, to get the virtual address."""


def _shift(window: Window, arch: Arch, symbols: KallsymsSource, form: Form, uts_ns: int) -> Shift | None:
    """Return how to move addresses if ``init_uts_ns`` is at physical ``uts_ns``; None if it cannot be there."""
    address = symbols.symbol("init_uts_ns") or 0
    if form != "place-relative":
        return None if (address - uts_ns) % PAGE_SIZES[0] else (0, address - uts_ns)
    if address != uts_ns:
        return None
    moved = _pointers_shift(window, arch, symbols)
    return None if moved is None else (moved, moved)


def _pointers_shift(window: Window, arch: Arch, symbols: KallsymsSource) -> int | None:
    """Return how far the pointers in ``init_task`` are from where their targets are in physical memory."""
    task, word = symbols.symbol("init_task"), arch.pointer_size
    if task is None:
        return None
    raw = b""
    with contextlib.suppress(MemoryFault):
        while len(raw) < INIT_TASK_MAX:
            raw += window.read(task + len(raw), 512)
    words = np.frombuffer(raw, f"{'<' if arch.byte_order == 'little' else '>'}u{word}").astype(np.uint64)
    votes: Counter[int] = Counter()
    for name in POINTED_TO:
        target = symbols.symbol(name)
        if target is not None:
            distances = words[words != 0] - np.uint64(target)
            votes.update(set(distances[distances % np.uint64(PAGE_SIZES[0]) == 0].tolist()))
    best = votes.most_common(1)
    return best[0][0] if best and best[0][1] >= POINTERS_MIN else None


def _info(symbols: KallsymsSource, tables: KallsymsTables, name: Name, offset: int, shift: Shift) -> VmcoreInfo:
    """Return VMCOREINFO without the keys for the image's place."""
    mask = (1 << 64) - 1
    values = {"OSRELEASE": name.release, "OFFSET(uts_namespace.name)": str(offset)}
    for symbol in EXPORTED:
        address = symbols.symbol(symbol)
        if address is not None:
            values[f"SYMBOL({symbol})"] = f"{address + shift[0] & mask:x}"
    for table, place in tables._asdict().items():
        if place is not None:
            values[f"SYMBOL(kallsyms_{table})"] = f"{place + shift[1] & mask:x}"
    return VmcoreInfo(values)


def _proved(physical: PhysicalMemory, arch: Arch, info: VmcoreInfo, address: int, paddr: int) -> VmcoreInfo | None:
    """Return the text with page size and the architecture's keys, if the page table maps the name to its place."""
    for page_size in PAGE_SIZES:
        sized = VmcoreInfo({**info.values, "PAGESIZE": str(page_size)})
        with contextlib.suppress(LayoutError):
            whole = proved(physical, arch, sized, address & (1 << 8 * arch.pointer_size) - 1, paddr)
            if whole is not None:
                return whole
    return None


def _more(memory: KernelMemory, arch: Arch, symbols: KallsymsSource, shift: int) -> dict[str, str]:
    """Return BUILD-ID and SYMBOL(vmemmap), if they can be read."""
    told: dict[str, str] = {}

    def at(name: str) -> int:
        address = symbols.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", (symbols.name,))
        return address + shift & (1 << 8 * arch.pointer_size) - 1

    with contextlib.suppress(LayoutError, MemoryFault):
        start = at("__start_notes")
        size = min(at("__stop_notes") - start, NOTES_SIZE_MAX)
        found = build_id_in(memory.read(start, max(size, 0)), arch.byte_order)
        told |= {} if found is None else {"BUILD-ID": found.hex()}
    with contextlib.suppress(LayoutError, MemoryFault):
        vmemmap = _vmemmap(memory, arch, at("mem_section"))
        told |= {} if vmemmap is None else {"SYMBOL(vmemmap)": f"{vmemmap:x}"}
    return told


def _vmemmap(memory: KernelMemory, arch: Arch, mem_section: int) -> int | None:
    """Return where ``struct page`` of physical page 0 is or would be, in a kernel with CONFIG_SPARSEMEM_EXTREME.

    Each section with memory tells, in ``mem_section.section_mem_map`` (mm/sparse.c: sparse_encode_mem_map()).

    Args:
        mem_section: address of ``struct mem_section **``.
    """
    page = memory.kernel_map.spec.page_size
    code = f"{'<' if arch.byte_order == 'little' else '>'}u{arch.pointer_size}"
    (roots,) = np.frombuffer(memory.read(mem_section, arch.pointer_size), code).tolist()
    for root in np.frombuffer(memory.read(roots, 512), code).tolist() if roots else ():
        # Each has a page of sections; the allocator may put them elsewhere than at a page's border.
        words = np.frombuffer(memory.read(root, page), code).astype(np.uint64) if root else np.zeros(0, np.uint64)
        there = words[words & SECTION_HAS_MEM == SECTION_HAS_MEM]
        if len(there):
            return int(there[0] & ~SECTION_FLAGS)
    return None
