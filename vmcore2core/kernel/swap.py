"""Swapped pages: from a page-table entry to the page.

The kernel's order is kept: the swap cache, the slots that stand for zeros, zswap, then the swap device (zram, a file or
a partition).

References: mm/memory.c: do_swap_page(); mm/swapfile.c; mm/page_io.c: swap_read_folio() (Linux 4.20 to 7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PhysAddrs, SwapEntries, U8Array, U64Array
from vmcore2core.errors import CodecError, CorruptStructure, LayoutError, MemoryFault
from vmcore2core.formats import swap as fmt
from vmcore2core.kernel import fs
from vmcore2core.kernel.bounds import PFN_END, physmem_bits
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.swap_cache import CachePages, SwapCache, cached, swap_cache
from vmcore2core.kernel.swapops import SoftLeaf, special_types
from vmcore2core.memory.pages import UserPageState

DISK_NAME_LEN = 32
PROBLEMS_MAX = 16

_BROKEN = (CodecError, CorruptStructure, LayoutError, MemoryFault)
_SPECIAL = {
    SoftLeaf.DEVICE_PRIVATE: UserPageState.DEVICE_PRIVATE,
    SoftLeaf.HWPOISON: UserPageState.HWPOISON,
    SoftLeaf.UNKNOWN: UserPageState.SPECIAL,
}


class Store(Protocol):
    """A place with pages of one device's slots, besides the swap cache."""

    def find(self, offset: int) -> UserPageState | None:
        """Return a slot's state here: ``STORED``, a reason why there is no page, or None if the slot is unknown.

        Raises:
            CodecError, CorruptStructure, LayoutError, MemoryFault: the page should be here, and cannot be read.
        """
        ...

    def read(self, offset: int) -> bytes:
        """Return the page of a slot that is ``STORED``; raises as ``find``."""
        ...


class SwapDevice(NamedTuple):
    """One ``struct swap_info_struct``.

    Attributes:
        number: the type of its swp_entry_t.
        info: the structure.
        slots_max: ``max``: one more than its last slot.
        disk: ``struct gendisk`` of the block device, or None for a file or where it is not known.
        name: as /proc/swaps has it, as far as it can be read.
    """

    number: int
    info: StructView
    slots_max: int
    disk: StructView | None
    name: str

    @property
    def disk_name(self) -> bytes:
        """``gendisk.disk_name`` ("zram0"), or "" where there is no disk."""
        return self.disk.bytes_of("disk_name", DISK_NAME_LEN).split(b"\0", 1)[0] if self.disk is not None else b""


def swap_devices(kernel: Kernel) -> list[SwapDevice]:
    """Return the swap devices that are in use.

    Raises:
        LayoutUnknown, MemoryFault: the kernel's list of them is not known or cannot be read.
    """
    word, layout = kernel.arch.pointer_size, kernel.layout
    count = kernel.uint(layout.symbol("nr_swapfiles"), 4)
    if count > 1 << fmt.MAX_SWAPFILES_SHIFT:
        where = layout.symbol("nr_swapfiles")
        raise CorruptStructure(f"{count} swap files, expected at most 32", where, "nr_swapfiles")
    mounts = fs.Mounts(kernel)
    devices = []
    for number in range(count):
        address = kernel.read_pointer(layout.symbol("swap_info") + number * word)
        if not address:
            continue
        info = kernel.view("swap_info_struct", address)
        slots_max, file = info.uint("max", size=4), info.follow("swap_file", "file")
        if not slots_max or file is None:
            continue  # swapped off
        path = fs.file_path(kernel, file, mounts, None)
        name = (path or b"?").decode("utf-8", "replace")
        devices.append(SwapDevice(number, info, slots_max, _disk(info), name))
    return devices


def _disk(info: StructView) -> StructView | None:
    """Return ``bdev->bd_disk`` of a device that is a whole disk or partition, else None."""
    if not info.uint("flags", size=8) & fmt.SWP_BLKDEV or not info.has("bdev"):
        return None
    bdev = info.follow("bdev", "block_device")
    return bdev.follow("bd_disk", "gendisk") if bdev is not None else None


class Slots:
    """The slots of one device, and the places of their pages.

    Args:
        device: the device.
        cache: its swap cache.
        stores: asked in turn for slots that are not in the cache; the first that knows a slot decides.
        problem: takes a sentence on a defect.
    """

    def __init__(
        self, device: SwapDevice, cache: SwapCache, stores: Sequence[Store], problem: Callable[[str], None]
    ) -> None:
        self.device, self._cache, self._stores, self._problem = device, cache, stores, problem

    def locate(self, offsets: U64Array) -> tuple[PhysAddrs, U8Array]:
        """Return (physical addresses, states) of slots; ``offsets`` ascend. The address is 0 unless ``PRESENT``."""
        paddr = PhysAddrs(np.zeros(len(offsets), np.uint64))
        state = np.full(len(offsets), UserPageState.SWAP_UNREADABLE, np.uint8)
        try:
            zero = set(self._cache.zeros(offsets))
            here = cached(self._cache, offsets, self.device.number)
        except _BROKEN as error:
            self._problem(f"the swap cache of {self.device.name} cannot be read: {error}")
            return paddr, state
        for i, offset in enumerate(offsets.tolist()):
            where = here.get(i)
            if isinstance(where, int):
                paddr[i], state[i] = where, UserPageState.PRESENT
            elif isinstance(where, str):
                self._problem(f"slot {offset:#x} of {self.device.name}: {where}")
            elif i in zero:
                state[i] = UserPageState.ZERO
            else:
                state[i] = self._stored(offset)
        return paddr, state

    def _stored(self, offset: int) -> UserPageState:
        try:
            for store in self._stores:
                found = store.find(offset)
                if found is not None:
                    return found
        except _BROKEN as error:
            self._problem(f"slot {offset:#x} of {self.device.name} cannot be read: {error}")
            return UserPageState.SWAP_UNREADABLE
        return UserPageState.SWAPPED_TO_DISK

    def read(self, offset: int) -> bytes | None:
        """Return the page of a slot that is ``STORED``, or None if it cannot be read after all."""
        try:
            for store in self._stores:
                if store.find(offset) is UserPageState.STORED:
                    return store.read(offset)
        except _BROKEN as error:
            self._problem(f"slot {offset:#x} of {self.device.name} cannot be read: {error}")
        return None


class KernelSwap:
    """``memory.pages.SwapSpace`` over the kernel's own records.

    Args:
        kernel: the kernel.
        open_stores: returns a device's stores in the order to ask them; errors as of ``Store.find``.

    Attributes:
        devices: the swap devices in use.
        problems: the first few sentences on what could not be read.

    Raises:
        LayoutError, MemoryFault, CorruptStructure: the kernel's records of its swap devices cannot be used.
    """

    def __init__(self, kernel: Kernel, open_stores: Callable[[SwapDevice], Sequence[Store]]) -> None:
        self.kernel = kernel
        self.problems: list[str] = []
        self.devices = swap_devices(kernel)
        self._page_size = kernel.memory.kernel_map.spec.page_size
        self._special = special_types(kernel.layout)
        self._nr_swapfiles = max((device.number + 1 for device in self.devices), default=0)
        shift = self._page_size.bit_length() - 1
        bits = physmem_bits(kernel.layout, shift)
        # Above the page frame, migration entries have flags since Linux 6.1; it exports this number since 5.6.
        self._pfn_mask = (1 << (bits - shift if bits else fmt.SWP_TYPE_SHIFT)) - 1
        self._slots: dict[int, Slots | None] = {}
        self._open_stores = open_stores
        self._pages: CachePages | None = None

    def problem(self, sentence: str) -> None:
        """Remember a sentence."""
        if sentence not in self.problems and len(self.problems) < PROBLEMS_MAX:
            self.problems.append(sentence)

    def entries(self, ptes: U64Array, sizes: U64Array) -> SwapEntries:
        """Return the swp_entry_t of page table entries; 0 if the form is not known."""
        decoded = self._decoded(ptes, sizes)
        if decoded is None:
            return SwapEntries(np.zeros(len(ptes), np.uint64))
        types, offsets = decoded
        return SwapEntries(types << np.uint64(fmt.SWP_TYPE_SHIFT) | offsets)

    def in_slots(self, ptes: U64Array, sizes: U64Array) -> NDArray[np.bool_] | None:
        """Tell which entries name a slot of a swap device; None if their form is not known."""
        decoded = self._decoded(ptes, sizes)
        return None if decoded is None else decoded[0] < np.uint64(self._nr_swapfiles)

    def _decoded(self, ptes: U64Array, sizes: U64Array) -> tuple[U64Array, U64Array] | None:
        known = self.kernel.arch.swap_entries
        return None if known is None else known.type_and_offset(ptes, sizes, self._page_size, self.kernel.layout)

    def locate(self, entries: SwapEntries) -> tuple[PhysAddrs, U8Array]:
        """Return (physical addresses, states); entry 0 is not known, because no page has slot 0 of device 0."""
        paddr = PhysAddrs(np.zeros(len(entries), np.uint64))
        state = np.full(len(entries), UserPageState.SWAPPED, np.uint8)
        types, offsets = entries >> np.uint64(fmt.SWP_TYPE_SHIFT), entries & np.uint64(fmt.SWP_OFFSET_MASK)
        for number in np.unique(types[entries != 0]).tolist():
            mine = (types == number) & (entries != 0)
            if number < self._nr_swapfiles:
                paddr[mine], state[mine] = self._swapped(number, offsets[mine])
            else:
                paddr[mine], state[mine] = self._not_swapped(number, offsets[mine])
        return paddr, state

    def _not_swapped(self, number: int, offsets: U64Array) -> tuple[PhysAddrs, U8Array]:
        kind = self._special.get(number, SoftLeaf.UNKNOWN)
        paddr = PhysAddrs(np.zeros(len(offsets), np.uint64))
        if kind in (SoftLeaf.MIGRATION, SoftLeaf.DEVICE_EXCLUSIVE):
            pfn = offsets & np.uint64(self._pfn_mask)
            paddr = PhysAddrs(np.where(pfn < PFN_END, pfn, np.uint64(0)) * np.uint64(self._page_size))
            return paddr, np.where(pfn < PFN_END, UserPageState.PRESENT, UserPageState.TABLE_BROKEN).astype(np.uint8)
        if kind is SoftLeaf.MARKER:
            state = np.full(len(offsets), UserPageState.SPECIAL, np.uint8)
            for bit, told in (
                (fmt.PTE_MARKER_UFFD_WP, UserPageState.UNTOUCHED),
                (fmt.PTE_MARKER_GUARD, UserPageState.GUARD),
                (fmt.PTE_MARKER_POISONED, UserPageState.HWPOISON),
            ):
                state[(offsets & np.uint64(bit)) != 0] = told
            return paddr, state
        return paddr, np.full(len(offsets), _SPECIAL[kind], np.uint8)

    def _swapped(self, number: int, offsets: U64Array) -> tuple[PhysAddrs, U8Array]:
        slots = self._slots_of(number)
        if slots is None:
            nowhere = PhysAddrs(np.zeros(len(offsets), np.uint64))
            return nowhere, np.full(len(offsets), UserPageState.SWAPPED, np.uint8)
        unique, back = np.unique(offsets, return_inverse=True)
        inside: NDArray[np.bool_] = (unique > 0) & (unique < slots.device.slots_max)
        if not inside.all():
            self.problem(f"a page-table entry names slot {int(unique[~inside][0]):#x}, which {slots.device.name} lacks")
        where, what = np.zeros(len(unique), np.uint64), np.full(len(unique), UserPageState.TABLE_BROKEN, np.uint8)
        where[inside], what[inside] = slots.locate(unique[inside])
        return PhysAddrs(where[back]), what[back]

    def _slots_of(self, number: int) -> Slots | None:
        if number not in self._slots:
            self._slots[number] = None
            device = next((device for device in self.devices if device.number == number), None)
            if device is None:
                self.problem(f"there is no swap device of number {number}")
                return None
            try:
                self._pages = self._pages or CachePages(self.kernel)
                cache = swap_cache(self._pages, device.info, number)
                self._slots[number] = Slots(device, cache, self._open_stores(device), self.problem)
            except _BROKEN as error:
                self.problem(f"pages swapped to {device.name} cannot be looked for: {error}")
        return self._slots[number]

    def read(self, entries: SwapEntries) -> tuple[U8Array, NDArray[np.bool_]]:
        """Return the pages that are ``STORED``, and which of them could be read."""
        pages, good = np.zeros((len(entries), self._page_size), np.uint8), np.zeros(len(entries), np.bool_)
        for i, entry in enumerate(entries.tolist()):
            slots = self._slots_of(entry >> fmt.SWP_TYPE_SHIFT)
            page = slots.read(entry & fmt.SWP_OFFSET_MASK) if slots is not None else None
            if page is not None and len(page) == self._page_size:
                pages[i], good[i] = np.frombuffer(page, np.uint8), True
        return pages, good
