"""Swap files and partitions, or copies of them: pages by slot.

References: include/linux/swap.h: union swap_header; mm/swapfile.c: read_swap_header() (Linux 7.2); mkswap(8).
"""

from __future__ import annotations

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import FormatError
from vmcore2core.formats import swap as fmt
from vmcore2core.interfaces import ByteOrder


class SwapFile:
    """One swap area.

    Args:
        file: the file; slot ``n`` is its page ``n``.
        page_size: of the kernel that swapped to it.
        byte_order: of that kernel.

    Attributes:
        slots_max: one more than its last slot.
        nr_badpages: slots that are not used because mkswap found them broken.

    Raises:
        FormatError: it is not a swap area of such a kernel.
    """

    def __init__(self, file: DumpFile, page_size: int, byte_order: ByteOrder) -> None:
        self.file, self._page_size = file, page_size
        magic_at = page_size - len(fmt.SWAP_MAGIC)
        magic = file.read(magic_at, len(fmt.SWAP_MAGIC))
        if magic != fmt.SWAP_MAGIC:
            raise FormatError(f"{file.path} has {magic.hex() or 'nothing'}", magic_at, "SWAPSPACE2: a swap area")
        declared = fmt.swap_header_info(byte_order)
        raw = file.read_exactly(fmt.SWAP_HEADER_INFO, declared.sizeof(), "swap_header.info")
        info = declared.parse(raw)
        if info.version != fmt.SWAP_HEADER_VERSION:
            what = f"{file.path}: swap_header.info.version is {info.version:#x}"
            raise FormatError(what, fmt.SWAP_HEADER_INFO, f"{fmt.SWAP_HEADER_VERSION}, in the kernel's byte order")
        if not info.last_page:
            raise FormatError(f"{file.path}: swap_header.info.last_page is 0", fmt.SWAP_HEADER_INFO, "at least 1")
        self.slots_max = int(info.last_page) + 1
        self.nr_badpages = int(info.nr_badpages)

    def read(self, slot: int) -> bytes | None:
        """Return the page of a slot; None if the file ends before it."""
        page = self.file.read(slot * self._page_size, self._page_size)
        return page if len(page) == self._page_size else None

    def close(self) -> None:
        """Release the file."""
        self.file.close()
