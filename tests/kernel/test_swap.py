"""Where swapped pages are, in a fake kernel: the swap cache, zswap, the swap area; and what cannot be.

Tests kernel/page_flags.py, kernel/page_structs.py, kernel/swap_cache.py, kernel/zswap.py, process/swapped.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cramjam
import numpy as np
import pytest

from tests.builders.kernelimage import EXPORT, MORE, TEXT, KernelImage, Offsets
from vmcore2core.addresses import SwapEntries
from vmcore2core.arch.i386.machine import ARCH as I386
from vmcore2core.errors import FormatError, UsageError
from vmcore2core.memory.pages import UserPageState as State
from vmcore2core.process.swapped import SwappedPages

PAGE = 4096
VMEMMAP = 0xFFFF_EA00_0000_0000
SLOTS = 64
SWAP: Offsets = {
    "swap_info_struct": {"flags": (0, 8), "max": (16, 4), "swap_file": (24, 8), "bdev": (32, 8)},
    "page": {"flags": (0, 8), "private": (40, 8), "compound_head": (8, 8)},
    "block_device": {"bd_disk": (8, 8)},
    "gendisk": {"disk_name": (12, 32)},
}
# As Linux 6.1 has zswap: a tree for each device.
RBTREE: Offsets = {
    "zswap_tree": {"rbroot": (0, 8)},
    "rb_root": {"rb_node": (0, 8)},
    "rb_node": {"rb_right": (8, 8), "rb_left": (16, 8)},
    "zswap_entry": {"rbnode": (8, 24), "offset": (32, 8), "length": (44, 4), "pool": (48, 8), "handle": (56, 8)}
    | {"value": (56, 8)},
    "zswap_pool": {"zpool": (0, 8), "tfm_name": (40, 128)},
    "zpool": {"driver": (0, 8), "pool": (8, 8), "evictable": (24, 1)},
    "zpool_driver": {"type": (0, 8)},
}
# As Linux 7.2 has it: many xarrays for each device.
XARRAYS: Offsets = {
    "zswap_entry": {"swpentry": (0, 8), "length": (8, 4), "pool": (16, 8), "handle": (24, 8)},
    "zswap_pool": {"zs_pool": (0, 8), "tfm_name": (80, 128)},
    "zs_pool": {"size_class": (0, 256 * 8)},
}
TEXT_PAGE = (b"swapped out, and compressible; " * 140)[:PAGE]


class Machine:
    """A kernel with one swap device, a partition, whose slots the tests fill."""

    def __init__(self, zswap: Offsets = RBTREE, devices: int = 1) -> None:
        self.image = image = KernelImage(EXPORT, MORE, SWAP, zswap, pages=120)
        table = image.table
        table.sizes |= {"xarray": 16, "address_space": 192}
        table.constants |= {"PG_uptodate": 2, "PG_anon_exclusive": 17}
        root = image.dentry(b"/")
        mount = image.mount(root)
        disk = image.make("gendisk", disk_name=b"vda\0")
        self.infos = []
        for i in range(devices):
            file = image.file(mount, image.dentry(b"vda%d" % (i + 1), root))
            bdev = image.make("block_device", bd_disk=disk)
            self.infos.append(image.make("swap_info_struct", flags=1 << 6 | 3, max=SLOTS, swap_file=file, bdev=bdev))
        self.space = image.alloc(192, 64)
        spaces = image.words(image.alloc(8), self.space)
        self.trees = image.alloc(64, 64)
        table.symbols |= {
            "vmemmap": VMEMMAP,
            "nr_swapfiles": image.write(image.alloc(4), struct.pack("<I", devices)),
            "swap_info": image.words(image.alloc(8 * devices), *self.infos),
            "swapper_spaces": spaces,
            "nr_swapper_spaces": image.write(image.alloc(4), struct.pack("<I", 1)),
            "zswap_trees": image.words(image.alloc(8 * devices), self.trees, *[0] * (devices - 1)),
            "migrate_pages": TEXT,
            "memory_failure": TEXT,
        }
        if zswap is XARRAYS:
            table.symbols["nr_zswap_trees"] = image.write(image.alloc(4), struct.pack("<I", 1))

    def zpool(self, kind: bytes, codec: bytes, *, evictable: bool = True) -> int:
        image = self.image
        driver = image.make("zpool_driver", type=image.string(kind))
        zpool = image.make("zpool", driver=driver, evictable=int(evictable))
        return image.make("zswap_pool", zpool=zpool, tfm_name=codec + b"\0")

    def entry(self, slot: int, data: bytes, pool: int, header: bytes = bytes(8)) -> int:
        at = self.image.alloc(len(header + data))
        self.image.write(at, header + data)
        return self.image.make("zswap_entry", offset=slot, length=len(data), pool=pool, handle=at)

    def tree(self, *entries: int, right: bool = True) -> None:
        """Link entries, each the right (or left) child of the one before it."""
        link = self.trees
        for entry in entries:
            self.image.words(link, entry + 8)
            link = entry + 8 + (8 if right else 16)

    def swap(self, *files: str) -> SwappedPages:
        return SwappedPages(self.image.kernel(), files)


def swap_entries(values: Iterable[int]) -> SwapEntries:
    return SwapEntries(np.array([*values], np.uint64))


def located(swap: SwappedPages, slots: Sequence[int], number: int = 0) -> list[State]:
    assert swap.space is not None
    entries = swap_entries([number << 58 | slot for slot in slots])
    return [State(state) for state in swap.space.locate(entries)[1].tolist()]


def read(swap: SwappedPages, slot: int, number: int = 0) -> bytes | None:
    assert swap.space is not None
    pages, good = swap.space.read(swap_entries([number << 58 | slot]))
    return pages[0].tobytes() if good[0] else None


def area(path: Path, pages: Mapping[int, bytes], slots: int = SLOTS) -> str:
    """Write a swap area as mkswap(8) does."""
    data = bytearray(slots * PAGE)
    struct.pack_into("<III", data, 1024, 1, slots - 1, 0)
    data[PAGE - 10 : PAGE] = b"SWAPSPACE2"
    for slot, content in pages.items():
        data[slot * PAGE : slot * PAGE + len(content)] = content
    path.write_bytes(data)
    return str(path)


def test_an_entry_that_is_not_known_names_no_slot() -> None:
    """0, where the architecture does not tell: slot 0 has the device's header."""
    swap = Machine().swap()
    assert located(swap, [0, 5, 0]) == [State.SWAPPED, State.SWAPPED_TO_DISK, State.SWAPPED]
    assert swap.problems == []


def test_a_page_on_disk_is_counted_and_comes_from_the_file_that_is_given(tmp_path: Path) -> None:
    machine = Machine()
    without = machine.swap()
    assert located(without, [5, 6]) == [State.SWAPPED_TO_DISK] * 2
    assert (without.problems, without.notices_since({})) == ([], [])
    given = machine.swap(area(tmp_path / "copy", {5: TEXT_PAGE}))
    assert located(given, [5, 6]) == [State.STORED] * 2
    assert given.notices_since({0: 0}) == [
        (
            "2 pages swapped to /vda1 come from copy: they are right if the machine did not swap after the dump and "
            "before that was copied"
        )
    ]
    assert read(given, 5) == TEXT_PAGE


def test_what_zswap_has_goes_before_what_the_disk_has(tmp_path: Path) -> None:
    machine = Machine()
    packed = bytes(cramjam.lz4.compress_block(TEXT_PAGE, store_size=False))
    machine.tree(
        machine.entry(3, packed, machine.zpool(b"zbud", b"lz4")),
        machine.entry(5, packed, machine.zpool(b"zbud", b"lz4", evictable=False), b""),
        machine.image.make("zswap_entry", offset=9, length=0, value=0x4142434445464748),
    )
    swap = machine.swap(area(tmp_path / "copy", dict.fromkeys((3, 5, 9, 10), b"old")))
    assert located(swap, [3, 5, 9, 10]) == [State.STORED] * 4
    assert [read(swap, slot) for slot in (3, 5)] == [TEXT_PAGE, TEXT_PAGE]
    assert read(swap, 9) == struct.pack("<Q", 0x4142434445464748) * 512
    assert read(swap, 10) == b"old".ljust(PAGE, b"\0")
    assert swap.problems == []


def test_the_tree_is_descended_to_both_sides() -> None:
    machine = Machine()
    image = machine.image
    entries = [image.make("zswap_entry", offset=n, length=0, value=n) for n in (20, 10, 30, 15, 25)]
    e20, e10, e30, e15, e25 = entries
    image.words(machine.trees, e20 + 8)
    for parent, right, left in ((e20, e30, e10), (e10, e15, 0), (e30, 0, e25)):
        image.words(parent + 16, right + 8 if right else 0, left + 8 if left else 0)
    swap = machine.swap()
    assert [read(swap, n) for n in (20, 10, 30, 15, 25)] == [struct.pack("<Q", n) * 512 for n in (20, 10, 30, 15, 25)]
    assert located(swap, [11, 12]) == [State.SWAPPED_TO_DISK] * 2


def test_a_page_that_zswap_has_and_that_cannot_be_read_never_comes_from_the_disk(tmp_path: Path) -> None:
    machine = Machine()
    machine.tree(
        machine.entry(3, b"junk" * 9, machine.zpool(b"zbud", b"lz4")),
        machine.entry(4, b"data" * 9, machine.zpool(b"z3fold", b"lz4")),
        machine.entry(5, b"data" * 9, machine.zpool(b"zbud", b"rot13")),
        machine.entry(6, bytes(5000), machine.zpool(b"zbud", b"lz4")),
    )
    swap = machine.swap(area(tmp_path / "copy", dict.fromkeys((3, 4, 5, 6), b"stale")))
    assert located(swap, [3, 4, 5, 6]) == [State.STORED, *[State.SWAP_UNREADABLE] * 2, State.STORED]
    assert [read(swap, n) for n in (3, 4, 5, 6)] == [None] * 4
    said = "; ".join(swap.problems)
    for words in ("'rot13', which cannot be decoded", "are in z3fold", "length 0x1388, expected at most a page"):
        assert words in said


def test_a_tree_that_is_a_circle_ends(tmp_path: Path) -> None:
    machine = Machine()
    entry = machine.image.make("zswap_entry", offset=3, length=0)
    machine.tree(entry, entry)
    swap = machine.swap(area(tmp_path / "copy", {}))
    assert located(swap, [7]) == [State.SWAP_UNREADABLE]
    assert "more than 128 levels" in swap.problems[0]


def test_zswap_of_xarrays_is_asked_for_the_slot_and_says_whose_it_is(tmp_path: Path) -> None:
    machine = Machine(XARRAYS)
    image = machine.image
    mine = image.make("zswap_entry", swpentry=3, length=10, pool=image.make("zswap_pool", tfm_name=b"rot13\0"))
    others = image.make("zswap_entry", swpentry=1 << 58 | 4, length=10)
    image.words(machine.trees + 8, image.xa_node(0, {3: mine, 4: others}))
    swap = machine.swap(area(tmp_path / "copy", {2: b"disk"}))
    assert located(swap, [2, 3, 4]) == [State.STORED, State.SWAP_UNREADABLE, State.SWAP_UNREADABLE]
    assert "device 1, expected 0" in "; ".join(swap.problems)
    image.table.symbols["nr_zswap_trees"] = image.write(image.alloc(4), bytes(4))
    swap = machine.swap()
    assert located(swap, [2]) == [State.SWAP_UNREADABLE]
    assert "slot 0x2, expected 0 trees" in swap.problems[0]


def test_a_page_in_the_swap_cache_goes_before_all(tmp_path: Path) -> None:
    machine = Machine()
    image = machine.image
    page = image.page(b"cached")
    struct_page = VMEMMAP + 64 * (page >> 12)
    image.words(machine.space + 16, image.xa_node(0, {3: struct_page}))
    frames = image.alloc(64 * 120, PAGE)  # where vmemmap is mapped to
    for offset in range(0, 64 * 120, PAGE):
        image.map(VMEMMAP + offset, (frames - TEXT + offset) | 3)
    image.words(frames + 64 * (page >> 12), 1 << 2)
    image.words(frames + 64 * (page >> 12) + 40, 3)
    swap = machine.swap(area(tmp_path / "copy", {3: b"stale"}))
    assert swap.space is not None
    paddr, state = swap.space.locate(swap_entries([3, 4]))
    assert (paddr[0], state.tolist()) == (page, [State.PRESENT, State.STORED])


def test_slots_that_the_device_lacks_and_devices_that_are_none() -> None:
    swap = Machine().swap()
    assert located(swap, [SLOTS - 1, SLOTS]) == [State.SWAPPED_TO_DISK, State.TABLE_BROKEN]
    assert located(swap, [5], number=20) == [State.SPECIAL]
    assert "which /vda1 lacks" in swap.problems[0]


def test_a_file_that_ends_too_early_is_told_from_no_file(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    area(path, {})
    path.write_bytes(path.read_bytes()[: 10 * PAGE])
    assert located(Machine().swap(str(path)), [9, 10]) == [State.STORED, State.SWAP_CUT_OFF]


def test_a_file_must_be_of_a_device_and_of_one_alone(tmp_path: Path) -> None:
    one, two = Machine(), Machine(devices=2)
    good, other = area(tmp_path / "good", {5: b"x"}), area(tmp_path / "other", {}, slots=65)
    for machine, names, words in (
        (one, [other], "has 65 slots, which fits no swap area that was in use: 0 (/vda1) of 64 slots"),
        (one, [good, good], "fits no swap area"),
        (one, [f"1={good}"], "fits no swap area for number 1"),
        (two, [good], f"as several swap areas: 0 (/vda1) of 64 slots, 1 (/vda2) of 64 slots; say NUMBER={good}"),
    ):
        with pytest.raises(UsageError) as refused:
            machine.swap(*names)
        assert words in str(refused.value)
    assert located(two.swap(f"1={good}"), [5], number=1) == [State.STORED]
    assert located(two.swap(f"1={good}"), [5], number=0) == [State.SWAPPED_TO_DISK]
    (tmp_path / "text").write_text("no swap area\n" * 1000)
    with pytest.raises(FormatError):
        one.swap(str(tmp_path / "text"))
    one.image.table.symbols.pop("nr_swapfiles")
    with pytest.raises(UsageError, match="swapped pages cannot be looked for"):
        one.swap(good)


def test_special_entries_of_a_7_2_kernel() -> None:
    machine = Machine()
    machine.image.table.symbols["make_device_exclusive"] = TEXT
    machine.image.table.constants["MAX_PHYSMEM_BITS"] = 46
    swap = machine.swap()
    assert swap.space is not None
    # SWP_MIG_YOUNG and SWP_MIG_DIRTY are above the page frame: bits 34 and 35.
    values = [25 << 58 | 0x123, 27 << 58 | 3 << 34 | 0x123, 30 << 58 | 0x40, 25 << 58 | 1 << 35]
    paddr, state = swap.space.locate(swap_entries(values))
    assert paddr.tolist() == [0x123000, 0x123000, 0x40000, 0]
    assert state.tolist() == [State.PRESENT] * 4
    others = {28: State.DEVICE_PRIVATE, 24: State.HWPOISON}
    assert [located(swap, [7], number=n)[0] for n in others] == list(others.values())
    assert located(swap, [1, 2, 4, 8], number=31) == [State.UNTOUCHED, State.HWPOISON, State.GUARD, State.SPECIAL]


def test_a_page_frame_beyond_any_memory_is_no_page() -> None:
    swap = Machine().swap()
    assert swap.space is not None
    paddr, state = swap.space.locate(swap_entries([28 << 58 | 1 << 52 | 5]))
    assert (paddr.tolist(), state.tolist()) == ([0], [State.TABLE_BROKEN])


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("constants", "PG_uptodate", -5),
        ("constants", "PG_uptodate", 64),
        ("constants", "MAX_PHYSMEM_BITS", -5),
        ("constants", "MAX_PHYSMEM_BITS", 1 << 32),
        ("sizes", "page", 0),
        ("sizes", "address_space", 1 << 63),
        ("sizes", "swap_table", 0),
        ("sizes", "swap_table", 4),
        ("sizes", "swap_table", 1 << 40),
        ("sizes", "swap_cluster_info", 1 << 64),
    ],
)
def test_numbers_that_cannot_be_are_one_sentence(kind: str, name: str, value: int) -> None:
    machine = Machine()
    table = machine.image.table
    if name.startswith("swap_"):
        table.offsets["swap_cluster_info"] = {"table": (8, 8)}
        table.offsets["swap_info_struct"]["cluster_info"] = (40, 8)
        table.sizes |= {"swap_table": 4096, "swap_cluster_info": 16}
    getattr(table, kind)[name] = value
    swap = machine.swap()
    assert swap.space is None or located(swap, [3, 4]) == [State.SWAPPED] * 2
    assert len(swap.problems) == 1
    assert "cannot be looked for: " in swap.problems[0]
    assert f"({name}) is " in swap.problems[0]


def test_a_table_of_clusters_tells_pages_shadows_and_zeros(tmp_path: Path) -> None:
    """Words as mm/swap_table.h (v7.2) has them: 0b10 marks a page frame, bit 0 a shadow, bit 59 zeros."""
    machine = Machine()
    image = machine.image
    table = image.table
    table.offsets["swap_cluster_info"] = {"table": (8, 8)}
    table.offsets["swap_info_struct"]["cluster_info"] = (40, 8)
    table.sizes |= {"swap_table": 8 * 32, "swap_cluster_info": 16}
    page, late = image.page(b"cached"), image.page(b"still to come")
    frames = image.alloc(64 * 120, PAGE)
    for offset in range(0, 64 * 120, PAGE):
        image.map(VMEMMAP + offset, (frames - TEXT + offset) | 3)
    for address, flags, slot in ((page, 1 << 2, 33), (late, 0, 34)):
        image.words(frames + 64 * (address >> 12), flags)
        image.words(frames + 64 * (address >> 12) + 40, slot)
    words = [0, 3 << 60 | page >> 12 << 2 | 2, late >> 12 << 2 | 2, 0x1235, 1 << 59 | 1, page >> 12 << 2 | 2]
    second = image.words(image.alloc(8 * 32), *words)
    clusters = image.words(image.alloc(32), 0, 0, 0, second)
    image.words(machine.infos[0] + 40, clusters)
    swap = machine.swap(area(tmp_path / "copy", {}))
    assert swap.space is not None
    paddr, state = swap.space.locate(swap_entries(range(32, 38)))
    assert paddr[1] == page
    assert state.tolist() == [
        State.STORED,
        State.PRESENT,
        State.STORED,
        State.STORED,
        State.ZERO,
        State.SWAP_UNREADABLE,  # the struct page there says that it is of slot 33, and of a folio of one page
    ]
    assert "it is not page 4 of the folio" in "; ".join(swap.problems)
    assert located(swap, [5]) == [State.STORED]  # its cluster has no table


@pytest.mark.parametrize("masked", [False, True])
def test_pages_of_a_large_folio_that_the_cache_has(masked: bool) -> None:
    """A folio of 4 pages at slots 8 to 11; page 3 is of no folio any more."""
    machine = Machine()
    image = machine.image
    if masked:  # v7.2: GENMASK(63, order + 6) | 1
        offsets = image.table.offsets["page"]
        offsets["compound_info"] = offsets.pop("compound_head")
    pages = [image.page() for _ in range(8)]
    head = next(page for page in pages if page >> 12 & 3 == 0)
    frames = image.alloc(64 * 120, PAGE)
    for offset in range(0, 64 * 120, PAGE):
        image.map(VMEMMAP + offset, (frames - TEXT + offset) | 3)
    first = VMEMMAP + 64 * (head >> 12)
    image.words(frames + 64 * (head >> 12), 1 << 2)
    image.words(frames + 64 * (head >> 12) + 40, 8)
    for i in (1, 2):
        image.words(frames + 64 * ((head >> 12) + i) + 8, (-1 << 8) % (1 << 64) | 1 if masked else first | 1)
    image.words(machine.space + 16, image.xa_node(0, dict.fromkeys((8, 9, 10, 11, 7), first)))
    swap = machine.swap()
    assert swap.space is not None
    paddr, state = swap.space.locate(swap_entries([7, 8, 9, 10, 11]))
    assert paddr.tolist() == [0, head, head + PAGE, head + 2 * PAGE, 0]
    assert state.tolist() == [State.SWAP_UNREADABLE, *[State.PRESENT] * 3, State.SWAP_UNREADABLE]


def test_swapped_pages_of_a_32_bit_kernel_are_not_looked_for(tmp_path: Path) -> None:
    """Its swp_entry_t has the type in bits 26 to 30: read as one of 64 bits, each would be of the first device."""
    kernel = replace(Machine().image.kernel(), arch=I386)
    pages = SwappedPages(kernel)
    assert pages.space is None
    assert pages.problems == [
        "swapped pages cannot be looked for: where a swp_entry_t of 32 bits has its type is not known"
    ]
    (tmp_path / "swap").write_bytes(bytes(PAGE))
    with pytest.raises(UsageError, match="swp_entry_t of 32 bits"):
        SwappedPages(kernel, [str(tmp_path / "swap")])
