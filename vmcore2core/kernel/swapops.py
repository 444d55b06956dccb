"""Page-table entries that are neither present nor empty: a swap slot, or one of the kernel's special kinds.

Special kinds have the types from MAX_SWAPFILES on. That number depends on the kernel's configuration; the kernel's
functions and enumerators tell it.

References: include/linux/swap.h, include/linux/swapops.h, include/linux/leafops.h: softleaf_type() (Linux 4.18 to 7.2).
"""

from __future__ import annotations

from enum import Enum, auto

from vmcore2core.formats import swap as fmt
from vmcore2core.interfaces import Layout


class SoftLeaf(Enum):
    """The kind of an entry of a special type: the kernel's SOFTLEAF_*."""

    MIGRATION = auto()
    """Its offset has the page frame in its low bits; the page is in memory, and complete."""
    DEVICE_PRIVATE = auto()
    DEVICE_EXCLUSIVE = auto()
    """Like ``MIGRATION``: the page is in memory, but a device works on it."""
    HWPOISON = auto()
    MARKER = auto()
    UNKNOWN = auto()


def special_types(layout: Layout) -> dict[int, SoftLeaf]:
    """Return the kinds of special types, as far as this kernel tells them.

    MAX_SWAPFILES is 32 less their number; then they come in this order: hardware-poisoned, migration, device, marker.
    """
    top = 1 << fmt.MAX_SWAPFILES_SHIFT
    kinds: list[SoftLeaf] = []
    # Since Linux kernel commit 679d10331910 ("mm: introduce PTE_MARKER swap entry") and commit 6c287605fd56 ("mm:
    # remember exclusively mapped anonymous pages with PG_anon_exclusive") (both in v5.19).
    since_5_19 = layout.find_constant("PG_anon_exclusive") is not None
    if not since_5_19 and layout.find_constant("PG_uptodate") is None:
        return dict.fromkeys(range(top), SoftLeaf.UNKNOWN)  # nothing tells enumerators: it may well be there
    if since_5_19:
        kinds.append(SoftLeaf.MARKER)
    # mm/rmap.c has these with CONFIG_DEVICE_PRIVATE. Since Linux kernel commit b756a3b5e7ea ("mm: device exclusive
    # memory access") (in v5.14) there are two exclusive types, since commit c25465eb7630 ("mm: use single
    # SWP_DEVICE_EXCLUSIVE entry type") (in v6.15) one.
    if layout.find_symbol("make_device_exclusive_range") is not None:
        kinds += [SoftLeaf.DEVICE_EXCLUSIVE] * 2 + [SoftLeaf.DEVICE_PRIVATE] * 2
    elif layout.find_symbol("make_device_exclusive") is not None:
        kinds += [SoftLeaf.DEVICE_EXCLUSIVE, SoftLeaf.DEVICE_PRIVATE, SoftLeaf.DEVICE_PRIVATE]
    elif not since_5_19:
        return dict.fromkeys(range(top), SoftLeaf.UNKNOWN)  # older kernels do not tell whether they have device types
    if layout.find_symbol("migrate_pages") is not None:
        kinds += [SoftLeaf.MIGRATION] * (3 if since_5_19 else 2)
    if layout.find_symbol("memory_failure") is not None:
        kinds.append(SoftLeaf.HWPOISON)
    return {top - 1 - i: kind for i, kind in enumerate(kinds)}
