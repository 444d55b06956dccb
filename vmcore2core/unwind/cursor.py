"""Reads small fields from untrusted bytes of a process: every read is bounded, every error is one sentence.

pyelftools reads the same formats, but trusts them: it reads a LEB128 as long as the section, and raises a different
exception for each malformed field. The tests compare with it.
"""

from __future__ import annotations

from collections.abc import Callable

from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.interfaces import ByteOrder

LEB128_MAX = 10  # bytes of a 64-bit number

Read = Callable[[int, int], bytes | None]
"""(user address, size) -> that many bytes, or None if any of them is not known."""


class Cursor:
    """A position within some bytes of user memory.

    Args:
        data: the bytes.
        address: where they lie in the process.
        where: what they are, for errors.
        order: byte order.
        word: bytes of an address.
        at: first position.
    """

    def __init__(self, data: bytes, address: int, where: str, order: ByteOrder, word: int, at: int = 0) -> None:
        self.data, self.address, self.where = data, address, where
        self.order: ByteOrder = order
        self.word = word
        self.at = at

    @property
    def here(self) -> int:
        """User address of the next byte."""
        return self.address + self.at

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.at >= len(self.data)

    def wrong(self, what: str) -> CorruptStructure:
        """Return an error that says what is wrong at this position."""
        return CorruptStructure(what, self.here, self.where)

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes.

        Raises:
            CorruptStructure: there are fewer.
        """
        if not 0 <= size <= len(self.data) - self.at:
            raise self.wrong(f"{size} bytes do not fit in the {len(self.data) - self.at} that are left")
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def uint(self, size: int) -> int:
        """Return an unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), self.order)

    def sint(self, size: int) -> int:
        """Return a signed number of ``size`` bytes."""
        return int.from_bytes(self.take(size), self.order, signed=True)

    def uleb128(self) -> int:
        """Return an unsigned LEB128 number."""
        return self._leb128()[0]

    def sleb128(self) -> int:
        """Return a signed LEB128 number."""
        value, bits = self._leb128()
        return value - (1 << bits) if value >> (bits - 1) & 1 else value

    def _leb128(self) -> tuple[int, int]:
        value = 0
        for i in range(LEB128_MAX):
            byte = self.uint(1)
            value |= (byte & 0x7F) << (7 * i)
            if not byte & 0x80:
                return value, 7 * (i + 1)
        raise self.wrong(f"a LEB128 number is longer than {LEB128_MAX} bytes")

    def string(self) -> bytes:
        """Return the bytes up to a NUL, which is skipped."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise self.wrong("a string does not end")
        piece = self.data[self.at : end]
        self.at = end + 1
        return piece

    def encoded(self, encoding: int, read: Read | None = None, data_base: int | None = None) -> int:
        """Return a pointer in one of the DW_EH_PE encodings.

        Args:
            encoding: DW_EH_PE_*, not omit.
            read: user memory, for DW_EH_PE_indirect.
            data_base: what DW_EH_PE_datarel counts from.

        Raises:
            CorruptStructure: there is no such encoding, or it cannot be followed.
        """
        start = self.here
        value = self._formatted(encoding & fmt.DW_EH_PE_FORMAT)
        application = encoding & fmt.DW_EH_PE_APPLICATION
        if application == fmt.EhApplication.DW_EH_PE_pcrel:
            value += start
        elif application == fmt.EhApplication.DW_EH_PE_datarel and data_base is not None:
            value += data_base
        elif application != fmt.EhApplication.DW_EH_PE_absolute:
            raise self.wrong(f"pointer encoding {encoding:#x} counts from a base that is not known")
        value &= (1 << 8 * self.word) - 1
        if encoding & fmt.DW_EH_PE_indirect:
            raw = read(value, self.word) if read is not None else None
            if raw is None:
                raise self.wrong(f"the pointer at {value:#x} is not known")
            value = int.from_bytes(raw, self.order)
        return value

    def _formatted(self, form: int) -> int:
        sizes = {
            fmt.EhFormat.DW_EH_PE_absptr: self.word,
            fmt.EhFormat.DW_EH_PE_udata2: 2,
            fmt.EhFormat.DW_EH_PE_udata4: 4,
            fmt.EhFormat.DW_EH_PE_udata8: 8,
        }
        signed = {
            fmt.EhFormat.DW_EH_PE_sdata2: 2,
            fmt.EhFormat.DW_EH_PE_sdata4: 4,
            fmt.EhFormat.DW_EH_PE_sdata8: 8,
        }
        if form == fmt.EhFormat.DW_EH_PE_uleb128:
            return self.uleb128()
        if form == fmt.EhFormat.DW_EH_PE_sleb128:
            return self.sleb128()
        if form in sizes:
            return self.uint(sizes[fmt.EhFormat(form)])
        if form in signed:
            return self.sint(signed[fmt.EhFormat(form)])
        raise self.wrong(f"pointer encoding {form:#x} is not known")
