"""Physical memory as it is, without any header: dd of /dev/mem, QEMU's pmemsave, LiME's raw and padded formats, .vmem.

Nothing in such a file says so, nor what is where: the user does, with ``--map``. It is never guessed.

References: LiME's README, "format=raw", "format=padded"; QEMU's hmp-commands.hx, pmemsave.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from vmcore2core.containers.base import ContainerDoc
from vmcore2core.containers.dumpfile import DumpFile, only_file, os_error
from vmcore2core.containers.segmented import PHYS_BITS, SegmentedContainer, segment_table
from vmcore2core.errors import FormatError, UsageError

IDENTITY = "raw"
"""The map of a file that is memory from physical address 0 on."""

MAP_SIZE_MAX = 1 << 20
"""Bytes of a map in a file."""

_NUMBER = r"(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})[KMGT]?"
_ENTRY = re.compile(rf"\s*({_NUMBER}):({_NUMBER})(?:@({_NUMBER}))?\s*")
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


class RawContainer(SegmentedContainer):
    """A file without a header, and the map that the user gave for it.

    Args:
        files: one file.
        memory_map: see ``parse_map``.
    """

    DOC = ContainerDoc(
        name="raw",
        summary="memory without any header, with --map saying what is where",
        references=("LiME README, format=raw and format=padded", "QEMU hmp-commands.hx, pmemsave"),
        limitations=(
            "never detected: --map is needed",
            "no registers of running tasks",
            "what is no RAM in the file's ranges reads as the file has it, most often as zeros",
        ),
    )

    def __init__(self, files: Sequence[DumpFile], memory_map: str = "") -> None:
        self._file = only_file(files, "a dump without a header")
        self.paths = (self._file.path,)
        self.e_machine = None
        self.byte_order = None
        self.notes = ()
        self.placed_by = "--map"
        self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
        segments = parse_map(memory_map, self._file.size)
        if not self._file.size:
            raise FormatError("nothing", 0, "memory: the file is empty")
        self._set_segments(segment_table(segments), "--map's ranges")

    @classmethod
    def detect(cls, f: BinaryIO) -> bool:  # noqa: ARG003 - of the contract
        """Return False: any bytes may be memory."""
        return False


def parse_map(text: str, file_size: int) -> list[tuple[int, int, int]]:
    """Return (physical address, file offset, bytes) of each range of a map, by address.

    Args:
        text: ``START:SIZE@OFFSET,...``, where numbers are decimal or begin with 0x, and K, M, G, T may follow; a range
            without ``@OFFSET`` lies behind the one before it (LiME's raw format). Or the name of a file that has such
            ranges, one or more on a line, with comments after ``#``. Or "raw": the file from its first byte on is
            memory from physical address 0 on.
        file_size: bytes of the file, for "raw".

    Raises:
        UsageError: the text is no such map, or its ranges overlap.
    """
    if text == IDENTITY:
        return [(0, 0, file_size)]
    segments = sorted(_entries(text if ":" in text else _map_file(Path(text))))
    if not segments:
        raise UsageError(f"--map {text} has no ranges, expected START:SIZE@OFFSET,...")
    for (start, _, size), (other, _, _) in pairwise(segments):
        if other < start + size:
            raise UsageError(f"--map: the ranges at {start:#x} ({size:#x} bytes) and {other:#x} overlap")
    return segments


def _map_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAP_SIZE_MAX + 1)
    except OSError as error:
        raise UsageError(f"--map: {os_error(path, error)}; expected START:SIZE@OFFSET,..., raw, or a file") from error
    except ValueError as error:  # a NUL in the name
        raise UsageError(f"--map: {str(path)!r} cannot be read: {error}") from error
    if len(raw) > MAP_SIZE_MAX:
        raise UsageError(f"--map: {path} has more than {MAP_SIZE_MAX} bytes, expected a text with START:SIZE@OFFSET")
    text = raw.decode("latin-1")
    return ",".join(line.split("#", 1)[0] for line in text.splitlines())


def _entries(text: str) -> Iterator[tuple[int, int, int]]:
    offset = 0
    for entry in text.split(","):
        if not entry.strip():
            continue
        match = _ENTRY.fullmatch(entry)
        if match is None:
            what = entry.strip()[:80]
            raise UsageError(f"--map: {what!r} is not START:SIZE@OFFSET, such as 0x100000000:2G@0xc0000000")
        start, size = _number(match[1]), _number(match[2])
        offset = offset if match[3] is None else _number(match[3])
        if not size or max(start + size, offset + size) > 1 << PHYS_BITS:
            raise UsageError(f"--map: {entry.strip()!r} has no size, or ends above 2^{PHYS_BITS}")
        yield start, offset, size
        offset += size


def _number(text: str) -> int:
    unit = _UNITS.get(text[-1], 0)
    digits = text[:-1] if unit else text
    return int(digits, 16 if digits[:2] in ("0x", "0X") else 10) << unit


CONTAINER = RawContainer
