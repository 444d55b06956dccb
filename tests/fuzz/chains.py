"""Pointer chains of the kernel: maple tree, VMA list, XArray, lists, dentries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.builders.kernelimage import EXPORT, MORE, OLD, TEXT, KernelImage
from tests.fuzz.harness import Choices, Harness, Parts
from vmcore2core.kernel import fs, mm
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import Kernel
from vmcore2core.kernel.xarray import XArray

RANGES = [(0x40_0000 + 0x3000 * i, 0x40_0000 + 0x3000 * i + 0x2000) for i in range(18)]


class Image:
    """One of each chain, and where its words are."""

    def __init__(self) -> None:
        image = self.image = KernelImage(EXPORT, MORE, pages=128)
        self.mm = image.make("mm_struct")
        vmas = [
            image.make("vm_area_struct", vm_start=start, vm_end=end, vm_flags=0x71, vm_mm=self.mm)
            for start, end in RANGES
        ]
        leaves = []
        for at in (0, 6, 12):
            part = [(start, end, vma) for (start, end), vma in zip(RANGES, vmas, strict=True)][at : at + 6]
            leaves.append(image.maple_leaf(part, RANGES[at - 1][1] if at else 0, last=at == 12))
        pivots = [RANGES[5][1] - 1, RANGES[11][1] - 1, (1 << 64) - 1]
        root = image.maple_node(3, pivots, leaves, 2)
        image.words(self.mm + image.offset("mm_struct", "mm_mt") + 8, root & ~4 | 2)
        self.xarray = image.alloc(16)
        below = image.xa_node(0, {i: TEXT + 0x100 * i for i in range(5)})
        image.words(self.xarray + 8, image.xa_node(6, {0: below, 3: 0x123 << 1 | 1}))
        self.head = image.alloc(16)
        tasks = [image.make("task_struct", pid=i + 1) for i in range(6)]
        image.link(self.head, *(task + image.offset("task_struct", "tasks") for task in tasks))
        top = image.dentry(b"/")
        vfsmount = image.mount(top)
        self.file = image.file(vfsmount, image.dentry(b"name", image.dentry(b"folder", top)))
        self.end = image.alloc(16)


IMAGE = Image()


def seeds() -> Sequence[bytes]:
    return [b"", bytes(48), bytes(range(96))]


def run(data: bytes) -> str:
    choices, image = Choices(data), KernelImage(*([OLD] if data[:1] == b"\xff" else [EXPORT, MORE]), pages=128)
    image.data[:] = IMAGE.image.data
    first = 0x2000
    while choices.left:
        at = first + 8 * choices.below((IMAGE.end - TEXT - first) // 8)
        near = int.from_bytes(image.data[at : at + 8], "little")
        pointers = TEXT + first + 8 * choices.below(0x800) if choices.below(3) == 0 else near
        image.data[at : at + 8] = choices.word(pointers).to_bytes(8, "little")
    parts, kernel = Parts(), image.kernel()
    for walk in WALKS:
        with parts.one():
            for _ in walk(kernel):
                pass
    return parts.result


def vmas(kernel: Kernel) -> Iterator[object]:
    return mm.for_each_vma(kernel.view("mm_struct", IMAGE.mm))


def tasks(kernel: Kernel) -> Iterator[object]:
    return list_for_each_entry(kernel, IMAGE.head, "task_struct", "tasks")


def entries(kernel: Kernel) -> Iterator[object]:
    return XArray(kernel.view("xarray", IMAGE.xarray)).runs(0, (1 << 64) - 1)


def path(kernel: Kernel) -> Iterator[object]:
    yield fs.file_path(kernel, kernel.view("file", IMAGE.file), fs.Mounts(kernel))


WALKS = (vmas, tasks, entries, path)


HARNESS = Harness("chains", seeds, run, 2048)
