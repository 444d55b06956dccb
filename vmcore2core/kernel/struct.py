"""C structures of the dumped kernel: members by name, through the layout and kernel memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import PageTableSpec
from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.interfaces import Layout, Member
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.overrides import override

WHOLE_MAX = 2048  # bytes of a structure that is read whole


@dataclass(frozen=True)
class Kernel:
    """The dumped kernel: its memory, layout and architecture."""

    arch: Arch
    memory: KernelMemory
    layout: Layout

    def view(self, struct: str, address: int) -> StructView:
        """Return ``struct struct`` at a kernel virtual address."""
        return StructView(self, struct, KernelAddr(address))

    def container_of(self, address: int, struct: str, *names: str) -> StructView:
        """Return the ``struct struct`` whose member (first of ``names`` that exists) is at ``address``."""
        return self.view(struct, address - self.layout.member(struct, *names).offset)

    def user_page_table(self, mm: StructView) -> PageTableSpec:
        """Return the form of the page table of a ``struct mm_struct``."""
        return self.arch.paging.user_page_table(self.memory.kernel_map, mm.address, self)

    def uint(self, address: int, size: int) -> int:
        """Return an unsigned integer of ``size`` bytes in the kernel's byte order."""
        return int.from_bytes(self.memory.read(address, size), self.arch.byte_order)

    def read_pointer(self, address: int) -> KernelAddr:
        """Return a pointer."""
        return KernelAddr(self.uint(address, self.arch.pointer_size))

    def read_string(self, address: int, limit: int) -> bytes:
        """Return the NUL-terminated string at ``address``, cut at ``limit`` bytes or where memory ends."""
        result = b""
        page = self.memory.kernel_map.spec.page_size
        while len(result) < limit:
            part = min(limit - len(result), page - (address & (page - 1)))
            try:
                piece = self.memory.read(address, part)
            except MemoryFault:
                break
            head, nul, _ = piece.partition(b"\0")
            result += head
            if nul:
                break
            address += part
        return result


class StructView:
    """One structure in kernel memory.

    A small structure of known size is read at once. Others are read member by member: a task_struct spans three or four
    pages, and most callers need one of them.

    Attributes:
        kernel: the kernel it belongs to.
        struct: C tag, without "struct".
        address: kernel virtual address.
        raw: its bytes, if they were read already.
    """

    __slots__ = ("_raw", "address", "kernel", "struct")

    def __init__(self, kernel: Kernel, struct: str, address: KernelAddr, raw: bytes | None = None) -> None:
        self.kernel = kernel
        self.struct = struct
        self.address = address
        self._raw = raw

    @override
    def __repr__(self) -> str:
        return f"(struct {self.struct} *){self.address:#x}"

    def has(self, name: str) -> bool:
        """Tell whether the layout knows the member."""
        return self.kernel.layout.find_member(self.struct, name) is not None

    def addr_of(self, *names: str) -> KernelAddr:
        """Return ``&view->name`` for the first of ``names`` that exists."""
        return KernelAddr(self.address + self.kernel.layout.member(self.struct, *names).offset)

    def bytes_of(self, name: str, size: int) -> bytes:
        """Return the first ``size`` bytes of a member."""
        return self._read(self.kernel.layout.member(self.struct, name).offset, size, (name,))

    def uint(self, *names: str, size: int) -> int:
        """Return an unsigned integer member.

        Args:
            names: the first that exists is taken.
            size: bytes of it where the layout does not tell.
        """
        return self._uint(self.kernel.layout.member(self.struct, *names), size, names)

    def find_uint(self, name: str, size: int) -> int | None:
        """Return an unsigned integer member, or None if the layout does not know it."""
        found = self.kernel.layout.find_member(self.struct, name)
        return None if found is None else self._uint(found, size, (name,))

    def sint(self, *names: str, size: int) -> int:
        """Return a signed integer member; see ``uint``."""
        member = self.kernel.layout.member(self.struct, *names)
        bits = 8 * (member.size or size)
        value = self._uint(member, size, names)
        return value - (1 << bits) if value >> (bits - 1) else value

    def ulong(self, *names: str) -> int:
        """Return an ``unsigned long`` member."""
        kernel = self.kernel
        return self._uint(kernel.layout.member(self.struct, *names), kernel.arch.pointer_size, names)

    def pointer(self, *names: str) -> KernelAddr:
        """Return a pointer member."""
        kernel = self.kernel
        raw = self._read(kernel.layout.member(self.struct, *names).offset, kernel.arch.pointer_size, names)
        return KernelAddr(int.from_bytes(raw, kernel.arch.byte_order))

    def follow(self, name: str, struct: str) -> StructView | None:
        """Return what a pointer member points to, as a ``struct struct``; None for NULL."""
        address = self.pointer(name)
        return self.kernel.view(struct, address) if address else None

    def embedded(self, name: str, struct: str) -> StructView:
        """Return a member that is itself a ``struct struct``."""
        return self.kernel.view(struct, self.addr_of(name))

    def corrupt(self, name: str, what: str) -> CorruptStructure:
        """Return an error about a member, with its address and the source of its offset."""
        found = self.kernel.layout.find_member(self.struct, name)
        where = f"{self.struct}.{name}"
        if found is None:
            return CorruptStructure(what, self.address, where)
        return CorruptStructure(what, self.address + found.offset, where, found.offset, found.source)

    def _uint(self, member: Member, size: int, names: tuple[str, ...]) -> int:
        order = self.kernel.arch.byte_order
        raw = self._read(member.offset, member.size or size, names)
        value = int.from_bytes(raw, order)
        if member.bit_size is None or member.bit_offset is None:
            return value
        shift = member.bit_offset
        if order == "big":
            shift = 8 * len(raw) - member.bit_offset - member.bit_size
        return value >> shift & ((1 << member.bit_size) - 1)

    def _read(self, offset: int, size: int, names: tuple[str, ...]) -> bytes:
        whole, end = self._raw, offset + size
        if whole is None:
            whole = self._raw = self._whole()
        if end <= len(whole):
            return whole[offset:end]
        try:
            return self.kernel.memory.read(self.address + offset, size)
        except MemoryFault as fault:
            raise fault.reading(f"{self.struct}.{' or '.join(names)}, offset {offset:#x}") from None

    def _whole(self) -> bytes:
        """Return the structure's bytes; none if it is large or of unknown size, or if part of it cannot be read."""
        size = self.kernel.layout.find_size(self.struct)
        try:
            return self.kernel.memory.read(self.address, size) if size and size <= WHOLE_MAX else b""
        except MemoryFault:
            return b""


def chain(start: StructView | None, name: str, struct: str, limit: int) -> Iterator[StructView]:
    """Yield ``start`` and its successors by the pointer member ``name``, up to NULL.

    Raises:
        CorruptStructure: after the good ones: the chain leads back into itself, or has more than ``limit`` structures.
        MemoryFault: likewise: the next cannot be read.
    """
    view = start
    seen: set[int] = set()
    while view is not None:
        seen.add(view.address)
        yield view
        following = view.follow(name, struct)
        if following is not None and (following.address in seen or len(seen) >= limit):
            raise view.corrupt(name, f"leads back to {following.address:#x}, or the chain has more than {limit:#x}")
        view = following
