"""User memory over hand-made page tables.

Tests memory/pagetable.py, memory/physical.py, memory/region.py, memory/mapped.py.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.builders.paging import PROTNONE, PSE, RW, US, FlatContainer, P, PhysicalImage
from vmcore2core.addresses import PhysAddr, PhysAddrs, SwapEntries, U8Array, U64Array, UserAddr
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers.base import PageState
from vmcore2core.errors import NotMapped, PageExcluded
from vmcore2core.memory.mapped import MappedPages
from vmcore2core.memory.pages import Pages, UserPageState
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import StateRun, UserMemory, _append_runs

BASE = 0x7F00_0000_0000


class Keys:
    """VMCOREINFO of a 4-level kernel at its link address."""

    def symbol(self, name: str) -> int | None:
        return {"swapper_pg_dir": 0xFFFFFFFF81000000, "_stext": 0xFFFFFFFF81000000}.get(name)

    def number(self, name: str) -> int | None:
        return {"phys_base": 0, "pgtable_l5_enabled": 0}.get(name)

    def string(self, key: str) -> str | None:
        return None


SPEC = ARCH.paging.kernel_map(Keys()).spec


def user_memory(
    image: PhysicalImage, *regions: Region, states: dict[int, PageState] | None = None
) -> tuple[UserMemory, FlatContainer]:
    container = FlatContainer(bytes(image.data), states)
    return UserMemory(PhysicalMemory(container), SPEC, PhysAddr(image.ROOT), regions), container


def region(pages: int, start: int = BASE, **more: object) -> Region:
    return Region(UserAddr(start), UserAddr(start + pages * 4096), **more)  # type: ignore[arg-type]


def pages_of(memory: UserMemory, start: int, end: int) -> dict[int, bytes]:
    return {
        int(v): page.tobytes()
        for vaddr, pages in memory.batches([(start, end)])
        for v, page in zip(vaddr, pages, strict=True)
    }


def test_mapped_pages_are_read_and_untouched_ones_count_as_zero() -> None:
    image = PhysicalImage(16)
    image.map(BASE, image.page(b"first") | P | US)
    image.map(BASE + 0x3000, image.page(b"fourth") | P | US | RW)
    area = region(5)
    memory, _ = user_memory(image, area)
    survey = memory.survey(area)
    assert survey.counts == Counter({UserPageState.ZERO: 3, UserPageState.PRESENT: 2})
    assert survey.unknown == ()
    found = pages_of(memory, area.start, area.end)
    assert {v: page.rstrip(b"\0") for v, page in found.items()} == {BASE: b"first", BASE + 0x3000: b"fourth"}


def test_prot_none_page_is_present_with_and_without_inverted_address() -> None:
    image = PhysicalImage(16)
    plain, inverted = image.page(b"plain"), image.page(b"inverted")
    image.map(BASE, plain | PROTNONE | RW | US)
    image.map(BASE + 0x1000, (~inverted & 0x000FFFFFFFFFF000) | PROTNONE | RW | US)
    area = region(2)
    memory, _ = user_memory(image, area)
    found = pages_of(memory, area.start, area.end)
    assert [page.rstrip(b"\0") for page in found.values()] == [b"plain", b"inverted"]


def test_huge_page_is_cut_at_the_region() -> None:
    image = PhysicalImage(1100)
    huge = 512 * 4096
    for i in range(512):
        image.data[huge + i * 4096 : huge + i * 4096 + 2] = i.to_bytes(2, "little")
    image.map_2m(BASE, huge | P | US | PSE | 1 << 12)  # bit 12 is PAT in a huge entry, not an address bit
    area = region(3, BASE + 0x5000)
    memory, _ = user_memory(image, area)
    found = pages_of(memory, area.start, area.end)
    assert {v: int.from_bytes(page[:2], "little") for v, page in found.items()} == {
        BASE + 0x5000: 5,
        BASE + 0x6000: 6,
        BASE + 0x7000: 7,
    }


def test_gigabyte_page_maps_to_its_own_frames() -> None:
    image = PhysicalImage(16)
    image.map_1g(BASE, 1 << 30 | P | US | PSE)
    area = region(2, BASE + 0x200_0000)
    memory, _ = user_memory(image, area)
    survey = memory.survey(area)
    assert survey.counts[UserPageState.NOT_IN_DUMP] == 2  # the machine of this test ends below 1 GiB
    assert [(r.start, r.end, r.state) for r in survey.unknown] == [(area.start, area.end, UserPageState.NOT_IN_DUMP)]


def test_swapped_excluded_and_missing_pages_are_told_apart_in_runs() -> None:
    image = PhysicalImage(32)
    pages = [image.page(bytes([i + 1])) for i in range(3)]
    for i, paddr in enumerate(pages):
        image.map(BASE + i * 4096, paddr | P | US)
    image.map(BASE + 0x3000, 0x0123456000 << 9 & ~0x101)  # a swap entry: neither present nor PROT_NONE
    image.map(BASE + 0x4000, 0x0123457000 << 9 & ~0x101)
    image.map(BASE + 0x5000, 0x4000_0000 | P | US)
    area = region(6)
    memory, _ = user_memory(image, area, states={pages[1] >> 12: PageState.EXCLUDED, pages[2] >> 12: PageState.ZERO})
    survey = memory.survey(area)
    assert [((r.start - BASE) >> 12, (r.end - BASE) >> 12, r.state) for r in survey.unknown] == [
        (1, 2, UserPageState.EXCLUDED),
        (3, 5, UserPageState.SWAPPED),
        (5, 6, UserPageState.NOT_IN_DUMP),
    ]
    assert survey.counts[UserPageState.ZERO] == 1
    assert list(pages_of(memory, area.start, area.end)) == [BASE]


def test_a_table_that_is_not_in_the_dump_hides_only_its_own_range() -> None:
    image = PhysicalImage(32)
    image.map(BASE, image.page(b"lost") | P | US)
    image.map(BASE + (2 << 20), image.page(b"kept") | P | US)
    lost_table = image.table_at(BASE, (39, 30, 21))
    area = region(1024)
    memory, _ = user_memory(image, area, states={lost_table >> 12: PageState.MISSING})
    survey = memory.survey(area)
    assert [(r.start, r.end, r.state) for r in survey.unknown] == [
        (BASE, BASE + (2 << 20), UserPageState.TABLE_MISSING)
    ]
    assert list(pages_of(memory, area.start, area.end)) == [BASE + (2 << 20)]


def test_a_table_that_maps_itself_ends_as_broken_and_not_in_a_flood() -> None:
    image = PhysicalImage(8)
    for slot in range(512):
        image.set_entry(image.ROOT, slot, image.ROOT | P | US)
    container = FlatContainer(bytes(image.data))
    batches = list(walk(PhysicalMemory(container), SPEC, PhysAddr(image.ROOT), whole_address_space()))
    assert {int(kind) for batch in batches for kind in batch.kind} == {RunKind.BAD}
    assert container.pages_read < 10


def test_tables_that_lead_in_a_circle_over_two_levels_end_as_broken() -> None:
    image = PhysicalImage(8)
    middle = image.page()
    for slot in range(512):
        image.set_entry(image.ROOT, slot, middle | P | US)
        image.set_entry(middle, slot, image.ROOT | P | US)
    container = FlatContainer(bytes(image.data))
    batches = list(walk(PhysicalMemory(container), SPEC, PhysAddr(image.ROOT), whole_address_space()))
    assert {int(kind) for batch in batches for kind in batch.kind} == {RunKind.BAD}
    assert container.pages_read < 2000


def whole_address_space() -> Ranges:
    return Ranges(np.array([0], np.uint64), np.array([1 << 48], np.uint64))


def test_a_vast_sparse_mapping_costs_only_its_tables() -> None:
    image = PhysicalImage(64)
    for i in range(10):
        image.map(BASE + i * (1 << 36), image.page(bytes([i + 1])) | P | US)
    area = region((16 << 40) >> 12, BASE - (8 << 40))
    memory, container = user_memory(image, area)
    survey = memory.survey(area)
    assert survey.counts[UserPageState.PRESENT] == 10
    assert container.pages_read < 30_000  # 4096 windows of 4 GiB, a few tables each


class Cache:
    """A file of which page 11 is cached and page 12 is swapped; it ends behind page 13."""

    def __init__(self, paddr: int) -> None:
        self.paddr = paddr

    def lookup(self, first: int, last: int) -> Pages:
        rows = [
            (11, self.paddr, UserPageState.PRESENT),
            (12, 0, UserPageState.SWAPPED),
            *((i, 0, UserPageState.BEYOND_FILE) for i in range(14, last + 1)),
        ]
        table = np.array([row for row in rows if first <= row[0] <= last], np.uint64).reshape(-1, 3)
        return Pages(table[:, 0], table[:, 2].astype(np.uint8), table[:, 1])


def test_what_the_page_table_says_goes_before_the_page_cache() -> None:
    image = PhysicalImage(32)
    image.map(BASE, image.page(b"private copy") | P | US)
    cached = image.page(b"cached")
    area = region(5, zero_fill=False, pgoff=10, backing=Cache(cached))
    image.map(BASE + 0x1000, image.page(b"own") | P | US)
    memory, _ = user_memory(image, area)
    assert {v: p.rstrip(b"\0") for v, p in pages_of(memory, area.start, area.end).items()} == {
        BASE: b"private copy",
        BASE + 0x1000: b"own",
    }
    survey = memory.survey(area)
    assert [((r.start - BASE) >> 12, (r.end - BASE) >> 12, r.state) for r in survey.unknown] == [
        (2, 3, UserPageState.SWAPPED),
        (3, 4, UserPageState.NOT_CACHED),
        (4, 5, UserPageState.BEYOND_FILE),
    ]


def test_page_cache_fills_in_what_was_not_mapped() -> None:
    image = PhysicalImage(32)
    cached = image.page(b"cached")
    area = region(2, zero_fill=False, pgoff=10, backing=Cache(cached))
    image.map(BASE, image.page(b"mapped") | P | US)
    memory, _ = user_memory(image, area)
    assert [p.rstrip(b"\0") for p in pages_of(memory, area.start, area.end).values()] == [b"mapped", b"cached"]
    assert memory.read(BASE + 0xFFE, 8) == b"\0\0cached"


def test_many_ranges_of_a_mapping_take_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose pages are there by turns has tens of thousands; those between them must not come along."""
    image = PhysicalImage(400)
    frames = [image.page(b"%d" % i) for i in range(300)]
    for i, frame in enumerate(frames):
        image.map(BASE + i * 4096, frame | P | US)
    large = region(1 << 20)  # too large to be walked with its neighbours
    beyond = region(4, large.end + 4096, zero_fill=False, pgoff=10, backing=Cache(frames[0]))
    memory, _ = user_memory(image, large, beyond)
    assert memory.mapped.group(large) is None
    walks = Counter[str]()
    walk_ranges = MappedPages._walk

    def counted(self: MappedPages, starts: U64Array, ends: U64Array) -> Pages:
        walks["walks"] += 1
        return walk_ranges(self, starts, ends)

    monkeypatch.setattr(MappedPages, "_walk", counted)
    ranges = [(BASE + i * 4096, BASE + (i + 1 + (i == 200)) * 4096) for i in range(0, 300, 2)]
    ranges += [(beyond.start + 4096, beyond.start + 8192), (beyond.start + 12288, beyond.end)]
    found = {
        int(v): page.tobytes().rstrip(b"\0")
        for vaddr, pages in memory.batches(ranges)
        for v, page in zip(vaddr, pages, strict=True)
    }
    expected = {BASE + i * 4096: b"%d" % i for i in sorted([*range(0, 300, 2), 201])}
    assert found == expected | {beyond.start + 4096: b"0"}
    assert list(found) == sorted(found)
    assert walks["walks"] <= 2


def test_read_gives_none_rather_than_bytes_that_are_not_known() -> None:
    image = PhysicalImage(32)
    image.map(BASE, image.page(b"here") | P | US)
    image.map(BASE + 0x1000, 0x246 << 20)
    memory, _ = user_memory(image, region(3))
    assert memory.read(BASE, 4) == b"here"
    assert memory.read(BASE + 0x2000, 4) == b"\0\0\0\0"
    assert memory.read(BASE + 0xFFE, 4) is None
    assert memory.read(BASE + 0x2FFE, 4) is None
    assert memory.read(BASE - 2, 4) is None


def test_damage_found_on_reading_is_remembered_for_the_next_survey() -> None:
    image = PhysicalImage(32)
    paddr = image.page(b"bad") | P | US
    image.map(BASE, paddr)
    area = region(1)
    memory, container = user_memory(image, area)
    assert memory.survey(area).unknown == ()
    container.damaged_on_reading = {paddr >> 12}
    assert pages_of(memory, area.start, area.end) == {}
    assert [r.state for r in memory.survey(area).unknown] == [UserPageState.DAMAGED]
    assert memory.with_regions((area,)).survey(area).unknown == ()  # which is another memory, and has not read it


class Slots:
    """A swap space that knows the first entry alone, and has no page; it keeps what it is asked."""

    def __init__(self, first: int) -> None:
        self.first, self.asked = first, list[int]()

    def entries(self, ptes: U64Array, sizes: U64Array) -> SwapEntries:
        return SwapEntries(np.where(np.arange(len(ptes)) == 0, np.uint64(self.first), np.uint64(0)))

    def in_slots(self, ptes: U64Array, sizes: U64Array) -> NDArray[np.bool_] | None:
        raise NotImplementedError

    def locate(self, entries: SwapEntries) -> tuple[PhysAddrs, U8Array]:
        self.asked += entries.tolist()
        return PhysAddrs(np.zeros(len(entries), np.uint64)), np.full(len(entries), UserPageState.SWAPPED, np.uint8)

    def read(self, entries: SwapEntries) -> tuple[U8Array, NDArray[np.bool_]]:
        raise NotImplementedError


def test_swap_entries_count_up_within_a_huge_page_unless_they_are_not_known() -> None:
    image = PhysicalImage(16)
    image.map_2m(BASE, 0x246 << 20)
    image.map_2m(BASE + 0x20_0000, 0x248 << 20)
    area, swap = region(3 + 512, BASE + 0x1F_D000), Slots(0x1000)
    memory = UserMemory(PhysicalMemory(FlatContainer(bytes(image.data))), SPEC, PhysAddr(image.ROOT), (area,), swap)
    assert memory.survey(area).counts == Counter({UserPageState.SWAPPED: 515, UserPageState.ZERO: 0})
    assert swap.asked == [0x11FD, 0x11FE, 0x11FF, *[0] * 512]


def test_a_read_of_a_page_that_does_not_decode_is_none_from_the_first_time_on() -> None:
    image = PhysicalImage(32)
    paddr = image.page(b"bad") | P | US
    image.map(BASE, paddr)
    memory, container = user_memory(image, region(2))
    container.damaged_on_reading = {paddr >> 12}
    assert [memory.read(BASE, 16), memory.read(BASE, 16), memory.read(BASE + 0xFFC, 8)] == [None, None, None]
    assert memory.read(BASE + 0x1000, 8) == bytes(8)


@pytest.mark.parametrize("size", [-1, 1 << 25, 1 << 62])
def test_a_read_of_an_absurd_size_is_none(size: int) -> None:
    memory, _ = user_memory(PhysicalImage(32), region(1))
    assert memory.read(BASE, size) is None


def test_translate_names_the_level_where_it_ends() -> None:
    image = PhysicalImage(32)
    image.map(BASE, image.page() | P)
    physical = PhysicalMemory(FlatContainer(bytes(image.data)))
    with pytest.raises(NotMapped, match="pte entry is 0x0"):
        translate(physical, SPEC, PhysAddr(image.ROOT), BASE + 0x1000)
    with pytest.raises(NotMapped, match=r"pgd entry is 0x0|p4d entry is 0x0"):
        translate(physical, SPEC, PhysAddr(image.ROOT), 0)


def test_excluded_page_raises_and_names_its_address() -> None:
    image = PhysicalImage(8)
    physical = PhysicalMemory(FlatContainer(bytes(image.data), {3: PageState.EXCLUDED}))
    with pytest.raises(PageExcluded, match="0x3000"):
        physical.read(0x2FFC, 8)


def test_a_run_ends_where_the_state_or_the_address_jumps() -> None:
    runs: list[StateRun] = []
    vaddr = np.array([0x1000, 0x2000, 0x3000, 0x5000], np.uint64)
    _append_runs(runs, vaddr, np.array([1, 1, 2, 2], np.uint8), 0x1000)
    assert [(run.start, run.end, int(run.state)) for run in runs] == [
        (0x1000, 0x3000, 1),
        (0x3000, 0x4000, 2),
        (0x5000, 0x6000, 2),
    ]


def test_mapped_pages_are_counted_to_a_bound_and_what_has_too_many_tables_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small pages, a large one, a swapped one and an untouched one; without a budget all that a table spans."""
    image = PhysicalImage(16)
    image.map(BASE, image.page(b"first") | P | US)
    image.map(BASE + 0x1000, 0x2 << 12)
    image.map(BASE + 0x3000, image.page(b"fourth") | P | US)
    image.map_2m(BASE + 0x20_0000, P | US | PSE)
    areas = region(4), region(512, BASE + 0x20_0000)
    memory, _ = user_memory(image, *areas)
    assert memory.resident_pages() == memory.mapped.count(areas) == 2 + 512
    assert memory.resident_pages([areas[1].start]) == 2
    assert memory.mapped.count([*areas], stop=1) > 1
    monkeypatch.setattr("vmcore2core.memory.pagetable.TABLES_ALWAYS", 0)
    monkeypatch.setattr("vmcore2core.memory.pagetable.TABLES_PER_FRAME", 0)
    assert memory.mapped.count(areas) > 514
