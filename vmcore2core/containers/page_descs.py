"""The page descriptors of a kdump-compressed dump: 24 bytes a page, 6 GB for 1 TiB of memory.

Only those parts of the table are read in which a descriptor is needed; the latest parts are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.containers.diskdump_header import DiskDumpHeader
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.formats.diskdump import PAGE_DESC_DTYPE

DESCS_PER_PART = 1 << 12
"""How many page descriptors are read at once. As pages are written in order, the last ones tell whether the file is
truncated."""

DESCS_TAKEN = 1 << 9
"""Page descriptors of one part of the table: 12 KiB."""

PARTS_KEPT = 1 << 9
"""How many such parts are kept: 6 MiB."""


class PageDescs:
    """The table, as far as the file has it.

    Args:
        file: the dump.
        header: its headers.
        nr_pages: how many descriptors there should be.
    """

    def __init__(self, file: DumpFile, header: DiskDumpHeader, nr_pages: int) -> None:
        self._file, self._offset = file, header.page_desc_offset
        self._dtype = PAGE_DESC_DTYPE[header.byte_order]
        self._kept: OrderedDict[int, NDArray[np.void]] = OrderedDict()
        self._count = min(nr_pages, max(0, file.size - self._offset) // self._dtype.itemsize)

    def __len__(self) -> int:
        return self._count

    def part(self, start: int, end: int) -> NDArray[np.void]:
        """Return the descriptors ``[start, end)``, as far as the file has them."""
        size = self._dtype.itemsize
        count = max(0, min(end, self._count) - start)
        return self._file.array(self._offset + start * size, count * size, "the page descriptors").view(self._dtype)

    def take(self, index: U64Array) -> NDArray[np.void]:
        """Return descriptors by number.

        Args:
            index: uint64[n], each below ``len(self)``, in any order.
        """
        descs = np.zeros(len(index), self._dtype)
        order = np.argsort(index, kind="stable")
        numbers = index[order] // np.uint64(DESCS_TAKEN)
        borders = np.flatnonzero(np.diff(numbers)) + 1
        for first, last in pairwise([0, *borders.tolist(), len(index)] if len(index) else []):
            mine, number = order[first:last], int(numbers[first])
            within = (index[mine] - np.uint64(number * DESCS_TAKEN)).astype(np.intp)
            descs[mine] = self._taken(number)[within]
        return descs

    def one(self, index: int) -> np.void:
        """Return the descriptor of a number below ``len(self)``."""
        number, within = divmod(index, DESCS_TAKEN)
        descriptor: np.void = self._taken(number)[within]
        return descriptor

    def _taken(self, number: int) -> NDArray[np.void]:
        part = self._kept.get(number)
        if part is None:
            part = self._kept[number] = self.part(number * DESCS_TAKEN, (number + 1) * DESCS_TAKEN)
            if len(self._kept) > PARTS_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(number)
        return part
