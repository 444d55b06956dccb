"""Checks of layout numbers that are used as shifts, divisors and sizes: the dump tells them, so they may be wrong."""

from __future__ import annotations

from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import Layout

WORD_BITS = 64
PFN_END = 1 << 46
"""Above every page frame: physical addresses have at most 58 bits with pages of 4 KiB, 62 with those of 64 KiB."""


def bit_number(layout: Layout, name: str) -> int | None:
    """Return a constant that is a bit number in an unsigned long; None if it is not known.

    Raises:
        LayoutInvalid: it is not a bit number.
    """
    value = layout.find_constant(name)
    if value is not None and not 0 <= value < WORD_BITS:
        raise LayoutInvalid(f"NUMBER({name}) is {value}, expected 0 to {WORD_BITS - 1}")
    return value


def struct_size(layout: Layout, struct: str, at_most: int) -> int:
    """Return the size of a structure, 1 to ``at_most`` bytes.

    Raises:
        LayoutInvalid: it has another size.
        LayoutUnknown: it is not known.
    """
    size = layout.size(struct)
    if not 0 < size <= at_most:
        raise LayoutInvalid(f"SIZE({struct}) is {size:#x}, expected 1 to {at_most:#x}")
    return size


def physmem_bits(layout: Layout, page_shift: int) -> int | None:
    """Return MAX_PHYSMEM_BITS, bits of a physical address; None if it is not known.

    Raises:
        LayoutInvalid: it is not larger than PAGE_SHIFT, or larger than a word.
    """
    bits = layout.find_constant("MAX_PHYSMEM_BITS")
    if bits is not None and not page_shift < bits <= WORD_BITS:
        raise LayoutInvalid(f"NUMBER(MAX_PHYSMEM_BITS) is {bits}, expected {page_shift + 1} to {WORD_BITS}")
    return bits
