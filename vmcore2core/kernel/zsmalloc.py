"""zsmalloc, the allocator of zram and zswap: objects that may lie across two pages.

A handle is the address of a word with the object's page frame and index. The form of that word has changed between
kernels; the right form leads to an object that begins with its handle.

References: mm/zsmalloc.c: zs_obj_read_begin(), obj_to_location(), get_next_zpdesc(); mm/zpdesc.h (Linux 4.18 to 7.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.formats import swap as fmt
from vmcore2core.kernel.bounds import PFN_END, physmem_bits, struct_size
from vmcore2core.kernel.struct import Kernel, StructView

STRUCT_PAGE_MAX = 1 << 10
KNOWN_LINKS = 1 << 16
PHYSMEM_BITS = (52, 46, 48, 44, 56)  # MAX_POSSIBLE_PHYSMEM_BITS: x86-64's, then what other machines have


@dataclass(frozen=True, slots=True)
class SizeClass:
    """The members of ``struct size_class`` that tell where an object is; sizes in bytes."""

    size: int
    objs_per_zspage: int
    pages_per_zspage: int
    huge: bool


@dataclass(frozen=True, slots=True)
class _Word:
    """The form of the word behind a handle: bits below the page frame; of these, the lowest and the highest few."""

    below_pfn: int
    tag_bits: int = 0
    class_bits: int = 0  # the size class's number, or 0


@dataclass(frozen=True, slots=True)
class _Place:
    """The start of an object: its first page, as the nth of its zspage, the byte in it, zspage and size class."""

    page: StructView
    nth: int
    offset: int
    zspage: StructView
    size_class: SizeClass


class ZsPool:
    """One ``struct zs_pool``.

    Args:
        kernel: the kernel, with a layout that knows zsmalloc's types.
        address: of the pool.
        vmemmap: address of the ``struct page`` of page frame 0.
    """

    def __init__(self, kernel: Kernel, address: int, vmemmap: int) -> None:
        self.kernel = kernel
        self._vmemmap = vmemmap
        self._pool = kernel.view("zs_pool", address)
        self._page_size = kernel.memory.kernel_map.spec.page_size
        self._sizeof_page = struct_size(kernel.layout, "page", STRUCT_PAGE_MAX)
        self._classes: dict[int, SizeClass] = {}
        self._words: list[_Word] = []
        self._known: dict[int, StructView] = {}
        self._nr_classes = self._number_of_classes()

    def _number_of_classes(self) -> int:
        array = self.kernel.layout.member("zs_pool", "size_class").size
        return array // self.kernel.arch.pointer_size if array else 0

    def read(self, handle: int, size: int) -> bytes:
        """Return the first ``size`` bytes of an object.

        Raises:
            CorruptStructure: handle, object and zspage do not fit each other.
            MemoryFault: one of them cannot be read.
            LayoutUnknown, LayoutInvalid: a member is not known, or a number is impossible.
        """
        if not 0 < size <= self._page_size:
            raise CorruptStructure(f"an object of {size:#x} bytes, expected at most a page", handle, "zsmalloc handle")
        place = self._place(handle)
        offset = place.offset + (0 if place.size_class.huge else self.kernel.arch.pointer_size)
        if size > place.size_class.size:
            raise CorruptStructure(
                f"an object of {size:#x} bytes in a class of {place.size_class.size:#x}", handle, "zsmalloc handle"
            )
        first = min(size, self._page_size - offset)
        data = self._bytes(place.page, offset, first)
        if first < size:
            data += self._bytes(self._next(place), 0, size - first)
        return data

    def _place(self, handle: int) -> _Place:
        """Find an object by the form that found the previous ones; first, by the form whose object has the handle."""
        word = self.kernel.read_pointer(handle)
        if not self._words:
            self._words = self._forms()
        problem: Exception | None = None
        fitting: dict[_Word, _Place] = {}  # several, where the index is 0, or the size class the first
        for form in self._words:
            try:
                fitting[form] = self._by_word(word, form, handle)
            except (CorruptStructure, MemoryFault) as error:
                problem = problem or error
        if not fitting:
            raise CorruptStructure(f"it names no object: {problem}", handle, "zsmalloc handle")
        self._words = list(fitting)
        return next(iter(fitting.values()))

    def _forms(self) -> list[_Word]:
        page_bits, word_bits = self._page_size.bit_length() - 1, 8 * self.kernel.arch.pointer_size
        bits = physmem_bits(self.kernel.layout, page_bits)
        sizes = dict.fromkeys((*PHYSMEM_BITS, *((bits,) if bits else ())))
        below = [word_bits - (n - page_bits) for n in sizes]
        forms = [_Word(n, tag_bits=tags) for n in below for tags in fmt.OBJ_TAG_BITS]
        if word_bits == 64:
            forms += [_Word(n, class_bits=fmt.OBJ_CLASS_BITS) for n in below if n > fmt.OBJ_CLASS_BITS]
        return forms

    def _by_word(self, word: int, form: _Word, handle: int) -> _Place:
        """Return the object's place, if there is a zspage whose object of this index has this handle."""
        index_end = form.below_pfn - form.class_bits
        index = (word & ((1 << index_end) - 1)) >> form.tag_bits
        page = self.kernel.view("page", self._vmemmap + (word >> form.below_pfn) * self._sizeof_page)
        zspage = self.kernel.view("zspage", page.ulong("private"))
        if zspage.uint("magic", size=4) != fmt.ZSPAGE_MAGIC:
            raise CorruptStructure("it has no magic number 0x58", zspage.address, "zspage")
        number = zspage.uint("class", size=4)
        size_class = self._class(number)
        told, mask = word >> index_end, (1 << form.class_bits) - 1
        if (told ^ number) & mask:
            raise CorruptStructure(f"size class {told & mask}, expected {number}", handle, "zsmalloc handle")
        if index >= size_class.objs_per_zspage:
            raise CorruptStructure(
                f"index {index}, expected at most {size_class.objs_per_zspage} objects", handle, "zsmalloc handle"
            )
        nth, offset = divmod(size_class.size * index, self._page_size)
        found = self._huge_handles(page) if size_class.huge else iter((self._head(page, offset),))
        if handle not in found:
            raise CorruptStructure("the object there does not have this handle", handle, "zsmalloc handle")
        return _Place(page, nth, offset, zspage, size_class)

    def _head(self, page: StructView, offset: int) -> int:
        """Return the handle at the start of an object; its tag must say that the object is allocated."""
        raw = self._bytes(page, offset, self.kernel.arch.pointer_size)
        value = int.from_bytes(raw, self.kernel.arch.byte_order)
        return value & ~fmt.OBJ_ALLOCATED_TAG if value & fmt.OBJ_ALLOCATED_TAG else 0

    def _huge_handles(self, page: StructView) -> Iterator[int]:
        """Yield possible handles of a huge class's page, which are in ``struct page``."""
        for value in self._links(page):
            yield value & ~fmt.OBJ_ALLOCATED_TAG
            yield value

    def _links(self, page: StructView) -> Iterator[int]:
        """Yield possible links to the zspage's next page, the newest kernel's first.

        ``page->freelist`` until Linux kernel commit ffedd09fa9b0 ("zsmalloc: Stop using slab fields in struct page")
        (in v5.17), then ``page->index``, then ``zpdesc->next`` (v6.14).
        """
        word = self.kernel.arch.pointer_size
        for struct, member in (("zpdesc", "next"), ("page", "index"), ("page", "freelist")):
            found = self.kernel.layout.find_member(struct, member)
            if found is not None:
                yield self.kernel.uint(page.address + found.offset, word)

    def _next(self, place: _Place) -> StructView:
        """Return the page after an object's first one, if the zspage has the right number of pages from there on."""
        at = int(place.page.address)
        if at not in self._known:
            after = place.size_class.pages_per_zspage - place.nth - 1
            pages = list(islice(self._following(place), after + 1))
            if not pages or len(pages) != after:
                raise CorruptStructure("the zspage does not go on where an object does", place.page.address, "page")
            if len(self._known) >= KNOWN_LINKS:
                self._known.clear()
            self._known[at] = pages[0]
        return self._known[at]

    def _following(self, place: _Place) -> Iterator[StructView]:
        """Yield the pages behind an object's first one in its zspage; endless if they form a circle."""
        page: StructView | None = place.page
        while page is not None:
            page = next(self._successors(page, place.zspage), None)
            if page is not None:
                yield page

    def _successors(self, page: StructView, zspage: StructView) -> Iterator[StructView]:
        for link in self._links(page):
            frame, rest = divmod(link - self._vmemmap, self._sizeof_page)
            if rest or not 0 <= frame < PFN_END:
                continue
            found = self.kernel.view("page", link)
            if found.ulong("private") == zspage.address:
                yield found

    def _class(self, index: int) -> SizeClass:
        if index not in self._classes:
            if index >= self._nr_classes:
                wrong = f"size class {index}, expected {self._nr_classes}"
                raise CorruptStructure(wrong, self._pool.address, "zs_pool")
            word = self.kernel.arch.pointer_size
            address = self.kernel.read_pointer(self._pool.addr_of("size_class") + index * word)
            view = self.kernel.view("size_class", address)
            size, objects = view.uint("size", size=4), view.uint("objs_per_zspage", size=4)
            pages = view.uint("pages_per_zspage", size=4)
            if not 0 < size <= self._page_size or not 0 < pages <= fmt.ZS_PAGES_MAX or objects * size > pages << 16:
                raise CorruptStructure(f"{objects} objects of {size:#x} bytes in {pages} pages", address, "size_class")
            self._classes[index] = SizeClass(size, objects, pages, huge=objects == 1 and pages == 1)
        return self._classes[index]

    def _bytes(self, page: StructView, offset: int, size: int) -> bytes:
        frame = (page.address - self._vmemmap) // self._sizeof_page
        return self.kernel.memory.physical.read(frame * self._page_size + offset, size)
