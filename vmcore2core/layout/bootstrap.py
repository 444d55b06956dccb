"""From a container to a readable kernel: VMCOREINFO -> page table -> kallsyms -> BTF.

Symbols need memory, and memory needs symbols. VMCOREINFO breaks this circle: it has the addresses of the kernel's page
table and of the kallsyms tables. Each step is checked by a fact that the next step does not depend on: the kernel's
own name must have VMCOREINFO's release, and its first task must be named "swapper".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmcore2core.arch.base import Arch
from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.cache import ProgressBar
from vmcore2core.errors import (
    DumpError,
    LayoutError,
    LayoutInvalid,
    LayoutUnknown,
    MemoryFault,
    ServerFailed,
    SuppliedInvalid,
    Vmcore2coreError,
)
from vmcore2core.interfaces import Member, SymbolAt
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.btf import BtfSource, find_btf_candidates, validate_btf
from vmcore2core.layout.find_vmcoreinfo import Opened, ways
from vmcore2core.layout.image import image_blocks
from vmcore2core.layout.kallsyms import KallsymsSource, known_symbols
from vmcore2core.layout.kallsyms_scan import find_kallsyms
from vmcore2core.layout.remembered import LayoutMemory, RememberedSource
from vmcore2core.layout.required import check_required
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.sanity import check_exported_abi, check_init_task
from vmcore2core.layout.two_kernels import second_kernel
from vmcore2core.layout.uts import UtsName
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, VmcoreInfoSource
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.overrides import override

log = logging.getLogger(__name__)

BTF_SIZE_MAX = 64 << 20

MoreSources = Callable[[VmcoreInfo, LayoutSource, LayoutSource], Sequence[LayoutSource]]
"""(VMCOREINFO, the dump's own symbols, its types) -> further sources, asked after these."""


class Bootstrapped(NamedTuple):
    """The readable kernel; ``notices`` say which offsets did not fit memory, and which ones replaced them."""

    arch: Arch
    vmcoreinfo: VmcoreInfo
    vmcoreinfo_origin: str
    memory: KernelMemory
    layout: KernelLayout
    utsname: UtsName
    notices: tuple[str, ...] = ()


class LazySource(LayoutSource):
    """A source that is opened at the first question; if that fails, it knows nothing, and ``problem`` says why.

    Attributes:
        problem: why it could not be opened, or None.
    """

    def __init__(self, name: str, factory: Callable[[], LayoutSource | None]) -> None:
        self.name = name
        self.problem: str | None = None
        self._factory = factory
        self._is_open = False
        self._source: LayoutSource | None = None

    @override
    def forget(self) -> None:
        """The next question opens it again."""
        if self._source is not None:
            self._source, self._is_open = None, False

    def _opened(self) -> LayoutSource:
        if not self._is_open:
            self._is_open = True
            try:
                self._source = self._factory()
                self.name = self._source.name if self._source is not None else self.name
            except ServerFailed:
                raise
            except Vmcore2coreError as error:
                self.problem = str(error)
                self.name += f", of which nothing can be used: {error}"
                log.info("%s", self.name)
        return self._source or _NOTHING

    @override
    def member(self, struct: str, path: str) -> Member | None:
        return self._opened().member(struct, path)

    @override
    def size(self, struct: str) -> int | None:
        return self._opened().size(struct)

    @override
    def symbol(self, name: str) -> int | None:
        return self._opened().symbol(name)

    @override
    def all_symbols(self, name: str) -> tuple[int, ...]:
        return self._opened().all_symbols(name)

    @override
    def symbol_at(self, address: int) -> SymbolAt | None:
        return self._opened().symbol_at(address)

    @override
    def constant(self, name: str) -> int | None:
        return self._opened().constant(name)


_NOTHING = LayoutSource()


def bootstrap(
    container: DumpContainer,
    more_sources: MoreSources | None = None,
    supplied: VmcoreInfo | int | None = None,
    progress: ProgressBar | None = None,
    remembered: LayoutMemory | None = None,
) -> Bootstrapped:
    """Open a dump's kernel: return its memory and its layout.

    Args:
        container: the dump.
        more_sources: returns the sources that are asked after the dump's own (a vmlinux).
        supplied: VMCOREINFO text from the user (``--vmcoreinfo``), whose keys override the dump's; or the physical
            address of the text to take, if memory has two kernels.
        progress: draws a bar while memory is searched.
        remembered: answers that earlier runs got from this dump or from these types.

    Raises:
        DumpError: no VMCOREINFO, or an architecture that is not supported.
        LayoutError: VMCOREINFO does not fit the memory.
    """
    refused: Vmcore2coreError | None = None
    for way in ways(container, supplied, progress):
        try:
            opened = way()
        except (ServerFailed, SuppliedInvalid):
            raise
        except (DumpError, LayoutError) as error:
            refused = refused or error
            continue
        try:
            booted = _booted(container, opened, more_sources, supplied, remembered)
        except LayoutError as error:
            # If this text is complete, another text cannot tell more.
            refused = refused or error
            if isinstance(error, LayoutUnknown) and not opened.is_cut:
                break
            continue
        if refused is None:
            return booted
        why = f"{refused.item} is not in it" if isinstance(refused, LayoutUnknown) else str(refused)
        what = "is used" if container.vmcoreinfo is None else "is used instead of the dump's note"
        return booted._replace(notices=(f"{opened.origin} {what}: {why}", *booted.notices))
    assert refused is not None  # noqa: S101 - there is always a way
    raise refused


def without_types(
    container: DumpContainer, progress: ProgressBar | None = None
) -> tuple[Arch, KernelMemory, KernelLayout, VmcoreInfo]:
    """Open a dump's kernel with VMCOREINFO and kallsyms alone, even if these tell nothing about tasks.

    Args:
        container: the dump.
        progress: draws a bar while memory is searched.

    Raises:
        DumpError: no VMCOREINFO, or an architecture that is not supported.
        LayoutError: VMCOREINFO does not fit the memory.
    """
    refused: Vmcore2coreError | None = None
    for way in ways(container, None, progress):
        try:
            opened = way()
        except ServerFailed:
            raise
        except (DumpError, LayoutError) as error:
            refused = refused or error
            continue
        arch, memory, info = opened.arch, opened.memory, opened.vmcoreinfo
        kallsyms = LazySource("kallsyms in the dump", lambda: _kallsyms_source(memory, info, arch))  # noqa: B023
        layout = KernelLayout([VmcoreInfoSource(info), kallsyms])
        memory.kernel_map = arch.paging.whole_map(memory.kernel_map, arch.view(memory, layout))
        return arch, memory, layout, info
    assert refused is not None  # noqa: S101 - there is always a way
    raise refused


def _booted(
    container: DumpContainer,
    opened: Opened,
    more_sources: MoreSources | None,
    supplied: VmcoreInfo | int | None,
    remembered: LayoutMemory | None,
) -> Bootstrapped:
    """Return the kernel with a layout that fits its first task."""
    arch, memory, vmcoreinfo = opened.arch, opened.memory, opened.vmcoreinfo
    log.info("%s: %s, Linux %s", opened.origin, arch.name, opened.utsname.release)
    btf: LayoutSource = LazySource("BTF in the dump", lambda: _btf_source(memory, layout, arch, remembered))
    kallsyms: LayoutSource = LazySource("kallsyms in the dump", lambda: _kallsyms_source(memory, vmcoreinfo, arch))
    if remembered is not None:
        btf = RememberedSource(btf, remembered.of_dump("btf"))
        kallsyms = RememberedSource(kallsyms, remembered.of_dump("kallsyms"))
    first = [VmcoreInfoSource(_only(opened.own, supplied), "--vmcoreinfo")] if isinstance(supplied, VmcoreInfo) else []
    more = more_sources(vmcoreinfo, kallsyms, btf) if more_sources is not None else ()
    layout = KernelLayout([*first, VmcoreInfoSource(vmcoreinfo), kallsyms, btf, *more])
    check_required(layout)
    memory.kernel_map = arch.paging.whole_map(memory.kernel_map, arch.view(memory, layout))
    notices = [*opened.notices, *check_init_task(memory, layout, arch.pointer_size, arch.byte_order)]
    notices += check_exported_abi(vmcoreinfo, arch.exported_abi)
    other = second_kernel(container, opened, layout)
    notices += [] if other is None else [other]
    return Bootstrapped(arch, vmcoreinfo, opened.origin, memory, layout, opened.utsname, tuple(notices))


def _only(merged_info: VmcoreInfo, supplied: VmcoreInfo) -> VmcoreInfo:
    """Return only the supplied keys, with symbols moved to their addresses in this dump."""
    return VmcoreInfo({key: merged_info.values[key] for key in supplied.values})


def _kallsyms_source(memory: KernelMemory, vmcoreinfo: VmcoreInfo, arch: Arch) -> LayoutSource | None:
    """Return kallsyms: at the place in VMCOREINFO, or found in the kernel image."""
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
    """Return the kernel's BTF: at its symbols, or found in the kernel image."""
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
