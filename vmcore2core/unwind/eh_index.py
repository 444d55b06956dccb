"""Finds each function's FDE in an .eh_frame without a search table, as in static executables or from old linkers.

Reference: LSB Core 5.0, chapter 10.6.1.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import sha256

from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.cfi_rules import WHERE
from vmcore2core.unwind.cursor import Read

FDES_MAX = 1 << 18
KEPT_SIZE = 1 << 24
"""Most bytes of indexes to keep for other processes: of a million functions."""
READ_SIZE = 1 << 20
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
        starts: uint64[n], of functions, ascending.
        addresses: uint64[n], of their FDEs.
        problem: why entries are missing, or None.
    """

    def __init__(self, eh_frame: EhFrame, address: int, size: int) -> None:
        self.problem: str | None = None
        found: list[tuple[int, int]] = []
        try:
            found.extend(_entries(eh_frame, address, address + min(size, EH_FRAME_MAX)))
        except CorruptStructure as error:
            self.problem = str(error)
        found.sort()
        self.starts = array("Q", (start for start, _ in found))
        self.addresses = array("Q", (at for _, at in found))

    def find(self, pc: int) -> int | None:
        """Return the address of the FDE that may hold ``pc``."""
        at = bisect_right(self.starts, pc) - 1
        return self.addresses[at] if at >= 0 else None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self.starts) * self.starts.itemsize * 2


class EhIndexes:
    """The indexes of a run; all processes of one program share an index.

    Two sections have one index if they have the same bytes at the same address, and if the index was made from nothing
    else. Whether two files say that they are the same one does not matter.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], EhIndex] = OrderedDict()
        self._room = KEPT_SIZE

    def of(self, eh_frame: EhFrame, address: int, size: int) -> EhIndex:
        """Return the index of a section; the arguments are those of ``EhIndex``."""
        data = _whole(eh_frame.read, address, min(size, EH_FRAME_MAX))
        if data is None:
            return EhIndex(eh_frame, address, size)
        form = eh_frame.cie_id, eh_frame.bias, eh_frame.order, eh_frame.word
        key = sha256(data).digest(), address, *form
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        section = _Section(data, address)
        index = EhIndex(eh_frame.reading(section), address, size)
        if section.left:
            return EhIndex(eh_frame, address, size)
        self._keep(key, index)
        return index

    def _keep(self, key: tuple[object, ...], index: EhIndex) -> None:
        self._kept[key] = index
        self._room -= index.size
        while self._room < 0:
            self._room += self._kept.popitem(last=False)[1].size


class _Section:
    """A ``Read`` of a section's bytes alone.

    Attributes:
        left: whether bytes outside the section were asked for.
    """

    def __init__(self, data: bytes, address: int) -> None:
        self._data, self._address = data, address
        self.left = False

    def __call__(self, address: int, size: int) -> bytes | None:
        at = address - self._address
        if 0 <= at <= len(self._data) - size:
            return self._data[at : at + size]
        self.left = True
        return None


def _whole(read: Read, address: int, size: int) -> bytes | None:
    """Return a section's bytes, or None if any of them is not known."""
    pieces = []
    for at in range(0, size, READ_SIZE):
        piece = read(address + at, min(READ_SIZE, size - at))
        if piece is None:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _entries(eh_frame: EhFrame, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (start of the function, address) of each FDE.

    Raises:
        CorruptStructure: an entry is not known, or malformed; the entries before it were yielded.
    """
    order = "<" if eh_frame.order == "little" else ">"
    head, start = struct.Struct(order + "II"), struct.Struct(order + "i")
    mask = (1 << 8 * eh_frame.word) - 1
    window, base = b"", at
    for _ in range(FDES_MAX):
        place = at - base
        if place + HEAD > len(window):
            window, base, place = _window(eh_frame, at, end), at, 0
        if window[place : place + 4] == bytes(4):
            return
        length, distance = head.unpack_from(window, place)
        if length == fmt.DWARF64_ESCAPE:
            raise CorruptStructure("a 64-bit entry, expected a 32-bit one", at, WHERE)
        if distance != eh_frame.cie_id:
            cie = eh_frame.cie(eh_frame.cie_address(at + 4, distance))
            if cie is not None and cie.encoding == USUAL:
                yield (at + 8 + start.unpack_from(window, place + 8)[0]) & mask, at
            else:
                fde = eh_frame.fde(at)
                if fde is not None:
                    yield fde.start, at
        at += length + 4
        if at >= end:
            return


def _window(eh_frame: EhFrame, at: int, end: int) -> bytes:
    """Return the section from ``at`` on, as far as it is known in one piece."""
    for size in (WINDOW, HEAD, 4):
        window = eh_frame.read(at, min(size, end - at))
        if window is not None and (len(window) >= HEAD or not any(window[:4])):
            return window
    raise CorruptStructure("its bytes are not known", at, WHERE)
