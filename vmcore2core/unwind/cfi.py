"""Reads call frame information from .eh_frame: the rules for a frame, by its program counter.

References: DWARF 5, section 6.4; LSB Core 5.0, chapter 10.6; libgcc's unwind-dw2-fde.h (gcc 14).
"""

from __future__ import annotations

from copy import copy

from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cfi_program import CfiProgram
from vmcore2core.unwind.cfi_rules import WHERE, Cie, Fde, Row
from vmcore2core.unwind.cursor import Cursor, Read

ENTRY_MAX = 1 << 16  # bytes of a CIE or FDE; the longest in big programs are about 10 KiB


class EhFrame:
    """Entries of one .eh_frame section, read where they lie.

    Args:
        read: user memory.
        order: byte order of the process.
        word: bytes of an address.

    Attributes:
        cie_id: the value that a CIE has in the field where an FDE has its CIE pointer.
        bias: added to the start address of each function.
    """

    cie_id = fmt.CIE_ID
    bias = 0

    def __init__(self, read: Read, order: ByteOrder, word: int) -> None:
        self.read, self.word = read, word
        self.order: ByteOrder = order
        self._cies: dict[int, Cie] = {}

    def reading(self, read: Read) -> EhFrame:
        """Return the same section, as another reader has it."""
        found = copy(self)
        found.read, found._cies = read, {}
        return found

    def cie_address(self, at: int, distance: int) -> int:
        """Return the address of an FDE's CIE, from the CIE pointer at ``at``."""
        return at - distance

    def fde(self, address: int) -> Fde | None:
        """Return the FDE at a user address, or None if some of its bytes are not known.

        Raises:
            CorruptStructure: there is no FDE, or it is malformed.
        """
        cursor = self._entry(address)
        if cursor is None:
            return None
        at = cursor.here
        distance = cursor.uint(4)
        if distance == self.cie_id:
            raise cursor.wrong("a CIE stands here, expected an FDE")
        cie = self.cie(self.cie_address(at, distance))
        if cie is None:
            return None
        start = cursor.encoded(cie.encoding, self.read) + self.bias
        size = cursor.encoded(cie.encoding & fmt.DW_EH_PE_FORMAT)
        if cie.augmented:
            cursor.take(cursor.uleb128())
        end = start + size
        if not 0 < size <= 1 << 8 * self.word or end > 1 << 8 * self.word:
            raise cursor.wrong(f"describes {size:#x} bytes of code at {start:#x}")
        instructions_at = cursor.here
        return Fde(cie, start, end, cursor.take(len(cursor.data) - cursor.at), instructions_at)

    def _entry(self, address: int) -> Cursor | None:
        """Return a cursor over an entry, behind its length, or None if some of its bytes are not known."""
        head = self.read(address, 12)
        if head is None:  # the last entry of a section may be shorter
            head = self.read(address, 4)
        if head is None:
            return None
        length, skip = int.from_bytes(head[:4], self.order), 4
        if length == fmt.DWARF64_ESCAPE and len(head) == 12:
            length, skip = int.from_bytes(head[4:12], self.order), 12
        cursor = Cursor(b"", address, WHERE, self.order, self.word)
        if not 4 <= length <= ENTRY_MAX:
            raise cursor.wrong(f"an entry of {length:#x} bytes, expected 4 to {ENTRY_MAX:#x}")
        data = self.read(address + skip, length)
        return Cursor(data, address + skip, WHERE, self.order, self.word) if data is not None else None

    def cie(self, address: int) -> Cie | None:
        """Return the CIE at a user address, or None if some of its bytes are not known; raises as ``fde`` does."""
        if address not in self._cies:
            cie = self._parse_cie(address)
            if cie is None:
                return None
            self._cies[address] = cie
        return self._cies[address]

    def _parse_cie(self, address: int) -> Cie | None:
        cursor = self._entry(address)
        if cursor is None:
            return None
        if cursor.uint(4) != self.cie_id:
            raise cursor.wrong("an FDE stands here, expected a CIE")
        version = cursor.uint(1)
        if version not in fmt.CIE_VERSIONS:
            raise cursor.wrong(f"CIE version {version}, expected one of {fmt.CIE_VERSIONS}")
        augmentation = cursor.string()
        if version == 4 and (cursor.uint(1), cursor.uint(1)) != (self.word, 0):
            raise cursor.wrong(f"addresses of another size, expected {self.word} bytes without segments")
        if augmentation.startswith(b"eh"):  # gcc 2
            cursor.take(self.word)
            augmentation = augmentation[2:]
        code_align, data_align = cursor.uleb128(), cursor.sleb128()
        column = cursor.uint(1) if version == 1 else cursor.uleb128()
        encoding: int = fmt.EhFormat.DW_EH_PE_absptr
        augmented = augmentation.startswith(b"z")
        if augmented:
            encoding = self._augmentation(cursor, augmentation, encoding)
        elif augmentation.strip(b"S"):
            raise cursor.wrong(f"augmentation {augmentation!r} is not known")
        at = cursor.here
        return Cie(
            code_align=code_align,
            data_align=data_align,
            return_address=column,
            encoding=encoding,
            augmented=augmented,
            signal_frame=b"S" in augmentation,
            instructions=cursor.take(len(cursor.data) - cursor.at),
            instructions_at=at,
        )

    def _augmentation(self, cursor: Cursor, augmentation: bytes, encoding: int) -> int:
        """Read a CIE's augmentation data; return the encoding of its FDEs' pointers."""
        end = cursor.uleb128() + cursor.at
        if end > len(cursor.data):
            raise cursor.wrong("the augmentation data are longer than the entry")
        for letter in augmentation[1:].decode("latin-1"):
            if letter == "R":
                encoding = cursor.uint(1)
            elif letter == "L":
                cursor.uint(1)
            elif letter == "P":
                personality = cursor.uint(1)
                if personality != fmt.DW_EH_PE_omit:
                    cursor.encoded(personality & ~fmt.DW_EH_PE_indirect, data_base=0)
            elif letter not in "SB":  # B: aarch64's key for return addresses
                break  # the letters behind an unknown one cannot change those before it
        cursor.at = end
        return encoding

    def row(self, fde: Fde, pc: int) -> Row:
        """Return the rules that hold at ``pc``.

        Raises:
            CorruptStructure: the instructions are malformed.
        """
        program = CfiProgram(fde, self.read, self.order, self.word)
        return program.run(pc)
