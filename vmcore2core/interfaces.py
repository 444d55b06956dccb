"""Protocols between layers, so that a layer sees only the part of another that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from vmcore2core.addresses import U8Array, U64Array

ByteOrder = Literal["little", "big"]
Compression = Literal["zstd"]
"""How cores are compressed."""


class Memory(Protocol):
    """Bytes of one address space of the dump."""

    def read(self, address: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``address``.

        Raises:
            MemoryFault: some bytes cannot be read; none are invented.
        """
        ...


class Member(NamedTuple):
    """Where a member lies in its C structure.

    Attributes:
        offset: bytes from the start of the structure.
        size: bytes of the member, or None if the source does not give it (VMCOREINFO).
        bit_offset: bits from ``offset`` for a bit field, else None.
        bit_size: width of a bit field, else None.
        type_name: C type as the source names it ("unsigned int", "struct list_head", "pointer"), or None.
        source: name of the layout source that answered.
    """

    offset: int
    source: str
    size: int | None = None
    bit_offset: int | None = None
    bit_size: int | None = None
    type_name: str | None = None


class SymbolAt(NamedTuple):
    """The symbol that an address belongs to.

    Attributes:
        name: the first in the table of the symbols at this address, as the kernel's own messages have it.
        start: its address.
        size: bytes up to the next symbol.
    """

    name: bytes
    start: int
    size: int


class Layout(Protocol):
    """Offsets, sizes, symbols and constants of the dumped kernel, each with its source.

    ``find_*`` return None for "not known"; the others raise ``LayoutUnknown``.
    """

    def find_member(self, struct: str, member: str) -> Member | None:
        """Return where ``member`` ("mm", or a path "thread.fsbase") lies in ``struct struct``."""
        ...

    def member(self, struct: str, *names: str) -> Member:
        """Return the first of ``names`` (newest kernel's first) that ``struct struct`` has."""
        ...

    def find_size(self, struct: str) -> int | None:
        """Return ``sizeof(struct struct)`` in bytes."""
        ...

    def size(self, struct: str) -> int:
        """Return ``sizeof(struct struct)`` in bytes."""
        ...

    def find_symbol(self, name: str) -> int | None:
        """Return the run-time address of a kernel symbol (KASLR included)."""
        ...

    def find_symbols(self, name: str) -> tuple[int, ...]:
        """Return the run-time addresses of all kernel symbols with a name; static symbols may share one."""
        ...

    def find_symbol_at(self, address: int) -> SymbolAt | None:
        """Return the kernel symbol at or before a run-time address, in any section."""
        ...

    def symbol(self, name: str) -> int:
        """Return the run-time address of a kernel symbol (KASLR included)."""
        ...

    def find_constant(self, name: str) -> int | None:
        """Return a constant: VMCOREINFO ``NUMBER(name)``/``LENGTH(name)`` or a BTF enumerator."""
        ...


class KernelView(Protocol):
    """The dumped kernel's memory and layout, for code that walks no kernel structures."""

    @property
    def memory(self) -> Memory:
        """Kernel virtual memory."""
        ...

    @property
    def layout(self) -> Layout:
        """The kernel's layout."""
        ...

    def uint(self, address: int, size: int) -> int:
        """Return the unsigned integer of ``size`` bytes at a kernel address, in the kernel's byte order.

        Raises:
            MemoryFault: it cannot be read.
        """
        ...


class MemoryAndLayout(NamedTuple):
    """A ``KernelView`` made from a memory and a layout, for code that has no ``Kernel``."""

    memory: Memory
    layout: Layout
    byte_order: ByteOrder = "little"

    def uint(self, address: int, size: int) -> int:
        """Return the unsigned integer of ``size`` bytes at a kernel address."""
        return int.from_bytes(self.memory.read(address, size), self.byte_order)


class PageStream(Protocol):
    """User pages of one process, as the core writer takes them."""

    def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[U64Array, U8Array]]:
        """Yield the present pages of ranges of user memory in bounded batches; a batch may span ranges.

        Args:
            ranges: ``[start, end)`` of whole pages each, ascending and disjoint.

        Yields:
            ``vaddr``: uint64[n], page addresses, ascending within a batch and from one to the next; and
            ``pages``: uint8[n, page_size], their bytes, valid until the caller takes the next batch.
            A page that is not yielded reads as zero.
        """
        ...
