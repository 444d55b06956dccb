"""The kernel's messages from any dump with VMCOREINFO: unlike tasks, they need no kernel types."""

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
    """Yield the kernel of a dump without type information, its VMCOREINFO, and the dump.

    Args:
        paths: the dump's file or files.
        memory_map: where memory lies in a dump without a header.
        keeping: what to do with unpacked files.

    Raises:
        DumpError, LayoutError: the dump has no VMCOREINFO, or that of another kernel.
    """
    container = open_container(paths, memory_map, keeping)
    try:
        arch, memory, layout, info = without_types(container, keeping.progress)
        yield Kernel(arch, memory, layout), info, container
        container.check_unchanged()
    finally:
        container.close()
