"""Files on disk that have pages of a process which are not in memory: clean pages of private mappings.

References: include/linux/fs.h: inode_get_mtime() (Linux 7.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from vmcore2core.elf.build_id import build_id
from vmcore2core.errors import MemoryFault
from vmcore2core.interfaces import ByteOrder
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.filebacking import MTIMES
from vmcore2core.process.model import AbsentReason, OnDisk, Vma
from vmcore2core.process.sysroot import mapped


def files_on_disk(
    vmas: Sequence[Vma],
    memory: UserMemory,
    view_at: Callable[[int], StructView],
    elf_class: int,
    order: ByteOrder,
) -> Iterator[OnDisk]:
    """Yield each file from which pages can still be read.

    Args:
        vmas: of the process, with their absent pages.
        memory: of the process.
        view_at: returns the ``struct vm_area_struct`` of the mapping that starts at an address.
        elf_class, order: of the process.
    """
    pages: Counter[bytes] = Counter()
    some: dict[bytes, Vma] = {}
    for vma in vmas:
        left = sum(run.end - run.start for run in vma.absent if run.reason is AbsentReason.IN_FILE)
        if left and vma.path is not None:
            pages[vma.path] += left // memory.spec.page_size
            some[vma.path] = vma
    for path, count in pages.items():
        first = next((vma for vma in vmas if vma.path == path and vma.pgoff == 0), None)
        found = None if first is None else build_id(mapped(first, vmas, memory), elf_class, order)
        size, mtime = _size_and_mtime(view_at(some[path].start))
        yield OnDisk(path, count, None if found is None else found.hex(), size, mtime)


def _size_and_mtime(view: StructView) -> tuple[int | None, int | None]:
    try:
        file = view.follow("vm_file", "file")
        inode = None if file is None else file.follow("f_inode", "inode")
        if inode is None:
            return None, None
        return inode.find_uint("i_size", 8), next(filter(None, (inode.find_uint(name, 8) for name in MTIMES)), None)
    except MemoryFault:
        return None, None
