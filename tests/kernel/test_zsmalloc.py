"""Objects of a zs_pool that is laid out by hand.

Tests kernel/bounds.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.builders.kernelimage import Offsets
from tests.builders.zspool import NEXT, PAGE, VMEMMAP, ZsImage
from vmcore2core.errors import CorruptStructure, LayoutInvalid, Vmcore2coreError
from vmcore2core.kernel.zsmalloc import ZsPool
from vmcore2core.memory.kernel import KernelMemory

DATA = [bytes([n]) * 20 + random.Random(n).randbytes(3000) for n in range(5)]


def pool_of(image: ZsImage) -> ZsPool:
    return ZsPool(image.kernel(), image.pool, VMEMMAP)


def filled(image: ZsImage) -> list[int]:
    """Fill a zspage of 4 pages with 5 objects, of which three lie across two pages."""
    image.size_class(200, 3264, 5, 4)
    pages = image.zspage(200)
    return [image.store(pages, 200, n, data) for n, data in enumerate(DATA)]


@pytest.mark.parametrize(
    ("offsets", "link"),
    [(NEXT, 32), ({"page": {"index": (32, 8)}}, 32), ({"page": {"freelist": (16, 8)}}, 16)],
    ids=["7.2", "6.1", "5.10"],
)
def test_objects_within_a_page_and_across_two(offsets: Offsets, link: int) -> None:
    image = ZsImage(offsets, link=link)
    handles = filled(image)
    pool = pool_of(image)
    assert [pool.read(handle, 3020) for handle in handles] == DATA
    assert pool.read(handles[1], 10) == DATA[1][:10]


@pytest.mark.parametrize("pfn_bits", [40, 34, 36])
@pytest.mark.parametrize("tag_bits", [0, 1, 2])
def test_how_the_word_behind_a_handle_is_made_up_is_told_by_the_object(pfn_bits: int, tag_bits: int) -> None:
    image = ZsImage(NEXT, pfn_bits=pfn_bits, tag_bits=tag_bits)
    handles = filled(image)
    pool = pool_of(image)
    assert [pool.read(handle, 3020) for handle in reversed(handles)] == DATA[::-1]


@pytest.mark.parametrize("tag_bits", [0, 1, 2])
def test_the_first_object_of_a_zspage_does_not_tell_the_tag_bits(tag_bits: int) -> None:
    image = ZsImage(NEXT, tag_bits=tag_bits)
    handles = filled(image)
    pool = pool_of(image)
    assert [pool.read(handle, 3020) for handle in handles] == DATA


@pytest.mark.parametrize("pfn_bits", [40, 34, 36])
def test_a_word_that_has_the_size_class_too(pfn_bits: int) -> None:
    """Since Linux 7.3."""
    image = ZsImage(NEXT, pfn_bits=pfn_bits, tag_bits=0, class_bits=9)
    handles = filled(image)
    pool = pool_of(image)
    assert [pool.read(handle, 3020) for handle in handles] == DATA
    image.words(handles[2], image.word(handles[2]) ^ 1 << 64 - pfn_bits - 9)
    with pytest.raises(CorruptStructure, match="names no object"):
        pool_of(image).read(handles[2], 3020)


@pytest.mark.parametrize(("tag_bits", "class_bits"), [(0, 9), (0, 0), (1, 0), (2, 0)])
def test_objects_of_the_smallest_class_do_not_tell_whether_the_word_has_the_class(
    tag_bits: int, class_bits: int
) -> None:
    image = ZsImage(NEXT, tag_bits=tag_bits, class_bits=class_bits)
    image.size_class(0, 32, 128, 1)
    pages = image.zspage(0)
    small = [image.store(pages, 0, n, bytes([n]) * 24) for n in (0, 1, 2, 5)]
    handles = filled(image)
    pool = pool_of(image)
    assert [pool.read(handle, 24) for handle in small] == [bytes([n]) * 24 for n in (0, 1, 2, 5)]
    assert [pool.read(handle, 3020) for handle in handles] == DATA


def test_an_object_of_a_whole_page_has_its_handle_in_struct_page() -> None:
    image = ZsImage(NEXT)
    image.size_class(254, PAGE, 1, 1)
    whole = random.Random(9).randbytes(PAGE)
    handle = image.store(image.zspage(254), 254, 0, whole)
    assert pool_of(image).read(handle, PAGE) == whole


def test_first_page_frame_of_an_object_is_that_where_it_starts() -> None:
    image = ZsImage(NEXT)
    handle = filled(image)[3]  # begins in the third page
    image.words(handle, image.word(handle) - (1 << 24))
    with pytest.raises(CorruptStructure, match="names no object"):
        pool_of(image).read(handle, 3020)


def _magic(image: ZsImage, handle: int) -> None:
    page = image.frames + 64 * (image.word(handle) >> 24)
    zspage = image.word(page + 40)
    image.words(zspage, image.word(zspage) ^ 1 << 14)


def _class(image: ZsImage, handle: int) -> None:
    page = image.frames + 64 * (image.word(handle) >> 24)
    zspage = image.word(page + 40)
    image.words(zspage, 300 << 5 | 0x58 << 14)


def _index(image: ZsImage, handle: int) -> None:
    image.words(handle, image.word(handle) | 7 << 1)


def _free(image: ZsImage, handle: int) -> None:
    page = image.word(handle) >> 24 << 12
    image.data[page + 3264 : page + 3272] = (handle & ~1).to_bytes(8, "little")


def _next(image: ZsImage, handle: int) -> None:
    image.words(image.frames + 64 * (image.word(handle) >> 24) + 32, VMEMMAP + 64 * 3 + 8)


def _other_zspage(image: ZsImage, handle: int) -> None:
    other = image.zspage(200)[1]
    image.words(image.frames + 64 * (image.word(handle) >> 24) + 32, VMEMMAP + 64 * (other >> 12))


def _leads(to: Callable[[int], int]) -> Callable[[ZsImage, int], None]:
    """Link the page of an object to another one of its zspage, whose pages follow each other in memory."""

    def spoil(image: ZsImage, handle: int) -> None:
        frame = image.word(handle) >> 24
        image.words(image.frames + 64 * frame + 32, VMEMMAP + 64 * to(frame))

    return spoil


def _class_size(image: ZsImage, _handle: int) -> None:
    image.size_class(200, 5000, 5, 4)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_magic, "no magic number 0x58"),
        (_class, "size class 300, expected 256"),
        (_index, "expected at most 5 objects"),
        (_free, "does not have this handle"),
        (_next, "the zspage does not go on"),
        (_other_zspage, "the zspage does not go on"),
        pytest.param(_leads(lambda frame: frame), "the zspage does not go on", id="to itself"),
        pytest.param(_leads(lambda frame: frame + 2), "the zspage does not go on", id="one too far"),
        (_class_size, "5 objects of 0x1388 bytes in 4 pages"),
    ],
)
def test_what_does_not_fit_is_one_sentence(spoil: Callable[[ZsImage, int], None], words: str) -> None:
    image = ZsImage(NEXT)
    handle = filled(image)[1]
    spoil(image, handle)
    with pytest.raises(CorruptStructure) as refused:
        pool_of(image).read(handle, 3020)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_pages_of_a_zspage_that_lead_back_are_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ZsImage(NEXT)
    handles = filled(image)
    first, last = (image.word(handle) >> 24 for handle in (handles[0], handles[4]))
    for behind in range(first, last):
        assert image.word(image.frames + 64 * behind + 32) == VMEMMAP + 64 * (behind + 1)
    image.words(image.frames + 64 * last + 32, VMEMMAP + 64 * first)
    reads = 0
    real = KernelMemory.read

    def counted(memory: KernelMemory, address: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return real(memory, address, size)

    pool = pool_of(image)
    monkeypatch.setattr(KernelMemory, "read", counted)
    with pytest.raises(CorruptStructure, match="does not go on"):
        pool.read(handles[1], 3020)
    assert reads < 100


def test_sizes_that_no_object_can_have() -> None:
    image = ZsImage(NEXT)
    handle = filled(image)[0]
    pool = pool_of(image)
    for size in (0, -1, PAGE + 1, 3265):
        with pytest.raises(CorruptStructure, match="an object of"):
            pool.read(handle, size)


@pytest.mark.parametrize(("name", "value"), [("MAX_PHYSMEM_BITS", -5), ("MAX_PHYSMEM_BITS", 1 << 40)])
def test_a_number_that_cannot_be_is_refused(name: str, value: int) -> None:
    image = ZsImage(NEXT)
    handle = filled(image)[0]
    image.table.constants[name] = value
    with pytest.raises(LayoutInvalid, match=name):
        pool_of(image).read(handle, 10)
    image.table.sizes["page"] = 0
    with pytest.raises(LayoutInvalid, match=r"SIZE\(page\) is 0x0"):
        pool_of(image)


def test_a_broken_pool_raises_nothing_else() -> None:
    image = ZsImage(NEXT)
    handles = filled(image)
    good, luck = bytes(image.data), random.Random(1)
    nr_refused = 0
    for _ in range(300):
        image.data[:] = good
        for _ in range(luck.choice((1, 20, 400))):
            image.data[luck.randrange(0x2000, 0x20000)] = luck.choice((0, 0xFF, luck.randrange(256)))
        pool = pool_of(image)
        for handle in handles:
            try:
                assert len(pool.read(handle, 3020)) == 3020
            except Vmcore2coreError:
                nr_refused += 1
    assert nr_refused > 100
