"""VMCOREINFO, found and proved: from the dump's note, the user, a text in memory, or the kernel image itself.

It is trusted only after the kernel that is read with it has its release in ``init_uts_ns``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from vmcore2core.addresses import AddressRange, U8Array
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.base import Arch
from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.cache import Progress, ProgressBar, progress_bar
from vmcore2core.errors import (
    DumpError,
    LayoutError,
    LayoutInvalid,
    LayoutUnknown,
    MemoryFault,
    PageExcluded,
    PageMissing,
    ServerFailed,
    SuppliedInvalid,
    Vmcore2coreError,
)
from vmcore2core.layout.locate import locate_image
from vmcore2core.layout.uts import UtsName, read_utsname
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, looks_like_vmcoreinfo, merged, parse_vmcoreinfo
from vmcore2core.layout.which_machine import has_image_keys, machine_of
from vmcore2core.layout.without_text import recovered
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.pagetable import translate
from vmcore2core.memory.physical import PhysicalMemory

log = logging.getLogger(__name__)

VMCOREINFO_SIZE_MAX = 64 << 10
PAGES_AT_ONCE = 1 << 10
TEXTS_MAX = 64
"""Most texts in memory that are tried for a second kernel."""
MAGIC = np.frombuffer(b"OSRELEASE=", np.uint8)
NOTE_HEADER = 24  # elf64_note and "VMCOREINFO\0" padded
PER_KERNEL = ("BUILD-ID", "KERNELOFFSET", "NUMBER(phys_base)", "SYMBOL(_stext)")
"""Keys that tell two kernels of one memory apart."""


class Opened(NamedTuple):
    """The kernel's memory, and the VMCOREINFO that opened it.

    Attributes:
        own: the keys that the dump's memory is read with: VMCOREINFO's, overridden by the user's.
        origin: where VMCOREINFO was found, as words.
    """

    arch: Arch
    memory: KernelMemory
    utsname: UtsName
    vmcoreinfo: VmcoreInfo
    own: VmcoreInfo
    origin: str

    @property
    def is_cut(self) -> bool:
        """Whether VMCOREINFO is truncated; then another text may tell more."""
        return self.vmcoreinfo.truncated_line is not None or not has_image_keys(self.vmcoreinfo, self.arch)

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences on checks that were not possible."""
        if self.utsname.sysname:
            return ()
        return (
            "the page of init_uts_ns is not in the dump: only the page table tells that VMCOREINFO is this kernel's",
        )


def ways(
    container: DumpContainer, supplied: VmcoreInfo | int | None, progress: ProgressBar | None
) -> Iterator[Callable[[], Opened]]:
    """Yield the ways to open the kernel's memory, the most trusted one first.

    Each raises DumpError or LayoutError if it does not lead to a kernel.

    Args:
        container: the dump.
        supplied: VMCOREINFO text from the user, or the physical address of the text in memory to take.
        progress: draws a bar while memory is searched.
    """
    physical, text = PhysicalMemory(container), container.vmcoreinfo
    if isinstance(supplied, int):
        yield lambda: _by_text(container, physical, _text_at(physical, supplied), None, _origin(supplied))
        return
    if text is not None:
        yield lambda: _by_note(container, physical, text, supplied)
    alone = [] if supplied is None else [lambda: _by_text(container, physical, supplied, None, "--vmcoreinfo")]
    if text is not None:
        yield from alone
    yield lambda: _with_supplied(_from_memory(container, physical, progress), supplied)
    if text is None:
        yield from alone


def _by_note(container: DumpContainer, physical: PhysicalMemory, text: bytes, supplied: VmcoreInfo | None) -> Opened:
    note, origin = parse_vmcoreinfo(text), "VMCOREINFO note of the dump"
    try:
        return _by_text(container, physical, note, supplied, origin)
    except LayoutInvalid as error:
        if supplied is None:
            raise
        try:
            _by_text(container, physical, note, None, origin)
        except ServerFailed:
            raise
        except (DumpError, LayoutError):
            raise error from None
        raise SuppliedInvalid(str(error)) from None


def _by_text(
    container: DumpContainer, physical: PhysicalMemory, info: VmcoreInfo, supplied: VmcoreInfo | None, origin: str
) -> Opened:
    own = info if supplied is None else merged(info, supplied)
    return Opened(*_kernel_memory(container, physical, own), info, own, origin)


def _with_supplied(found: tuple[Arch, KernelMemory, UtsName, VmcoreInfo, str], supplied: VmcoreInfo | None) -> Opened:
    arch, memory, utsname, info, origin = found
    return Opened(arch, memory, utsname, info, info if supplied is None else merged(info, supplied), origin)


def _origin(paddr: int) -> str:
    return f"VMCOREINFO text at physical {paddr:#x}"


def _text_at(physical: PhysicalMemory, paddr: int) -> VmcoreInfo:
    found = looks_like_vmcoreinfo(_readable(physical, paddr, VMCOREINFO_SIZE_MAX))
    if found is None:
        raise LayoutInvalid(f"no VMCOREINFO text is at physical {paddr:#x}, expected OSRELEASE= and more lines")
    return found


def other_texts(container: DumpContainer, within: AddressRange | None) -> Iterator[tuple[int, VmcoreInfo]]:
    """Yield the VMCOREINFO texts in memory that open a kernel, and their addresses.

    Args:
        container: the dump.
        within: physical addresses to search; None for all.
    """
    physical = PhysicalMemory(container)
    found = _candidates(physical) if within is None else _candidates_within(physical, within)
    for paddr in islice(found, TEXTS_MAX):
        try:
            info = _text_at(physical, paddr)
            _kernel_memory(container, physical, info)
        except ServerFailed:
            raise
        except Vmcore2coreError as error:
            log.debug("the text at physical %#x opens no kernel: %s", paddr, error)
            continue
        yield paddr, info


def _candidates_within(physical: PhysicalMemory, within: AddressRange) -> Iterator[int]:
    """Yield the same as ``_candidates``, for some memory."""
    page = physical.page_size
    for memory_range in physical.container.dumped_ranges():
        start, end = max(memory_range.start, within.start) & -page, min(memory_range.end, within.end)
        for at in range(start, end, page * PAGES_AT_ONCE):
            paddrs = np.arange(at, min(at + page * PAGES_AT_ONCE, end), page, dtype=np.uint64)
            yield from _text_begins(physical.read_blocks(paddrs, page)[0], at)


def _kernel_memory(
    container: DumpContainer, physical: PhysicalMemory, vmcoreinfo: VmcoreInfo
) -> tuple[Arch, KernelMemory, UtsName]:
    """Open kernel memory by VMCOREINFO, and check that the kernel has VMCOREINFO's release."""
    arch = machine_of(container, vmcoreinfo, physical)
    if vmcoreinfo.osrelease is None:
        raise LayoutUnknown("OSRELEASE", ("VMCOREINFO",))
    if not has_image_keys(vmcoreinfo, arch):
        vmcoreinfo = locate_image(physical, arch, vmcoreinfo)
    memory = KernelMemory(physical, arch.paging.kernel_map(vmcoreinfo))
    uts_ns = vmcoreinfo.symbol("init_uts_ns")
    if uts_ns is None:
        raise LayoutUnknown("SYMBOL(init_uts_ns)", ("VMCOREINFO",))
    try:
        utsname = read_utsname(memory, uts_ns, vmcoreinfo.offset("uts_namespace", "name"))
    except (PageExcluded, PageMissing) as fault:
        if _is_mapped_there(physical, memory, uts_ns):
            return arch, memory, UtsName("", "", vmcoreinfo.osrelease or "", "", "")
        raise LayoutInvalid(f"VMCOREINFO does not fit the dump's memory: init_uts_ns cannot be read: {fault}") from None
    except MemoryFault as fault:
        raise LayoutInvalid(f"VMCOREINFO does not fit the dump's memory: init_uts_ns cannot be read: {fault}") from None
    if utsname.sysname != "Linux" or utsname.release != vmcoreinfo.osrelease:
        raise LayoutInvalid(
            f"VMCOREINFO does not fit the dump's memory: init_uts_ns at {uts_ns:#x} says "
            f"{utsname.sysname!r} {utsname.release!r}, expected 'Linux' {vmcoreinfo.osrelease!r}"
        )
    return arch, memory, utsname


def _is_mapped_there(physical: PhysicalMemory, memory: KernelMemory, address: int) -> bool:
    """Tell whether the kernel's page table maps an address to the place that VMCOREINFO gives."""
    kernel_map = memory.kernel_map
    try:
        base, size = translate(physical, kernel_map.spec, kernel_map.root, address)
        return base + (address & (size - 1)) == memory.to_phys(address)
    except MemoryFault:
        return False


def _from_memory(
    container: DumpContainer, physical: PhysicalMemory, progress: ProgressBar | None
) -> tuple[Arch, KernelMemory, UtsName, VmcoreInfo, str]:
    """Find VMCOREINFO's text in memory, for dumps without the note; a stale copy does not fit, and is skipped."""
    rejected: list[str] = []
    with progress_bar(progress, "searching memory for VMCOREINFO") as update:
        for paddr in _candidates(physical, update):
            try:
                text = _readable(physical, paddr, VMCOREINFO_SIZE_MAX)
                vmcoreinfo = looks_like_vmcoreinfo(text)
                if vmcoreinfo is None:
                    continue
                arch, memory, utsname = _kernel_memory(container, physical, vmcoreinfo)
            except ServerFailed:
                raise
            except Vmcore2coreError as error:
                rejected.append(f"{paddr:#x}: {error}")
                continue
            return arch, memory, utsname, vmcoreinfo, _origin(paddr)
    for arch, memory, utsname, vmcoreinfo, origin in _from_image(container, physical, progress):
        return arch, memory, utsname, vmcoreinfo, origin
    if rejected:
        raise DumpError(
            f"{container.paths[0]}: no VMCOREINFO in the dump's memory fits it; found at {'; '.join(rejected[:3])}"
        )
    if container.e_machine is not None and arch_for_machine(container.e_machine) is None:
        machine_of(container, parse_vmcoreinfo(b""))
    raise DumpError(
        f"{container.paths[0]}: the dump has no VMCOREINFO note, and in its memory neither the text was found nor a "
        f"kernel's symbol table (kallsyms) that a page table proves"
    )


def _from_image(
    container: DumpContainer, physical: PhysicalMemory, progress: ProgressBar | None
) -> Iterator[tuple[Arch, KernelMemory, UtsName, VmcoreInfo, str]]:
    """Yield VMCOREINFO made from the kernel image, for dumps that have no such text anywhere."""
    with progress_bar(progress, "searching memory for the kernel image") as update:
        for _, vmcoreinfo, paddr in recovered(physical, update):
            try:
                arch, memory, utsname = _kernel_memory(container, physical, vmcoreinfo)
            except ServerFailed:
                raise
            except Vmcore2coreError as error:
                log.info("kallsyms at physical %#x does not fit the dump's memory: %s", paddr, error)
                continue
            yield arch, memory, utsname, vmcoreinfo, f"no VMCOREINFO; kallsyms at physical {paddr:#x}"


def _candidates(physical: PhysicalMemory, update: Progress | None = None) -> Iterator[int]:
    """Yield physical addresses where VMCOREINFO's text may begin, ascending.

    Its buffer is page-aligned (kernel/vmcore_info.c: crash_save_vmcoreinfo_init()), and so is the note, which has the
    text behind a header (update_vmcoreinfo_note()).
    """
    done, total = 0, sum(memory_range.size for memory_range in physical.container.dumped_ranges())
    for base, pages in physical.scan():
        yield from _text_begins(pages, base)
        done += pages.nbytes
        if update is not None:
            update(done, total)


def _text_begins(pages: U8Array, base: int) -> Iterator[int]:
    """Yield where a text may begin in the pages from physical ``base`` on, uint8[n, page_size]."""
    for offset in (0, NOTE_HEADER):
        hits = (pages[:, offset : offset + len(MAGIC)] == MAGIC).all(axis=1).nonzero()[0]
        yield from (base + int(row) * pages.shape[1] + offset for row in hits)


def _readable(physical: PhysicalMemory, paddr: int, limit: int) -> bytes:
    """Return memory from ``paddr`` on, up to a NUL, a page that cannot be read, or ``limit``."""
    text = b""
    while len(text) < limit:
        part = physical.page_size - ((paddr + len(text)) & (physical.page_size - 1))
        try:
            piece = physical.read(paddr + len(text), part)
        except MemoryFault:
            break
        head, nul, _ = piece.partition(b"\0")
        text += head
        if nul:
            break
    return text
