"""One type for each address space, and page arithmetic.

Addresses count bytes, and an end is exclusive. Bulk code keeps addresses in ``uint64`` arrays; its docstrings name
their address space, or their type does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

import numpy as np
from numpy.typing import NDArray

PhysAddr = NewType("PhysAddr", int)
KernelAddr = NewType("KernelAddr", int)
UserAddr = NewType("UserAddr", int)

U64Array = NDArray[np.uint64]
U8Array = NDArray[np.uint8]

PhysAddrs = NewType("PhysAddrs", U64Array)
"""Physical addresses."""
SwapEntries = NewType("SwapEntries", U64Array)
"""The kernel's swp_entry_t: type and offset; 0 stands for an unknown one."""
PageIndices = NewType("PageIndices", U64Array)
"""Pages of a file, counted from its beginning."""


@dataclass(frozen=True, slots=True)
class AddressRange:
    """``[start, end)`` in one address space, in bytes."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes in the range."""
        return self.end - self.start

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end


def distinct(numbers: U64Array) -> U64Array:
    """Return these numbers in ascending order, each once: ``np.unique``, which would import numpy.ma for it."""
    ascending = np.sort(numbers)
    first = np.ones(len(ascending), np.bool_)
    first[1:] = ascending[1:] != ascending[:-1]
    return ascending[first]


def align_down(address: int, size: int) -> int:
    """Round ``address`` down to a multiple of ``size``, a power of two."""
    return address & ~(size - 1)


def align_up(address: int, size: int) -> int:
    """Round ``address`` up to a multiple of ``size``, a power of two."""
    return (address + size - 1) & ~(size - 1)
