"""Memory tags: which pages have them, by VM_MTE and PG_arch_2, and the tags of swapped pages in mte_pages."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.builders.kernelimage import EXPORT, MORE, KernelImage, Table
from tests.corefile.snapshots import PAGE, vma
from vmcore2core.arch.capabilities import Tags as TagsOfMachine
from vmcore2core.arch.spec import PageTableSpec, TagSpec
from vmcore2core.arch.x86_64.machine import X86_64
from vmcore2core.interfaces import KernelView
from vmcore2core.kernel.mm import VM_HUGETLB
from vmcore2core.kernel.struct import Kernel
from vmcore2core.memory.pages import Pages, UserPageState
from vmcore2core.memory.region import Region
from vmcore2core.process.model import TagRun, Vma
from vmcore2core.process.tags import Tags

VM_MTE, PG_ARCH_2, MEMTAG = 1 << 36, 24, 0x7000_0002
START = 0x7F00_0000_0000
PRESENT, STORED = UserPageState.PRESENT, UserPageState.STORED


class TagsOf(TagsOfMachine):
    """Tags as told."""

    def __init__(self, spec: TagSpec | None) -> None:
        self._spec = spec

    def spec(self, kernel: KernelView) -> TagSpec | None:
        return self._spec


class Tagging(X86_64):
    """An architecture with tags: the fake kernel is of x86-64."""

    tags = TagsOf(TagSpec(VM_MTE, PG_ARCH_2, "MTE", MEMTAG, "mte_pages"))


@dataclass
class Mapped:
    """What ``Tags`` asks of ``UserMemory``: one region's pages, as (address, place, state)."""

    region: Region
    spec: PageTableSpec
    pages: list[tuple[int, int, UserPageState]]
    regions: list[Region] = field(init=False)

    def __post_init__(self) -> None:
        self.regions = [self.region]

    def known(self, region: Region) -> Iterator[Pages]:
        assert region == self.region
        vaddr, place, state = zip(*self.pages, strict=True)
        yield Pages(np.array(vaddr, np.uint64), np.array(state, np.uint8), np.array(place, np.uint64))


class AllSymbols(Table):
    """kallsyms with two static symbols of one name."""

    arrays: tuple[int, ...] = ()

    def all_symbols(self, name: str) -> tuple[int, ...]:
        return self.arrays if name == "mte_pages" else super().all_symbols(name)


class Machine:
    """A kernel with page structures for 64 page frames, and with two arrays named mte_pages."""

    def __init__(self) -> None:
        self.image = KernelImage()
        self.arch = Tagging()
        table = AllSymbols(EXPORT, {**MORE, "page": {"flags": (0, 8)}}, sizes={"page": 64})
        table.offsets["xarray"] = {"xa_head": (8, 8)}
        table.offsets["xa_node"] = {"shift": (0, 1), "slots": (40, 512)}
        self.vmemmap = self.image.alloc(64 * 64, 64)
        table.symbols["vmemmap"] = self.vmemmap
        self.hibernation, self.swapped = self.image.alloc(16), self.image.alloc(16)
        table.arrays = (self.hibernation, self.swapped)
        self.table = self.image.table = table

    def tag(self, *frames: int) -> None:
        """Set PG_mte_tagged of page frames."""
        for pfn in frames:
            self.image.words(self.vmemmap + 64 * pfn, 1 << PG_ARCH_2 | 0x17)

    def keep(self, tags: Mapping[int, bytes], array: int | None = None) -> None:
        """Put tags into mte_pages by swap slot; entries are pointers."""
        slots = {slot: self.image.write(self.image.alloc(128), raw) for slot, raw in tags.items()}
        self.image.words(array or self.swapped, 0, self.image.xa_node(0, slots))

    def tags(self, pages: list[tuple[int, int, UserPageState]], mapping: Vma | None = None) -> Tags:
        kernel = self.image.kernel()
        kernel = Kernel(self.arch, kernel.memory, kernel.layout)
        mapping = mapping or vma(START, START + 16 * PAGE, vm_flags=VM_MTE | 3)
        memory = Mapped(Region(mapping.start, mapping.end), kernel.memory.kernel_map.spec, pages)
        return Tags(kernel, [mapping], memory)  # type: ignore[arg-type]


def in_memory(*frames: int) -> list[tuple[int, int, UserPageState]]:
    return [(START + PAGE * i, PAGE * pfn, PRESENT) for i, pfn in enumerate(frames)]


def swapped(*slots: int) -> list[tuple[int, int, UserPageState]]:
    return [(START + PAGE * i, slot, STORED) for i, slot in enumerate(slots)]


def test_pages_with_the_flag_are_counted_and_said() -> None:
    machine = Machine()
    machine.tag(3, 4, 9, 20)
    found = machine.tags(in_memory(9, 4, 5, 3, 30, 4))
    assert (found.nr_lost, found.runs, found.problem) == (4, [], None)
    assert "memory tags (MTE) of 4 pages are left out" in (found.notice or "")


def test_memory_of_other_mappings_has_no_tags() -> None:
    machine = Machine()
    machine.tag(3)
    assert machine.tags(in_memory(3), vma(START, START + PAGE, vm_flags=3)).notice is None
    not_dumped = vma(START, START + PAGE, vm_flags=VM_MTE | 3, dumped=False)
    assert machine.tags(in_memory(3), not_dumped).notice is None
    machine.arch.tags = TagsOf(None)
    assert machine.tags(in_memory(3)).notice is None


def test_where_nothing_tells_a_page_counts_as_tagged() -> None:
    machine = Machine()
    huge = vma(START, START + PAGE, vm_flags=VM_MTE | VM_HUGETLB | 3)
    assert machine.tags(in_memory(5, 6), huge).nr_lost == 2
    assert machine.tags(in_memory(5, 1 << 30)).nr_lost == 1  # no page structure is there
    machine.arch.tags = TagsOf(TagSpec(VM_MTE, None, "MTE", MEMTAG, "mte_pages"))
    assert machine.tags(in_memory(5, 6)).nr_lost == 2


def test_tags_of_swapped_pages_are_in_runs() -> None:
    machine = Machine()
    tags = {slot: bytes([slot]) * 128 for slot in (5, 6, 9)}
    machine.keep(tags)
    found = machine.tags([*swapped(5, 6, 7), (START + 4 * PAGE, 9, STORED)])
    at = vma(START, START + 2 * PAGE)
    assert found.runs[0] == TagRun(at.start, at.end, tags[5] + tags[6], MEMTAG)
    assert [(run.start, run.tags) for run in found.runs[1:]] == [(START + 4 * PAGE, tags[9])]
    assert found.nr_lost == 1  # slot 7 has none


def test_two_arrays_of_that_name_in_use_tell_nothing() -> None:
    machine = Machine()
    machine.keep({5: b"5" * 128})
    machine.keep({5: b"6" * 128}, machine.hibernation)
    found = machine.tags(swapped(5))
    assert (found.runs, found.nr_lost) == ([], 1)
    machine.table.arrays = ()
    assert machine.tags(swapped(5)).nr_lost == 1


@pytest.mark.parametrize("broken", ["pointer", "node"])
def test_broken_records_are_one_sentence_and_no_tags_are_written(broken: str) -> None:
    machine = Machine()
    machine.keep({5: b"5" * 128})
    if broken == "node":
        machine.image.words(machine.swapped, 0, 0xDEAD_0000_0000_0002)
    else:
        machine.image.words(machine.image.word(machine.swapped + 8) - 2 + 40 + 8 * 5, 0xDEAD_0000_0000_0000)
    found = machine.tags([*swapped(5), (START + 4 * PAGE, 3 * PAGE, PRESENT)])
    assert (found.runs, found.nr_lost) == ([], 0)
    said = found.broken if broken == "node" else found.notice
    assert (said or "").startswith("which pages have memory tags is not known, and none are written: ")


def test_without_page_structures_it_is_said() -> None:
    machine = Machine()
    machine.table.offsets["page"]["flags"] = (57, 8)
    assert "OFFSET(page.flags) is 0x39, expected 0 to 0x38" in (machine.tags(in_memory(3)).notice or "")
    del machine.table.symbols["vmemmap"]
    assert "vmemmap" in (machine.tags(in_memory(3)).notice or "")


def test_an_array_whose_nodes_are_all_one_is_asked_for_no_more_than_is_wanted() -> None:
    machine = Machine()
    tags = machine.image.write(machine.image.alloc(128), b"5" * 128)
    node = machine.image.xa_node(0, dict.fromkeys(range(64), tags))
    for shift in range(6, 60, 6):
        node = machine.image.xa_node(shift, dict.fromkeys(range(64), node))
    machine.image.words(machine.swapped, 0, node)
    found = machine.tags(swapped(5, 1 << 40, 1 << 58 | 3))
    assert [run.tags for run in found.runs] == [b"5" * 128 * 3]


def test_pages_of_16_kib_have_512_bytes_of_tags() -> None:
    machine = Machine()
    machine.keep({5: struct.pack("<16Q", *range(16)) * 4})
    kernel = machine.image.kernel()
    kernel = Kernel(machine.arch, kernel.memory, kernel.layout)
    mapping = vma(START, START + (1 << 14), vm_flags=VM_MTE)
    spec = kernel.memory.kernel_map.spec._replace(page_size=1 << 14)
    memory = Mapped(Region(mapping.start, mapping.end), spec, [(START, 5, STORED)])
    (run,) = Tags(kernel, [mapping], memory).runs  # type: ignore[arg-type]
    assert (run.end - run.start, len(run.tags)) == (1 << 14, 512)
