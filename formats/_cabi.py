"""C structures on top of construct: System V alignment and padding, which construct does not do by itself.

A member is ``(name, construct, alignment)``. The alignment is written out because it is the ABI's, not the type's:
a ``u64`` is aligned to 8 bytes on x86-64 and to 4 on i386; in a packed structure every alignment is 1.

References: System V gABI, chapter "Low-Level System Information"; psABI supplements for i386 and x86-64.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from construct import (
    Construct,
    FormatField,
    Int8sb,
    Int8sl,
    Int8ub,
    Int8ul,
    Int16sb,
    Int16sl,
    Int16ub,
    Int16ul,
    Int32sb,
    Int32sl,
    Int32ub,
    Int32ul,
    Int64sb,
    Int64sl,
    Int64ub,
    Int64ul,
    Padding,
    Struct,
)

ByteOrder = Literal["little", "big"]
ElfClass = Literal[32, 64]

CMember = tuple[str, "Construct[Any, Any]", int]


class CInts(NamedTuple):
    """The integer types of one byte order, named as the kernel names them."""

    u8: FormatField[int, int]
    u16: FormatField[int, int]
    u32: FormatField[int, int]
    u64: FormatField[int, int]
    s8: FormatField[int, int]
    s16: FormatField[int, int]
    s32: FormatField[int, int]
    s64: FormatField[int, int]


C_INTS: Mapping[ByteOrder, CInts] = MappingProxyType(
    {
        "little": CInts(Int8ul, Int16ul, Int32ul, Int64ul, Int8sl, Int16sl, Int32sl, Int64sl),
        "big": CInts(Int8ub, Int16ub, Int32ub, Int64ub, Int8sb, Int16sb, Int32sb, Int64sb),
    }
)

NUMPY_ORDER: Mapping[ByteOrder, Literal["<", ">"]] = MappingProxyType({"little": "<", "big": ">"})
"""The byte-order character of numpy's and struct's format strings."""


def signed(value: int, bits: int) -> int:
    """Return what the lowest bits of a word mean in two's complement; ``value`` has no others."""
    return value - (1 << bits) if value >> (bits - 1) else value


def align_up(size: int, alignment: int) -> int:
    """Return the least multiple of ``alignment`` (a power of two) that is not below ``size``."""
    return (size + alignment - 1) & ~(alignment - 1)


def c_struct(*members: CMember, alignment: int = 1) -> Struct:
    """Return a construct ``Struct`` with the padding that a C compiler puts between and after the members.

    Args:
        members: ``(name, construct, alignment)`` in the order of the C declaration; sizes must be fixed.
        alignment: least alignment of the whole structure, where it is more than its members'.
    """
    fields: list[Construct[Any, Any]] = []
    offset = 0
    for name, subcon, member_alignment in members:
        start = align_up(offset, member_alignment)
        if start > offset:
            fields.append(Padding(start - offset))
        fields.append(name / subcon)
        offset = start + subcon.sizeof()
        alignment = max(alignment, member_alignment)
    size = align_up(offset, alignment)
    if size > offset:
        fields.append(Padding(size - offset))
    return Struct(*fields)


def offsetof(struct: Struct, member: str) -> int:
    """Return the offset of ``member`` in bytes, as C's ``offsetof``.

    Raises:
        KeyError: the structure has no such member: a slip in the calling code.
    """
    offset = 0
    for subcon in struct.subcons:
        if subcon.name == member:
            return offset
        offset += subcon.sizeof()
    raise KeyError(member)
