"""Find a dump's machine from VMCOREINFO, the file's ELF header, or the kernel's page tables."""

from __future__ import annotations

import numpy as np

from vmcore2core.arch import all_archs, arch_for_machine, each_arch
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import EntryKind
from vmcore2core.containers.base import DumpContainer
from vmcore2core.errors import DumpError, LayoutError, MemoryFault
from vmcore2core.layout.locate import locate_image
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.memory.physical import PhysicalMemory


def machine_of(container: DumpContainer, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory | None = None) -> Arch:
    """Return the architecture that VMCOREINFO, else the file, else the kernel's page table shows.

    Args:
        container: the dump.
        vmcoreinfo: of its kernel; may be empty.
        physical: the dump's memory, for what the page table proves; None leaves that out.

    Raises:
        DumpError: none of them tells it, or no architecture here is that one.
    """
    arch = claiming(container, vmcoreinfo, physical)
    if arch is None and container.e_machine is not None:
        arch = arch_for_machine(container.e_machine, container.byte_order)
    elif arch is None and physical is not None:
        arch = next((a for a in all_archs() if _is_proved(a, vmcoreinfo, physical)), None)
    if arch is None:
        known = ", ".join(a.name for a in all_archs())
        machine = "an unknown machine" if container.e_machine is None else f"ELF machine {container.e_machine}"
        raise DumpError(f"{container.paths[0]}: the dump is of {machine}; supported: {known}")
    return arch


def claiming(container: DumpContainer, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory | None) -> Arch | None:
    """Return the architecture of a VMCOREINFO; if it exists in two byte orders, the file or the page table decides."""
    first = next((arch for arch in each_arch() if arch.claims(vmcoreinfo)), None)
    if first is None or not first.both_orders:
        return first
    others = [arch for arch in all_archs() if arch.e_machine == first.e_machine and arch.claims(vmcoreinfo)]
    if len(others) > 1 and container.byte_order is not None:
        return arch_for_machine(first.e_machine, container.byte_order)
    if len(others) > 1 and physical is not None:
        return next((arch for arch in others if _has_top_table(arch, vmcoreinfo, physical)), first)
    return first


def _has_top_table(arch: Arch, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory) -> bool:
    """Tell whether all entries of the kernel's top page table are possible on this architecture."""
    try:
        kernel_map = arch.paging.kernel_map(vmcoreinfo)
        spec = kernel_map.spec
        raw = physical.read(kernel_map.root, spec.entry_dtype.itemsize << spec.levels[0].bits)
    except (LayoutError, MemoryFault):
        return False
    kinds, _ = spec.decode(np.frombuffer(raw, spec.entry_dtype).astype(np.uint64), 0)
    return bool((kinds == EntryKind.TABLE).any()) and not (kinds == EntryKind.BAD).any()


def _is_proved(arch: Arch, vmcoreinfo: VmcoreInfo, physical: PhysicalMemory) -> bool:
    """Tell whether the page table maps ``init_uts_ns`` to the place where memory has the kernel's name."""
    try:
        return bool(arch.paging.image_keys) and has_image_keys(locate_image(physical, arch, vmcoreinfo), arch)
    except LayoutError:
        return False


def has_image_keys(vmcoreinfo: VmcoreInfo, arch: Arch) -> bool:
    """Tell whether a VMCOREINFO says where this machine's kernel image is in memory."""
    return all(vmcoreinfo.string(key) is not None for key in arch.paging.image_keys)
