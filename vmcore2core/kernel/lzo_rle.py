"""LZO-RLE, the kernel's extension of LZO1X: a stream begins with a version, and one instruction is a run of zeros.

liblzo's decoders know neither. Version 0 is LZO1X after the version, and so is version 1 without a run of zeros. A
decoder reads that instruction as a match 49,151 bytes back, which cannot exist in a page of 4 KiB, so trying is safe.

References: Documentation/staging/lzo.rst (Linux 5.1 to 7.2).
"""

from __future__ import annotations

from vmcore2core.errors import CodecError

VERSIONED = 17  # no LZO1X stream begins with this byte, except an empty one
VERSIONED_MIN = 5
ZERO_RUN_MIN = 4
ZERO_RUN_DISTANCE = 0xBFFF  # what the instruction would be as a match
FIRST_LITERALS = 17
M2_MAX_OFFSET = 0x800
M4_OFFSET = 0x4000


def split_version(data: bytes) -> tuple[int, bytes]:
    """Return a stream's version (0 if it has none) and the instructions."""
    if len(data) >= VERSIONED_MIN and data[0] == VERSIONED:
        return data[1], data[2:]
    return 0, data


def decompress(data: bytes, size: int) -> bytes:
    """Decode the instructions of a version 1 stream.

    Args:
        data: the instructions, without the version.
        size: most bytes to return.

    Raises:
        CodecError: they are not such instructions, or decode to more bytes.
    """
    try:
        return bytes(_Decoder(data, size).run())
    except IndexError:
        raise CodecError(f"an LZO-RLE page of {len(data):#x} bytes ends within an instruction") from None


class _Decoder:
    """One stream; ``at`` is the next byte of input."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size = data, size
        self.out = bytearray()
        self.at = 0

    def run(self) -> bytearray:
        """Execute the instructions up to the end marker; raise IndexError if the input ends before it."""
        data, out = self.data, self.out
        state = 0  # literals that the last instruction copied; 4: a long run of them
        if data[0] > FIRST_LITERALS:
            count = data[0] - FIRST_LITERALS
            self.at = 1
            self._literals(count)
            state = min(count, 4)
        while True:
            code = data[self.at]
            self.at += 1
            if code >= 64:
                length, low = (code >> 5) + 1, code
                distance = (code >> 2 & 7) + (data[self.at] << 3) + 1
                self.at += 1
            elif code >= 32:
                length = self._length(code & 31, 31)
                distance, low = self._distance(1)
            elif code >= 16:
                if self._zero_run(code):
                    state = self._trailing(data[self.at - 3])
                    continue
                length = self._length(code & 7, 7)
                distance, low = self._distance((code & 8) << 11)
                if not distance:
                    return self._end(length)
                distance += M4_OFFSET
            elif not state:
                self._literals(self._length(code, 15) + 1)
                state = 4
                continue
            else:
                length, low = (3, code) if state == 4 else (2, code)
                distance = (code >> 2) + (data[self.at] << 2) + (M2_MAX_OFFSET + 1 if state == 4 else 1)
                self.at += 1
            self._match(distance, length)
            if len(out) > self.size:
                raise CodecError(f"an LZO-RLE page decodes to more than {self.size:#x} bytes")
            state = self._trailing(low)

    def _length(self, length: int, most: int) -> int:
        """Return an instruction's length: from its code, or from the bytes behind it; plus 2."""
        if not length:
            length = most
            while not self.data[self.at]:
                length += 255
                self.at += 1
            length += self.data[self.at]
            self.at += 1
        return length + 2

    def _distance(self, base: int) -> tuple[int, int]:
        """Return a match's distance, and the byte whose low bits count the literals behind it."""
        low, high = self.data[self.at], self.data[self.at + 1]
        self.at += 2
        return base + (low >> 2 | high << 6), low

    def _zero_run(self, code: int) -> bool:
        """Execute a run of zeros, if it is one."""
        low, high = self.data[self.at], self.data[self.at + 1]
        if code & 0xF8 != 0x18 or high != 0xFF or low & 0xFC != 0xFC:
            return False
        self._room(count := (code & 7 | self.data[self.at + 2] << 3) + ZERO_RUN_MIN)
        self.out += bytes(count)
        self.at += 3
        return True

    def _trailing(self, low: int) -> int:
        """Copy the up to three literals that follow a match."""
        if count := low & 3:
            self._literals(count)
        return count

    def _literals(self, count: int) -> None:
        self._room(count)
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise IndexError
        self.out += piece
        self.at += count

    def _match(self, distance: int, length: int) -> None:
        start = len(self.out) - distance
        if start < 0:
            raise CodecError(f"an LZO-RLE page refers to {distance:#x} bytes back, and has {len(self.out):#x}")
        self._room(length)
        if distance >= length:
            self.out += self.out[start : start + length]
        else:
            piece = self.out[start:]
            self.out += (piece * (length // distance + 1))[:length]

    def _room(self, count: int) -> None:
        if len(self.out) + count > self.size:
            raise CodecError(f"an LZO-RLE page decodes to more than {self.size:#x} bytes")

    def _end(self, length: int) -> bytearray:
        if length != 3 or self.at != len(self.data):
            raise CodecError(f"an LZO-RLE page ends at {self.at:#x}, expected {len(self.data):#x}")
        return self.out
