"""VMAs by tree and by list, and the fields of struct mm_struct."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from tests.builders.kernelimage import EXPORT, MORE, OLD, KernelImage, Offsets
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel import mm

RANGES = [(0x40_0000, 0x40_1000), (0x40_1000, 0x40_3000), (0x7FFF_0000_0000, 0x7FFF_0002_1000)]


def in_tree(ranges: list[tuple[int, int]]) -> tuple[KernelImage, int, list[int]]:
    image = KernelImage()
    vmas = [image.make("vm_area_struct", vm_start=start, vm_end=end) for start, end in ranges]
    owner = image.make("mm_struct")
    # The index has the good ranges, whatever the VMAs say of themselves.
    image.vma_tree(owner, [(start, end, vma) for (start, end), vma in zip(RANGES, vmas, strict=False)])
    for vma in vmas:
        image.set("vm_area_struct", vma, vm_mm=owner)
    return image, owner, vmas


def in_list(ranges: list[tuple[int, int]]) -> tuple[KernelImage, int, list[int]]:
    image = KernelImage(OLD)
    vmas = [image.make("vm_area_struct", vm_start=start, vm_end=end) for start, end in ranges]
    for vma, after in pairwise([*vmas, 0]):
        image.set("vm_area_struct", vma, vm_next=after)
    owner = image.make("mm_struct", mmap=vmas[0] if vmas else 0)
    return image, owner, vmas


BUILDERS = pytest.mark.parametrize("build", [in_tree, in_list], ids=["maple tree", "list"])


def walked(image: KernelImage, owner: int) -> tuple[list[int], CorruptStructure | None]:
    found: list[int] = []
    try:
        found.extend(int(vma.address) for vma in mm.for_each_vma(image.kernel().view("mm_struct", owner)))
    except CorruptStructure as error:
        return found, error
    return found, None


@BUILDERS
def test_vmas_come_in_address_order(build: type) -> None:
    image, owner, vmas = build(RANGES)
    assert walked(image, owner) == (vmas, None)


@BUILDERS
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param((0x40_0800, 0x40_2000), id="overlaps the one before"),
        pytest.param((0x1000, 0x2000), id="below the one before"),
        pytest.param((0x50_0000, 0x50_0000), id="empty"),
        pytest.param((0x50_0000, 0x4F_0000), id="ends before it begins"),
        pytest.param((0x50_0010, 0x50_1000), id="not aligned"),
        pytest.param((0x50_0000, 0x50_1234), id="end not aligned"),
        pytest.param((0x50_0000, 0xFFFF_FFFF_FFFF_F000), id="beyond what a process can map"),
    ],
)
def test_a_vma_that_cannot_be_one_ends_the_walk_after_the_good_ones(build: type, bad: tuple[int, int]) -> None:
    image, owner, vmas = build([RANGES[0], bad, RANGES[2]])
    found, error = walked(image, owner)
    assert found == vmas[:1]
    assert error is not None
    assert (error.address, error.where) == (vmas[1], "vm_area_struct")
    assert f"{bad[0]:#x}-{bad[1]:#x}" in str(error)


@BUILDERS
def test_a_vma_that_cannot_be_read_ends_the_walk_after_the_good_ones(build: type) -> None:
    image, owner, vmas = build(RANGES)
    if build is in_list:
        image.set("vm_area_struct", vmas[0], vm_next=0xDEAD_0000_0000_0100)
    else:
        image.vma_tree(owner, [(*RANGES[0], vmas[0]), (*RANGES[1], 0xDEAD_0000_0000_0100)])
    found, error = walked(image, owner)
    assert found == vmas[:1]
    assert error is not None
    assert "0xdead000000000100" in str(error)


def test_an_mm_without_mappings_has_no_vmas() -> None:
    image, owner, _ = in_list([])
    assert walked(image, owner) == ([], None)


def test_a_list_that_comes_back_ends_where_it_does() -> None:
    image, owner, vmas = in_list(RANGES)
    image.set("vm_area_struct", vmas[2], vm_next=vmas[0])
    found, error = walked(image, owner)
    assert found == vmas
    assert error is not None
    assert (error.address, error.where, error.offset) == (vmas[2] + 16, "vm_area_struct.vm_next", 16)


def test_heap_and_stack_are_named_as_in_proc_maps() -> None:
    image = KernelImage()
    owner = image.make("mm_struct", start_brk=0x50_0000, brk=0x52_0000, start_stack=0x7FFF_0002_0000)
    kernel = image.kernel()

    def name(start: int, end: int) -> str:
        vma = image.make("vm_area_struct", vm_start=start, vm_end=end)
        kernel = image.kernel()
        return mm.vma_name(kernel.view("mm_struct", owner), kernel.view("vm_area_struct", vma))

    assert kernel.view("mm_struct", owner).ulong("brk") == 0x52_0000
    assert name(0x50_0000, 0x52_1000) == "[heap]"
    assert name(0x7FFF_0000_0000, 0x7FFF_0002_1000) == "[stack]"
    assert name(0x60_0000, 0x61_0000) == ""
    assert name(0x4F_0000, 0x50_0000) == ""


@pytest.mark.parametrize(("word", "form"), [(8, "<6Q"), (4, "<6I")])
def test_saved_auxv_ends_with_its_null_entry(word: int, form: str) -> None:
    vector = struct.pack(form, 6, 4096, 33, 0x7000, 0, 0)
    image = KernelImage()
    owner = image.make("mm_struct", saved_auxv=vector + struct.pack(form, *[0xFF] * 6))
    assert mm.saved_auxv(image.kernel().view("mm_struct", owner), word) == vector


def test_saved_auxv_without_an_end_is_not_known() -> None:
    image = KernelImage()
    owner = image.make("mm_struct", saved_auxv=b"\1" * 416)
    assert mm.saved_auxv(image.kernel().view("mm_struct", owner), 8) is None


def test_saved_auxv_of_a_layout_that_does_not_tell_its_size_is_not_known() -> None:
    image = KernelImage(EXPORT)
    owner = image.make("mm_struct")
    assert mm.saved_auxv(image.kernel().view("mm_struct", owner), 8) is None


def test_saved_auxv_of_a_size_that_no_kernel_has_is_not_read() -> None:
    image = KernelImage()
    image.table.offsets["mm_struct"]["saved_auxv"] = (512, 1 << 32)
    owner = image.make("mm_struct")
    assert mm.saved_auxv(image.kernel().view("mm_struct", owner), 8) is None


PERCPU = {"mm_struct": {"rss_stat": (800, 160)}, "percpu_counter": {"count": (8, 8), "counters": (32, 8)}}
SPLIT = {"mm_struct": {"rss_stat.count": (800, 32)}, "task_struct": {"rss_stat.count": (1600, 16), "mm": (912, 8)}}


def with_counters(offsets: Offsets, *counts: int) -> tuple[KernelImage, int]:
    """Return an image with an mm whose four counters (file, anonymous, swapped, shared) have been added up so far."""
    image = KernelImage(EXPORT, MORE, offsets)
    owner = image.make("mm_struct")
    stride, at = (40, 8) if offsets is PERCPU else (8, 0)
    for i, count in enumerate(counts):
        image.write(owner + 800 + stride * i + at, struct.pack("<q", count))
    return image, owner


def test_rss_is_what_all_cpus_counted() -> None:
    """Linux 6.2 and later: a CPU adds its own part to the whole now and then, and may have taken pages away."""
    image, owner = with_counters(PERCPU, 100, 1000, 1 << 20, 10)
    image.table.sizes["percpu_counter"] = 40
    shift = 0x1000
    offsets, nr_cpu_ids = image.words(image.alloc(24), 0, shift, 2 * shift), image.words(image.alloc(8), 3)
    image.table.symbols |= {"__per_cpu_offset": offsets, "nr_cpu_ids": nr_cpu_ids}
    area = image.alloc(3 * shift, 4096)
    for counter in range(4):
        image.words(owner + 800 + 40 * counter + 32, area + 4 * counter)
        for cpu, own in enumerate((3, -2, 5)):
            image.write(area + 4 * counter + cpu * shift, struct.pack("<i", own))
    kernel = image.kernel()
    assert mm.get_mm_rss(kernel.view("mm_struct", owner), []) == 100 + 1000 + 10 + 3 * (3 - 2 + 5)


def test_rss_without_smp_is_the_whole_alone() -> None:
    image, owner = with_counters(PERCPU, 100, 1000, 1 << 20, -10)
    image.table.sizes["percpu_counter"] = 40
    del image.table.offsets["percpu_counter"]["counters"]
    assert mm.get_mm_rss(image.kernel().view("mm_struct", owner), []) == 1100


def test_rss_has_what_threads_have_yet_to_add() -> None:
    """Before Linux 6.2; a thread of another mm (vfork) keeps its own."""
    image, owner = with_counters(SPLIT, 100, 1000, 1 << 20, 10)
    tasks = [image.make("task_struct", mm=at) for at in (owner, owner, owner + 64)]
    for task, own in zip(tasks, ((1, 2, 3, 4), (-5, 60, 0, 0), (1000,) * 4), strict=True):
        image.write(task + 1600, struct.pack("<4i", *own))
    kernel = image.kernel()
    threads = [kernel.view("task_struct", task) for task in tasks]
    assert mm.get_mm_rss(kernel.view("mm_struct", owner), threads) == 1110 + 1 + 2 + 4 - 5 + 60


def test_rss_is_not_known_without_its_counters() -> None:
    image = KernelImage()
    assert mm.get_mm_rss(image.kernel().view("mm_struct", image.make("mm_struct")), []) is None


def test_vm_flags_are_those_of_the_header() -> None:
    """include/linux/mm.h, Linux 7.2."""
    assert (mm.VM_READ, mm.VM_WRITE, mm.VM_EXEC, mm.VM_SHARED) == (1, 2, 4, 8)
    assert (mm.VM_MAYSHARE, mm.VM_PFNMAP, mm.VM_IO) == (0x80, 0x400, 0x4000)
    assert (mm.VM_DONTDUMP, mm.VM_MIXEDMAP) == (0x04000000, 0x10000000)
    assert "vm_next" not in {**EXPORT["vm_area_struct"], **MORE["vm_area_struct"]}
