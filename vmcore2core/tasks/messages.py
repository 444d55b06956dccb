"""The kernel's messages of any dump with VMCOREINFO: they take no types of the kernel, as tasks do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.cache import Keeping
from vmcore2core.kernel.struct import Kernel
from vmcore2core.layout.bootstrap import without_types
from vmcore2core.layout.vmcoreinfo import VmcoreInfo


@contextmanager
def kernel_without_types(
    paths: Sequence[Path], memory_map: str | None, keeping: Keeping
) -> Iterator[tuple[Kernel, VmcoreInfo, DumpContainer]]:
    """Give the kernel of a dump that tells no types, its VMCOREINFO, and the dump.

    Args:
        paths: the dump's file or files.
        memory_map: what is where in a dump without a header.
        keeping: of what is unpacked.

    Raises:
        DumpError, LayoutError: there is no VMCOREINFO, or it is not this kernel's.
    """
    container = open_container(paths, memory_map, keeping)
    try:
        arch, memory, layout, info = without_types(container, keeping.progress)
        yield Kernel(arch, memory, layout), info, container
        container.check_unchanged()
    finally:
        container.close()
