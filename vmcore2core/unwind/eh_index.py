"""Finds each function's FDE in an .eh_frame without a search table, as in static executables or from old linkers.

Reference: LSB Core 5.0, chapter 10.6.1.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator

from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.cfi_rules import WHERE

FDES_MAX = 1 << 18
EH_FRAME_MAX = 1 << 25
WINDOW = 1 << 16
HEAD = 12  # bytes of an entry up to the end of a start of four bytes
USUAL = fmt.EhApplication.DW_EH_PE_pcrel | fmt.EhFormat.DW_EH_PE_sdata4


class EhIndex:
    """FDEs of a section, found by the start of their functions.

    Args:
        eh_frame: its entries.
        address: where it begins in the process.
        size: bytes.

    Attributes:
        starts: of functions, ascending.
        addresses: of their FDEs.
        problem: why entries are missing, or None.
    """

    def __init__(self, eh_frame: EhFrame, address: int, size: int) -> None:
        self.problem: str | None = None
        self._eh_frame = eh_frame
        found: list[tuple[int, int]] = []
        try:
            found.extend(self._entries(address, address + min(size, EH_FRAME_MAX)))
        except CorruptStructure as error:
            self.problem = str(error)
        found.sort()
        self.starts = [start for start, _ in found]
        self.addresses = [at for _, at in found]

    def find(self, pc: int) -> int | None:
        """Return the address of the FDE that may hold ``pc``."""
        at = bisect_right(self.starts, pc) - 1
        return self.addresses[at] if at >= 0 else None

    def _entries(self, at: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (start of the function, address) of each FDE.

        Raises:
            CorruptStructure: an entry is not known, or malformed; the entries before it were yielded.
        """
        order = "<" if self._eh_frame.order == "little" else ">"
        head, start = struct.Struct(order + "II"), struct.Struct(order + "i")
        mask = (1 << 8 * self._eh_frame.word) - 1
        window, base = b"", at
        for _ in range(FDES_MAX):
            place = at - base
            if place + HEAD > len(window):
                window, base, place = self._window(at, end), at, 0
            if window[place : place + 4] == bytes(4):
                return
            length, distance = head.unpack_from(window, place)
            if length == fmt.DWARF64_ESCAPE:
                raise CorruptStructure("a 64-bit entry, expected a 32-bit one", at, WHERE)
            if distance != self._eh_frame.cie_id:
                cie = self._eh_frame.cie(self._eh_frame.cie_address(at + 4, distance))
                if cie is not None and cie.encoding == USUAL:
                    yield (at + 8 + start.unpack_from(window, place + 8)[0]) & mask, at
                else:
                    fde = self._eh_frame.fde(at)
                    if fde is not None:
                        yield fde.start, at
            at += length + 4
            if at >= end:
                return

    def _window(self, at: int, end: int) -> bytes:
        """Return the section from ``at`` on, as far as it is known in one piece."""
        for size in (WINDOW, HEAD, 4):
            window = self._eh_frame.read(at, min(size, end - at))
            if window is not None and (len(window) >= HEAD or not any(window[:4])):
                return window
        raise CorruptStructure("its bytes are not known", at, WHERE)
