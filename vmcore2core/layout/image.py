"""The kernel image as blocks of bytes to search; pages that are not in the dump read as zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from vmcore2core.arch.spec import LinearMapping
from vmcore2core.interfaces import Memory
from vmcore2core.memory.physical import PhysicalMemory

IMAGE_SCAN_MAX = 256 << 20
BLOCK = 4 << 20


class Image(Memory, Protocol):
    """Memory with the kernel image, in kernel virtual or other addresses."""

    @property
    def physical(self) -> PhysicalMemory:
        """The memory below, with the image in it."""
        ...

    @property
    def searched(self) -> tuple[LinearMapping, ...]:
        """The ranges to search for the image."""
        ...


def image_blocks(memory: Image, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the kernel image block by block.

    Read a find again with ``memory.read``, which fails if a page is not in the dump.

    Args:
        memory: the memory to search; at most 256 MiB of each piece.
        overlap: bytes of the next block that each block has, too, a multiple of the page size: the size of the largest
            thing that may lie across the border.

    Yields:
        A block's address, and its bytes; blocks without any page in the dump are left out.
    """
    physical = memory.physical
    page_size = physical.page_size
    for mapping in memory.searched:
        size = min(mapping.range.end - mapping.range.start, IMAGE_SCAN_MAX)
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK + overlap, size)
            first = mapping.paddr + start
            paddrs = np.arange(first, mapping.paddr + end - page_size + 1, page_size, dtype=np.uint64)
            if len(paddrs):
                pages, _ = physical.read_blocks(paddrs, page_size)
                if pages.any():
                    yield mapping.range.start + start, pages.tobytes()
