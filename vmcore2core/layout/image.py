"""The kernel image as bytes to search: in blocks, with pages that are not in the dump as zeros."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vmcore2core.memory.kernel import KernelMemory

IMAGE_SCAN_MAX = 256 << 20
BLOCK = 4 << 20


def image_blocks(memory: KernelMemory, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the kernel image block by block.

    What is found in a block must be read again with ``memory.read``, which fails where a page is not in the dump.

    Args:
        memory: kernel virtual memory; ``KernelMap.searched`` is searched, at most 256 MiB of each.
        overlap: bytes of the next block that each block has as well, a multiple of the page size: the largest thing
            that may lie across their border.

    Yields:
        The kernel virtual address of a block, and its bytes; blocks of which nothing is in the dump are left out.
    """
    physical = memory.physical
    page_size = physical.page_size
    for mapping in memory.kernel_map.searched:
        size = min(mapping.range.end - mapping.range.start, IMAGE_SCAN_MAX)
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK + overlap, size)
            first = mapping.paddr + start
            paddrs = np.arange(first, mapping.paddr + end - page_size + 1, page_size, dtype=np.uint64)
            if len(paddrs):
                pages, _ = physical.read_blocks(paddrs, page_size)
                if pages.any():
                    yield mapping.range.start + start, pages.tobytes()
