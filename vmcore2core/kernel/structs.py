"""Many C structures of one type in the dumped kernel, read together: a column of numbers for each member."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import KernelAddr, U8Array, U64Array
from vmcore2core.errors import MemoryFault
from vmcore2core.interfaces import Member
from vmcore2core.kernel.struct import WHOLE_MAX, Kernel, StructView


class Structs:
    """Structures of one type.

    A structure that cannot be read whole, or whose size the layout does not know, is read member by member.

    Args:
        kernel: the dumped kernel.
        struct: C tag, without "struct".
        addresses: where they are.
        members: of a structure that is too large to read whole: the members to read, and the most bytes of each.

    Attributes:
        addresses: uint64[n], where they are.
    """

    def __init__(
        self,
        kernel: Kernel,
        struct: str,
        addresses: Sequence[int] | U64Array,
        members: Iterable[tuple[str, int]] = (),
    ) -> None:
        self.kernel, self.struct, self._members = kernel, struct, tuple(members)
        self.addresses: U64Array = np.asarray(addresses, np.uint64)

    def __len__(self) -> int:
        return len(self.addresses)

    @cached_property
    def _read(self) -> tuple[U8Array, NDArray[np.bool_]]:
        """The bytes of all structures, uint8[n, size]; and which ones could be read, bool[n]."""
        size = self.kernel.layout.find_size(self.struct) or 0
        if not 0 < size <= WHOLE_MAX:
            return np.zeros((len(self), 0), np.uint8), np.zeros(len(self), np.bool_)
        return self.kernel.memory.read_many(self.addresses, size)

    @cached_property
    def _parts(self) -> dict[tuple[int, int], tuple[U8Array, NDArray[np.bool_]]]:
        """The bytes of the chosen members, by offset and size, and which ones could be read."""
        find = self.kernel.layout.find_member
        known = [(found, size) for name, size in self._members if (found := find(self.struct, name)) is not None]
        places = sorted({(found.offset, min(found.size or size, size)) for found, size in known})
        return dict(zip(places, self.kernel.memory.read_parts(self.addresses, places), strict=True))

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Which structures were read whole, or with all chosen members, bool[n]."""
        if not self._members:
            return self._read[1]
        there = np.ones(len(self), np.bool_)
        for _, known in self._parts.values():
            there &= known
        return there

    def column(self, name: str, size: int) -> tuple[U8Array, NDArray[np.bool_]]:
        """Return a member's bytes in each, uint8[n, size]; and which were read with the whole structure, bool[n]."""
        start = self.kernel.layout.member(self.struct, name).offset
        raw, whole = self._read
        if start + size <= raw.shape[1]:
            return raw[:, start : start + size], whole
        nothing = np.zeros((len(self), size), np.uint8), np.zeros(len(self), np.bool_)
        return self._parts.get((start, size), nothing) if self._members else nothing

    def has(self, name: str) -> bool:
        """Tell whether the layout knows the member."""
        return self.kernel.layout.find_member(self.struct, name) is not None

    def view(self, row: int) -> StructView:
        """Return one of them."""
        address = KernelAddr(int(self.addresses[row]))
        raw, whole = self._read
        return StructView(self.kernel, self.struct, address, raw[row].tobytes() if whole[row] else None)

    def find_uint(self, name: str, size: int) -> U64Array | None:
        """Return an unsigned integer member of each, uint64[n]; None if the layout does not know it.

        Args:
            name: of the member.
            size: bytes of it where the layout does not tell.

        A member that cannot be read is 0 here: ``view`` says what is wrong with it.
        """
        found = self.kernel.layout.find_member(self.struct, name)
        if found is None:
            return None
        raw, there = self.column(name, found.size or size)
        numbers = np.zeros(len(self), np.uint64)
        numbers[there] = self._numbers(raw[there], found)
        for row in np.flatnonzero(~there).tolist():
            try:
                numbers[row] = self.view(row).find_uint(name, size) or 0
            except MemoryFault:
                continue
        return numbers

    def uint(self, *names: str, size: int) -> U64Array:
        """Return an unsigned integer member of each, as ``find_uint``; the first of ``names`` that exists.

        Raises:
            LayoutUnknown: none does.
        """
        self.kernel.layout.member(self.struct, *names)
        return next(found for name in names if (found := self.find_uint(name, size)) is not None)

    def ulong(self, name: str) -> U64Array:
        """Return an ``unsigned long`` or a pointer of each, as ``find_uint``; 0 if the layout does not know it."""
        found = self.find_uint(name, self.kernel.arch.pointer_size)
        return np.zeros(len(self), np.uint64) if found is None else found

    def _numbers(self, raw: U8Array, member: Member) -> U64Array:
        numbers, order = as_numbers(raw, self.kernel.arch.byte_order), self.kernel.arch.byte_order
        if member.bit_size is None or member.bit_offset is None:
            return numbers
        shift = member.bit_offset
        if order == "big":
            shift = 8 * raw.shape[1] - member.bit_offset - member.bit_size
        return numbers >> np.uint64(shift) & np.uint64((1 << member.bit_size) - 1)


def as_numbers(raw: U8Array, order: str) -> U64Array:
    """Return unsigned integers of up to 8 bytes, uint64[n].

    Args:
        raw: uint8[n, size].
        order: their byte order.
    """
    wide = np.zeros((len(raw), 8), np.uint8)
    if order == "little":
        wide[:, : raw.shape[1]] = raw
    else:
        wide[:, 8 - raw.shape[1] :] = raw
    numbers = wide.view("<u8" if order == "little" else ">u8").reshape(-1)
    return numbers.astype(np.uint64)


def read_uints(kernel: Kernel, addresses: U64Array, size: int) -> tuple[U64Array, NDArray[np.bool_]]:
    """Return unsigned integers at many addresses, uint64[n], 0 if not readable; and which could be read, bool[n]."""
    raw, there = kernel.memory.read_many(addresses, size)
    return as_numbers(raw, kernel.arch.byte_order), there


def read_words(kernel: Kernel, addresses: U64Array) -> tuple[U64Array, NDArray[np.bool_]]:
    """Return the pointers at many addresses, as ``read_uints``."""
    return read_uints(kernel, addresses, kernel.arch.pointer_size)
