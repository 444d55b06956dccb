"""A small zs_pool in a fake kernel: size classes, zspages and handles, as mm/zsmalloc.c (v7.3) lays them out."""

from __future__ import annotations

import struct

from tests.builders.kernelimage import TEXT, KernelImage, Offsets, Table
from vmcore2core.interfaces import Member

PAGE = 4096
VMEMMAP = 0xFFFF_EA00_0000_0000
ZSMALLOC: Offsets = {
    "page": {"flags": (0, 8), "private": (40, 8)},
    "zs_pool": {"size_class": (8, 256 * 8)},
    "size_class": {"size": (40, 4), "objs_per_zspage": (44, 4), "pages_per_zspage": (48, 4)},
}
NEXT: Offsets = {"zpdesc": {"next": (32, 8)}}
BITS = {"class": (5, 9), "magic": (14, 8)}  # of zspage's first word: huge:1, fullness:4, class:9, magic:8


class BitTable(Table):
    """A table that knows zspage's bit fields, too."""

    def member(self, struct: str, path: str) -> Member | None:
        if struct == "zspage" and path in BITS:
            at, width = BITS[path]
            return Member(0, self.name, 4, bit_offset=at, bit_size=width)
        return super().member(struct, path)


class ZsImage(KernelImage):
    """A kernel image whose struct pages are at ``VMEMMAP``, with one pool.

    Args:
        offsets: more structures.
        link: byte of ``struct page`` that links a zspage's pages.
        pfn_bits: of the page frame in the word behind a handle; the index has the rest, above the tag.
        tag_bits: lowest bits of that word.
        class_bits: between page frame and index, for the size class.
    """

    def __init__(
        self, *offsets: Offsets, link: int = 32, pfn_bits: int = 40, tag_bits: int = 1, class_bits: int = 0
    ) -> None:
        super().__init__(pages=160)
        self.table = BitTable(ZSMALLOC, *offsets, sizes={"page": 64})
        self.link_at, self.below_pfn, self.tag_bits, self.class_bits = link, 64 - pfn_bits, tag_bits, class_bits
        self.frames = self.alloc(64 * 160, PAGE)
        for offset in range(0, 64 * 160, PAGE):
            self.map(VMEMMAP + offset, (self.frames - TEXT + offset) | 3)
        self.pool = self.alloc(8 + 256 * 8, 64)
        self.classes: dict[int, tuple[int, int, int]] = {}

    def size_class(self, index: int, size: int, objects: int, pages: int) -> int:
        """Make ``pool->size_class[index]``."""
        self.classes[index] = size, objects, pages
        address = self.make("size_class", size=size, objs_per_zspage=objects, pages_per_zspage=pages)
        self.words(self.pool + 8 + 8 * index, address)
        return address

    def zspage(self, index: int) -> list[int]:
        """Make an empty zspage of a class, and return the physical addresses of its pages."""
        huge = self.classes[index][1:] == (1, 1)
        zspage = self.write(self.alloc(64, 64), struct.pack("<I", int(huge) | index << 5 | 0x58 << 14))
        pages = [self.page() for _ in range(self.classes[index][2])]
        for page, after in zip(pages, [*pages[1:], None], strict=True):
            at = self.frames + 64 * (page >> 12)
            self.words(at + 40, zspage)
            self.words(at + self.link_at, 0 if after is None else VMEMMAP + 64 * (after >> 12))
        return pages

    def store(self, pages: list[int], class_index: int, index: int, data: bytes) -> int:
        """Put object ``index`` into a zspage, and return its handle."""
        size, objects, count = self.classes[class_index]
        page, offset = divmod(size * index, PAGE)
        told = (class_index & (1 << self.class_bits) - 1) << self.below_pfn - self.class_bits | index << self.tag_bits
        handle = self.words(self.alloc(8), pages[page] >> 12 << self.below_pfn | told)
        if (objects, count) == (1, 1):
            self.words(self.frames + 64 * (pages[0] >> 12) + self.link_at, handle)
            raw = data
        else:
            raw = struct.pack("<Q", handle | 1) + data
        first = raw[: PAGE - offset]
        self.data[pages[page] + offset : pages[page] + offset + len(first)] = first
        rest = raw[len(first) :]
        if rest:
            self.data[pages[page + 1] : pages[page + 1] + len(rest)] = rest
        return handle

    def kept(self, data: bytes) -> int:
        """Store one object in a zspage of its own, and return its handle."""
        if len(data) == PAGE:
            self.size_class(254, PAGE, 1, 1)
            return self.store(self.zspage(254), 254, 0, data)
        self.size_class(200, 3264, 5, 4)
        return self.store(self.zspage(200), 200, 1, data)
