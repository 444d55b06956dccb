"""The kernel's messages, from any dump with VMCOREINFO: unlike tasks, they need no kernel types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.cache import Keeping, ProgressBar
from vmcore2core.kernel.printk import read_messages
from vmcore2core.kernel.struct import Kernel
from vmcore2core.layout.bootstrap import without_types
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.session import OpenOptions
from vmcore2core.tasks.crash import boot_time


class KernelLog:
    """The kernel's messages.

    Args:
        kernel: the dumped one.
        info: its VMCOREINFO.
        container: the dump, if ``open_log`` opened it.

    Attributes:
        messages: the oldest first.
        problem: why messages are missing, as a sentence, or None.
    """

    def __init__(self, kernel: Kernel, info: VmcoreInfo, container: DumpContainer | None = None) -> None:
        self._kernel, self._info, self._container = kernel, info, container
        self.messages, self.problem = read_messages(kernel)

    @cached_property
    def _boot_time(self) -> tuple[float | None, str | None]:
        return boot_time(self._kernel, self._info, self.messages)

    @property
    def boot_time(self) -> float | None:
        """The start of the messages' clock, in seconds since 1970; None if it is not known."""
        return self._boot_time[0]

    @property
    def boot_time_doubt(self) -> str | None:
        """Why ``boot_time`` is not exact or not known, as a sentence, or None."""
        return self._boot_time[1]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about damage in a dump that ``open_log`` opened."""
        return () if self._container is None else tuple(self._container.warnings)


@contextmanager
def open_log(paths: Sequence[Path], options: OpenOptions, progress: ProgressBar | None = None) -> Iterator[KernelLog]:
    """Open a dump without type information, from which ``open_dump`` gets no processes, for its messages alone.

    Args:
        paths: the dump's file or files.
        options: how to open it.
        progress: draws a bar while a file is unpacked or received.

    Raises:
        DumpError, LayoutError: the dump has no VMCOREINFO, or that of another kernel.
    """
    container = open_container(
        paths, options.memory_map, Keeping(progress, cache=options.cache, any_size=options.any_size)
    )
    try:
        arch, memory, layout, info = without_types(container, progress)
        yield KernelLog(Kernel(arch, memory, layout), info, container)
        container.check_unchanged()
    finally:
        container.close()
