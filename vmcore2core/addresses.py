"""The address spaces, each with its own type, and page arithmetic.

``Pfn`` counts pages of the container (``DumpContainer.page_size``); the others are byte addresses. An end is
exclusive. Bulk code carries addresses as ``uint64`` arrays and says in the docstring which space they are in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

import numpy as np
from numpy.typing import NDArray

Pfn = NewType("Pfn", int)
PhysAddr = NewType("PhysAddr", int)
KernelAddr = NewType("KernelAddr", int)
UserAddr = NewType("UserAddr", int)

U64Array = NDArray[np.uint64]
U8Array = NDArray[np.uint8]


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


def align_down(address: int, size: int) -> int:
    """Return the greatest multiple of ``size`` (a power of two) that is not above ``address``."""
    return address & ~(size - 1)


def align_up(address: int, size: int) -> int:
    """Return the least multiple of ``size`` (a power of two) that is not below ``address``."""
    return (address + size - 1) & ~(size - 1)
