"""The page descriptors of a kdump-compressed dump: 24 bytes a page, 6 GB for 1 TiB of memory.

A file that is mapped has them as an array. Of any other (compressed, on another machine) only those parts are read that
have a descriptor that is asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.containers.diskdump_header import DiskDumpHeader
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.formats.diskdump import PAGE_DESC_DTYPE

DESCS_PER_PART = 1 << 12
"""Page descriptors that are read at once. Those at the end of the table tell whether the file is cut off: pages are
written in order."""


class PageDescs:
    """The part of the table that the file has.

    Args:
        file: the dump.
        header: what its headers say.
        nr_pages: descriptors that there should be.
    """

    def __init__(self, file: DumpFile, header: DiskDumpHeader, nr_pages: int) -> None:
        self._file, self._offset = file, header.page_desc_offset
        self._dtype = PAGE_DESC_DTYPE[header.byte_order]
        self._count = min(nr_pages, max(0, file.size - self._offset) // self._dtype.itemsize)

    def __len__(self) -> int:
        return self._count

    def part(self, start: int, end: int) -> NDArray[np.void]:
        """Return the descriptors ``[start, end)``, as many of them as there are."""
        size = self._dtype.itemsize
        count = max(0, min(end, self._count) - start)
        return self._file.array(self._offset + start * size, count * size, "the page descriptors").view(self._dtype)

    def take(self, index: U64Array) -> NDArray[np.void]:
        """Return descriptors by number.

        Args:
            index: uint64[n], each below ``len(self)``, in any order.
        """
        if self._file.data is not None:
            return self.part(0, self._count)[index.astype(np.intp)]
        descs = np.zeros(len(index), self._dtype)
        parts = index // np.uint64(DESCS_PER_PART)
        for number in np.unique(parts).tolist():
            mine = parts == number
            start = number * DESCS_PER_PART
            within = (index[mine] - np.uint64(start)).astype(np.intp)
            descs[mine] = self.part(start, start + DESCS_PER_PART)[within]
        return descs
