"""Swap: the header of a swap area, swp_entry_t, and the kernel's tables of swapped pages.

Sources of truth: include/linux/swap.h (union swap_header), include/linux/{swapops,leafops}.h, mm/swap_table.h,
mm/{zsmalloc,zswap,zbud}.c, drivers/block/zram/zram_drv.h (Linux 4.20 to 7.2).
"""

from __future__ import annotations

from construct import Array, Bytes, Struct

from vmcore2core.formats._cabi import C_INTS, ByteOrder, c_struct

# union swap_header: info begins behind the first 1024 bytes, the magic ends the first page.
SWAP_HEADER_INFO = 1024
SWAP_MAGIC = b"SWAPSPACE2"
SWAP_HEADER_VERSION = 1


def swap_header_info(order: ByteOrder) -> Struct:
    """Return ``info`` of union swap_header, up to its padding."""
    u32 = C_INTS[order].u32
    return c_struct(
        ("version", u32, 4),
        ("last_page", u32, 4),
        ("nr_badpages", u32, 4),
        ("sws_uuid", Array(16, C_INTS[order].u8), 1),
        ("sws_volume", Bytes(16), 1),
    )


# swp_entry_t of a 64-bit kernel, and of an XArray's value: BITS_PER_XA_VALUE less MAX_SWAPFILES_SHIFT.
MAX_SWAPFILES_SHIFT = 5
SWP_TYPE_SHIFT = 63 - MAX_SWAPFILES_SHIFT
SWP_OFFSET_MASK = (1 << SWP_TYPE_SHIFT) - 1

SWAP_ADDRESS_SPACE_SHIFT = 14
"""Slots of one address_space of the swap cache, of one tree of zswap: ZSWAP_ADDRESS_SPACE_SHIFT."""

SWP_BLKDEV = 1 << 6  # swap_info_struct.flags: a partition, not a file

# pte_marker: the offset of a PTE marker entry.
PTE_MARKER_UFFD_WP = 1 << 0
PTE_MARKER_POISONED = 1 << 1
PTE_MARKER_GUARD = 1 << 2

# Swap table, since Linux 6.18; flags in the word's top bits since the count and the zero flag are there.
SWP_TB_PFN_MARK_MASK, SWP_TB_PFN_MARK, SWP_TB_PFN_SHIFT = 0b11, 0b10, 2
SWP_TB_FLAGS_BITS = 5
SWP_TB_PFN_MASK = (1 << (64 - SWP_TB_FLAGS_BITS)) - 1
SWP_TB_ZERO_FLAG = 1 << (64 - SWP_TB_FLAGS_BITS)
SWP_TB_POINTER_MASK = 0b111
SWP_TB_BAD = ((1 << 64) - 1) & ~0b111

# zsmalloc.
ZSPAGE_MAGIC = 0x58
OBJ_ALLOCATED_TAG = 1
OBJ_TAG_BITS = (0, 1, 2)  # of the word behind a handle: none since Linux 7.x, 2 in 6.2 and 6.3 with CONFIG_ZPOOL
OBJ_CLASS_BITS = 9  # of that word, above the index: since Linux 7.3, where a word has 64 bits (ZS_OBJ_CLASS_BITS)
ZS_PAGES_MAX = 16  # ZS_MAX_PAGES_PER_ZSPAGE at its largest (CONFIG_ZSMALLOC_CHAIN_SIZE)

ZRAM_COMP_PRIORITY_MASK = 3
