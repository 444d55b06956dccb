"""Swapped pages of all processes: connects the kernel's records to the stores that the dump and the user provide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.remote import located
from vmcore2core.containers.swapfile import SwapFile
from vmcore2core.errors import (
    CorruptStructure,
    DumpError,
    LayoutError,
    LayoutInvalid,
    LayoutUnknown,
    MemoryFault,
    UsageError,
)
from vmcore2core.kernel.struct import Kernel
from vmcore2core.kernel.swap import KernelSwap, Store, SwapDevice
from vmcore2core.memory.pages import UserPageState

SWP_ENTRY_SIZE = 8  # of the kernels whose swp_entry_t is known: that of 32-bit ones has its type in bits 26 to 30
_NUMBERED = re.compile(r"(\d{1,2})=(.+)", re.DOTALL)


class SwappedPages:
    """Where swapped pages come from.

    Args:
        kernel: the kernel.
        files: swap files and partitions of the machine, each as FILE or as NUMBER=FILE.

    Attributes:
        space: where ``UserMemory`` looks pages up; None if the kernel's records cannot be used.
        stores: those of ``files``.

    Raises:
        DumpError, FormatError: a file cannot be read or is not a swap file.
        UsageError: a file is none of this machine's swap files.
    """

    def __init__(self, kernel: Kernel, files: Sequence[str] = ()) -> None:
        self.kernel = kernel
        self.space: KernelSwap | None = None
        self.stores: dict[int, FileStore] = {}
        self._problem: str | None = None
        try:
            if kernel.arch.pointer_size != SWP_ENTRY_SIZE:
                raise LayoutInvalid("where a swp_entry_t of 32 bits has its type is not known")
            self.space = KernelSwap(kernel, self._stores)
        except (LayoutError, MemoryFault, CorruptStructure) as error:
            self._problem = f"swapped pages cannot be looked for: {error}"
        try:
            for name in files:
                self._add_file(name)
        except BaseException:
            self.close()
            raise

    @property
    def problems(self) -> list[str]:
        """Sentences about records of the kernel that could not be read."""
        return list(self.space.problems) if self.space is not None else [self._problem or ""]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The swap files."""
        return tuple(store.swap.file.path for store in self.stores.values())

    @property
    def nr_from_files(self) -> dict[int, int]:
        """How many pages were found in swap files so far, by the number of the swap area."""
        return {number: store.nr_found for number, store in self.stores.items()}

    @property
    def notices(self) -> list[str]:
        """Sentences about the swap files that pages came from."""
        return [store.notice for store in self.stores.values() if store.nr_found]

    def check_unchanged(self) -> None:
        """Check that the swap files have not changed since they were opened.

        Raises:
            DumpError: one has changed.
        """
        for store in self.stores.values():
            sentence = store.swap.file.changed()
            if sentence is not None:
                raise DumpError(sentence)

    def notices_since(self, before: dict[int, int]) -> list[str]:
        """Return sentences about the swap files that pages came from since ``nr_from_files`` was ``before``."""
        return [
            f"{store.nr_found - before[number]} {store.notice}"
            for number, store in self.stores.items()
            if store.nr_found > before[number]
        ]

    def _add_file(self, name: str) -> None:
        numbered = _NUMBERED.fullmatch(name)
        path = located(numbered[2] if numbered else name)
        if self.space is None:
            raise UsageError(f"--swap {path}: {self._problem}")
        file = open_dump_file(path)
        try:
            page_size = self.kernel.memory.kernel_map.spec.page_size
            swap = SwapFile(file, page_size, self.kernel.arch.byte_order)
            device = self._device(swap, self.space.devices, int(numbered[1]) if numbered else None)
            self.stores[device.number] = FileStore(swap, device)
        except BaseException:
            file.close()
            raise

    def _device(self, swap: SwapFile, devices: Sequence[SwapDevice], number: int | None) -> SwapDevice:
        """Return the device that a file belongs to: exactly one must match its number and sizes."""
        said = ", ".join(f"{d.number} ({d.name}) of {d.slots_max} slots" for d in devices) or "none"
        path = swap.file.path
        fitting = [d for d in devices if d.slots_max == swap.slots_max and number in (None, d.number)]
        free = [d for d in fitting if d.number not in self.stores]
        if not free:
            which = "" if number is None else f" for number {number}"
            raise UsageError(
                f"--swap {path} has {swap.slots_max} slots, which fits no swap area{which} that was in use: {said}"
            )
        if len(free) > 1:
            raise UsageError(
                f"--swap {path} has {swap.slots_max} slots, as several swap areas: {said}; say NUMBER={path}"
            )
        return free[0]

    def _stores(self, device: SwapDevice) -> list[Store]:
        """Return the stores that may have a device's pages, in the kernel's own search order."""
        # Imported here, as most machines have no swapped pages.
        from vmcore2core.kernel.zram import DISK_PREFIX, Zram
        from vmcore2core.kernel.zswap import Zswap

        stores: list[Store] = [Zswap(self.kernel, device.number, self._vmemmap())]
        if device.disk is not None and device.disk_name.startswith(DISK_PREFIX):
            stores.append(Zram(self.kernel, device.disk, self._vmemmap()))
        if device.number in self.stores:
            stores.append(self.stores[device.number])
        return stores

    def _vmemmap(self) -> int:
        found = self.kernel.arch.paging.vmemmap(self.kernel)
        if found is None:
            raise LayoutUnknown("SYMBOL(vmemmap)")
        return found

    def close(self) -> None:
        """Release the files."""
        for store in self.stores.values():
            store.swap.close()


class FileStore:
    """``kernel.swap.Store`` of a swap file or partition.

    Attributes:
        nr_found: how many pages were found here so far.
        notice: the sentence to report if any page was found.
    """

    def __init__(self, swap: SwapFile, device: SwapDevice) -> None:
        self.swap = swap
        self.nr_found = 0
        self.notice = (
            f"pages swapped to {device.name} come from {swap.file.path.name}: they are right if the machine did not "
            f"swap after the dump and before that was copied"
        )

    def find(self, offset: int) -> UserPageState | None:
        """Tell whether the file has the slot."""
        if self.swap.read(offset) is None:
            return UserPageState.SWAP_CUT_OFF
        self.nr_found += 1
        return UserPageState.STORED

    def read(self, offset: int) -> bytes:
        """Return the page of a slot."""
        page = self.swap.read(offset)
        if page is None:
            raise CorruptStructure(f"slot {offset:#x} lies behind the end of {self.swap.file.path}", offset, "swap")
        return page
