"""From a container to a readable kernel: VMCOREINFO -> page table -> kallsyms -> BTF.

The knot (symbols need memory, memory needs symbols) is untied by VMCOREINFO, which has the address of the kernel's
page table and of the kallsyms tables. Each step is checked by something that the next does not depend on: the kernel
must call itself by VMCOREINFO's release, and its first task "swapper".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vmcore2core.arch import all_archs, arch_for_machine, each_arch
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import EntryKind
from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.cache import Progress, ProgressBar, progress_bar
from vmcore2core.errors import DumpError, LayoutError, LayoutInvalid, LayoutUnknown, MemoryFault, Vmcore2coreError
from vmcore2core.interfaces import Member
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.btf import BtfSource, find_btf_candidates, validate_btf
from vmcore2core.layout.image import image_blocks
from vmcore2core.layout.kallsyms import KallsymsSource, known_symbols
from vmcore2core.layout.kallsyms_scan import find_kallsyms
from vmcore2core.layout.locate import locate_image
from vmcore2core.layout.remembered import LayoutMemory, RememberedSource
from vmcore2core.layout.required import check_required
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.sanity import check_init_task
from vmcore2core.layout.uts import UtsName, read_utsname
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, VmcoreInfoSource, looks_like_vmcoreinfo, merged, parse_vmcoreinfo
from vmcore2core.layout.without_text import recovered
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.physical import PhysicalMemory

log = logging.getLogger(__name__)

BTF_SIZE_MAX = 64 << 20
VMCOREINFO_SIZE_MAX = 64 << 10
MAGIC = np.frombuffer(b"OSRELEASE=", np.uint8)
NOTE_HEADER = 24  # elf64_note and "VMCOREINFO\0" padded

MoreSources = Callable[[VmcoreInfo, LayoutSource, LayoutSource], Sequence[LayoutSource]]
"""(VMCOREINFO, the dump's own symbols, its types) -> sources to be asked after these."""


@dataclass(frozen=True)
class Bootstrapped:
    """What the layers above start from; ``notices`` say which offsets did not fit, and which are taken instead."""

    arch: Arch
    vmcoreinfo: VmcoreInfo
    vmcoreinfo_origin: str
    memory: KernelMemory
    layout: KernelLayout
    utsname: UtsName
    notices: tuple[str, ...] = ()


class LazySource(LayoutSource):
    """A source that is opened when it is first asked; one that cannot be opened knows nothing, and says why.

    Attributes:
        problem: why it could not be opened, or None.
    """

    def __init__(self, name: str, factory: Callable[[], LayoutSource | None]) -> None:
        self.name = name
        self.problem: str | None = None
        self._factory = factory
        self._is_open = False
        self._source: LayoutSource | None = None

    def forget(self) -> None:
        """See ``LayoutSource.forget``: it is opened again when it is asked again."""
        if self._source is not None:
            self._source, self._is_open = None, False

    def _opened(self) -> LayoutSource:
        if not self._is_open:
            self._is_open = True
            try:
                self._source = self._factory()
                self.name = self._source.name if self._source is not None else self.name
            except Vmcore2coreError as error:
                self.problem = str(error)
                log.info("%s cannot be used: %s", self.name, error)
        return self._source or _NOTHING

    def member(self, struct: str, path: str) -> Member | None:
        """See ``LayoutSource.member``."""
        return self._opened().member(struct, path)

    def size(self, struct: str) -> int | None:
        """See ``LayoutSource.size``."""
        return self._opened().size(struct)

    def symbol(self, name: str) -> int | None:
        """See ``LayoutSource.symbol``."""
        return self._opened().symbol(name)

    def all_symbols(self, name: str) -> tuple[int, ...]:
        """See ``LayoutSource.all_symbols``."""
        return self._opened().all_symbols(name)

    def constant(self, name: str) -> int | None:
        """See ``LayoutSource.constant``."""
        return self._opened().constant(name)


_NOTHING = LayoutSource()


def bootstrap(
    container: DumpContainer,
    more_sources: MoreSources | None = None,
    supplied: VmcoreInfo | None = None,
    progress: ProgressBar | None = None,
    remembered: LayoutMemory | None = None,
) -> Bootstrapped:
    """Return the kernel of a dump, ready to be walked.

    Args:
        container: the dump.
        more_sources: gives what is asked after what the dump itself has (a vmlinux).
        supplied: VMCOREINFO text given by the user (``--vmcoreinfo``); its keys go before the dump's.
        progress: draws a bar while memory is searched.
        remembered: what earlier runs were told by this dump or these types.

    Raises:
        DumpError: no VMCOREINFO, or an architecture that is not supported.
        LayoutError: VMCOREINFO does not fit the memory.
    """
    physical = PhysicalMemory(container)
    text = container.vmcoreinfo
    if text is not None:
        vmcoreinfo, origin = parse_vmcoreinfo(text), "VMCOREINFO note of the dump"
        own = vmcoreinfo if supplied is None else merged(vmcoreinfo, supplied)
        arch, memory, utsname = _kernel_memory(container, physical, own)
    else:
        arch, memory, utsname, vmcoreinfo, origin = _from_memory(container, physical, progress)
        own = vmcoreinfo if supplied is None else merged(vmcoreinfo, supplied)
    log.info("%s: %s, Linux %s", origin, arch.name, utsname.release)
    btf: LayoutSource = LazySource("BTF in the dump", lambda: _btf_source(memory, layout, arch, remembered))
    kallsyms: LayoutSource = LazySource("kallsyms in the dump", lambda: _kallsyms_source(memory, vmcoreinfo, arch))
    if remembered is not None:
        btf = RememberedSource(btf, remembered.of_dump("btf"))
        kallsyms = RememberedSource(kallsyms, remembered.of_dump("kallsyms"))
    first = [VmcoreInfoSource(_only(own, supplied), "--vmcoreinfo")] if supplied is not None else []
    more = more_sources(vmcoreinfo, kallsyms, btf) if more_sources is not None else ()
    layout = KernelLayout([*first, VmcoreInfoSource(vmcoreinfo), kallsyms, btf, *more])
    check_required(layout, layout.source_names)
    memory.kernel_map = arch.whole_map(memory.kernel_map, memory, layout)
    notices = tuple(check_init_task(memory, layout, arch.pointer_size, arch.byte_order))
    return Bootstrapped(arch, vmcoreinfo, origin, memory, layout, utsname, notices)


def _only(merged_info: VmcoreInfo, supplied: VmcoreInfo) -> VmcoreInfo:
    """Return the supplied keys alone, with their symbols where this dump has them."""
    return VmcoreInfo({key: merged_info.values[key] for key in supplied.values})


def _kernel_memory(
    container: DumpContainer, physical: PhysicalMemory, vmcoreinfo: VmcoreInfo
) -> tuple[Arch, KernelMemory, UtsName]:
    """Open kernel memory by VMCOREINFO, and check that the kernel has the release that VMCOREINFO says."""
    arch = _arch(container, vmcoreinfo, physical)
    if vmcoreinfo.osrelease is None:
        raise LayoutUnknown("OSRELEASE", ("VMCOREINFO",))
    if not _has_image_keys(vmcoreinfo, arch):
        vmcoreinfo = locate_image(physical, arch, vmcoreinfo)
    memory = KernelMemory(physical, arch.kernel_map(vmcoreinfo))
    uts_ns = vmcoreinfo.symbol("init_uts_ns")
    if uts_ns is None:
        raise LayoutUnknown("SYMBOL(init_uts_ns)", ("VMCOREINFO",))
    try:
        utsname = read_utsname(memory, uts_ns, vmcoreinfo.offset("uts_namespace", "name"))
    except MemoryFault as fault:
        raise LayoutInvalid(f"VMCOREINFO does not fit the dump's memory: init_uts_ns cannot be read: {fault}") from None
    if utsname.sysname != "Linux" or utsname.release != vmcoreinfo.osrelease:
        raise LayoutInvalid(
            f"VMCOREINFO does not fit the dump's memory: init_uts_ns at {uts_ns:#x} says "
            f"{utsname.sysname!r} {utsname.release!r}, expected 'Linux' {vmcoreinfo.osrelease!r}"
        )
    return arch, memory, utsname


def _has_image_keys(vmcoreinfo: VmcoreInfo, arch: Arch) -> bool:
    return all(vmcoreinfo.string(key) is not None for key in arch.image_keys)


def _arch(container: DumpContainer, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory | None = None) -> Arch:
    """Return the architecture that VMCOREINFO, the file, or, where neither tells, the kernel's page table says."""
    arch = _claiming(container, vmcoreinfo, physical)
    if arch is None and container.e_machine is not None:
        arch = arch_for_machine(container.e_machine, container.byte_order)
    elif arch is None and physical is not None:
        arch = next((a for a in all_archs() if _is_proved(a, vmcoreinfo, physical)), None)
    if arch is None:
        known = ", ".join(a.name for a in all_archs())
        machine = "an unknown machine" if container.e_machine is None else f"ELF machine {container.e_machine}"
        raise DumpError(f"{container.paths[0]}: the dump is of {machine}; supported: {known}")
    return arch


def _claiming(container: DumpContainer, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory | None) -> Arch | None:
    """Return the architecture that VMCOREINFO is of; of two byte orders the file's, else the page table's."""
    first = next((arch for arch in each_arch() if arch.claims(vmcoreinfo)), None)
    if first is None:
        return None
    others = [arch for arch in all_archs() if arch.e_machine == first.e_machine and arch.claims(vmcoreinfo)]
    if len(others) > 1 and container.byte_order is not None:
        return arch_for_machine(first.e_machine, container.byte_order)
    if len(others) > 1 and physical is not None:
        return next((arch for arch in others if _has_top_table(arch, vmcoreinfo, physical)), first)
    return first


def _has_top_table(arch: Arch, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory) -> bool:
    """Tell whether the kernel's top page table has nothing that no entry of this architecture can be."""
    try:
        kernel_map = arch.kernel_map(vmcoreinfo)
        spec = kernel_map.spec
        raw = physical.read(kernel_map.root, spec.entry_dtype.itemsize << spec.levels[0].bits)
    except (LayoutError, MemoryFault):
        return False
    kinds, _ = spec.decode(np.frombuffer(raw, spec.entry_dtype).astype(np.uint64), 0)
    return bool((kinds == EntryKind.TABLE).any()) and not (kinds == EntryKind.BAD).any()


def _is_proved(arch: Arch, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory) -> bool:
    """Tell whether a kernel of this architecture maps itself to where memory has its name."""
    try:
        return bool(arch.image_keys) and _has_image_keys(locate_image(physical, arch, vmcoreinfo), arch)
    except LayoutError:
        return False


def _from_memory(
    container: DumpContainer, physical: PhysicalMemory, progress: ProgressBar | None
) -> tuple[Arch, KernelMemory, UtsName, VmcoreInfo, str]:
    """Find VMCOREINFO's text in memory, for dumps without the note; a stale copy does not fit and is passed over."""
    rejected: list[str] = []
    with progress_bar(progress, "searching memory for VMCOREINFO") as update:
        for paddr in _candidates(physical, update):
            try:
                text = _readable(physical, paddr, VMCOREINFO_SIZE_MAX)
                vmcoreinfo = looks_like_vmcoreinfo(text)
                if vmcoreinfo is None:
                    continue
                arch, memory, utsname = _kernel_memory(container, physical, vmcoreinfo)
            except Vmcore2coreError as error:
                rejected.append(f"{paddr:#x}: {error}")
                continue
            return arch, memory, utsname, vmcoreinfo, f"VMCOREINFO text at physical {paddr:#x}"
    for arch, memory, utsname, vmcoreinfo, origin in _from_image(container, physical, progress):
        return arch, memory, utsname, vmcoreinfo, origin
    if rejected:
        raise DumpError(
            f"{container.paths[0]}: no VMCOREINFO in the dump's memory fits it; found at {'; '.join(rejected[:3])}"
        )
    if container.e_machine is not None and arch_for_machine(container.e_machine) is None:
        _arch(container, parse_vmcoreinfo(b""))
    raise DumpError(
        f"{container.paths[0]}: the dump has no VMCOREINFO note, and in its memory neither the text was found nor a "
        f"kernel's symbol table (kallsyms) that a page table proves"
    )


def _from_image(
    container: DumpContainer, physical: PhysicalMemory, progress: ProgressBar | None
) -> Iterator[tuple[Arch, KernelMemory, UtsName, VmcoreInfo, str]]:
    """Yield what the kernel image itself tells, for dumps that have no VMCOREINFO anywhere."""
    with progress_bar(progress, "searching memory for the kernel image") as update:
        for _, vmcoreinfo, paddr in recovered(physical, update):
            try:
                arch, memory, utsname = _kernel_memory(container, physical, vmcoreinfo)
            except Vmcore2coreError as error:
                log.info("kallsyms at physical %#x does not fit the dump's memory: %s", paddr, error)
                continue
            yield arch, memory, utsname, vmcoreinfo, f"no VMCOREINFO; kallsyms at physical {paddr:#x}"


def _candidates(physical: PhysicalMemory, update: Progress | None = None) -> Iterator[int]:
    """Yield physical addresses where VMCOREINFO's text may begin, ascending.

    Its buffer is page-aligned (kernel/vmcore_info.c: crash_save_vmcoreinfo_init()), and so is the note that has it
    behind a header (update_vmcoreinfo_note()).
    """
    done, total = 0, sum(memory_range.size for memory_range in physical.container.dumped_ranges())
    for base, pages in physical.scan():
        for offset in (0, NOTE_HEADER):
            hits = (pages[:, offset : offset + len(MAGIC)] == MAGIC).all(axis=1).nonzero()[0]
            yield from (int(base) + int(row) * physical.page_size + offset for row in hits)
        done += pages.nbytes
        if update is not None:
            update(done, total)


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


def _kallsyms_source(memory: KernelMemory, vmcoreinfo: VmcoreInfo, arch: Arch) -> LayoutSource | None:
    """Return kallsyms: where VMCOREINFO says, or searched for in the kernel image."""
    told = KallsymsSource.from_vmcoreinfo(memory, vmcoreinfo, arch.byte_order, arch.pointer_size)
    if told is not None:
        return told
    witnesses = known_symbols(vmcoreinfo)
    name = "kallsyms found in the dump's memory"
    for tables in find_kallsyms(memory, arch.byte_order, arch.pointer_size):
        try:
            return KallsymsSource(memory, tables, arch.byte_order, witnesses, name, word=arch.pointer_size)
        except (LayoutInvalid, MemoryFault) as error:
            log.debug("what looks like kallsyms at %#x is not: %s", tables.names, error)
    return None


def _btf_source(
    memory: KernelMemory, layout: KernelLayout, arch: Arch, remembered: LayoutMemory | None
) -> LayoutSource | None:
    """Return the kernel's BTF: by its symbols, or searched for in the kernel image."""
    start, stop = layout.find_symbol("__start_BTF"), layout.find_symbol("__stop_BTF")
    if start is not None and stop is not None:
        if not 0 < stop - start <= BTF_SIZE_MAX:
            raise LayoutInvalid(f"__start_BTF {start:#x} to __stop_BTF {stop:#x}, expected 1 byte to {BTF_SIZE_MAX:#x}")
        data = memory.read(start, stop - start)
        source = BtfSource(data, "BTF in the dump", pointer_size=arch.pointer_size)
        return source if remembered is None else RememberedSource(source, remembered.of_btf(data))
    return _btf_by_scan(memory, arch)


def _btf_by_scan(memory: KernelMemory, arch: Arch) -> LayoutSource | None:
    """Search the kernel image for BTF; the kernel's own is the largest that is valid from end to end.

    Modules' BTF is smaller and not complete by itself; the copy that boot decompression leaves behind is damaged.
    """
    candidates: list[tuple[int, int]] = []
    for address, block in image_blocks(memory):
        candidates += [(length, address + offset) for offset, length in find_btf_candidates(block)]
    for length, address in sorted(candidates, reverse=True):
        try:
            data = memory.read(address, length)
        except MemoryFault:
            continue
        if validate_btf(data) is None:
            source = BtfSource(data, "BTF found in the dump's memory", pointer_size=arch.pointer_size)
            if source.size("task_struct") is not None:
                return source
    return None
