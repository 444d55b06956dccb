"""Reads call frame information from .debug_frame, for programs without .eh_frame.

References: DWARF 5, section 6.4.1; LSB Core 5.0, chapter 10.6, for the differences in .eh_frame.
"""

from __future__ import annotations

from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override
from vmcore2core.unwind.cfi import EhFrame


class DebugFrame(EhFrame):
    """Entries of a .debug_frame section, which is not loaded: their addresses are offsets in it.

    Args:
        data: the section.
        bias: what to add to the file's addresses to get the process's.
        order: byte order of the process.
        word: bytes of an address.
    """

    cie_id = fmt.DEBUG_FRAME_CIE_ID

    def __init__(self, data: bytes, bias: int, order: ByteOrder, word: int) -> None:
        super().__init__(lambda at, size: data[at : at + size] if at + size <= len(data) else None, order, word)
        self.bias = bias

    @override
    def cie_address(self, at: int, distance: int) -> int:
        return distance
