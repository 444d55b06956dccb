"""Physical memory without any header: dd of /dev/mem, QEMU's pmemsave, LiME's raw and padded formats, .vmem.

Vendors' ramdumps are several such files, one for each bank of memory. Nothing in the file tells that it is memory, nor
from which address: the user says so with ``--map`` or with crash's FILE@START. The code never guesses.

References: LiME's README, "format=raw", "format=padded"; QEMU's hmp-commands.hx, pmemsave; crash's help, "RAM dump".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from vmcore2core.containers.base import ContainerDoc
from vmcore2core.containers.dumpfile import DumpFile, os_error
from vmcore2core.containers.joined import JoinedFile
from vmcore2core.containers.segmented import PHYS_BITS, SegmentedContainer, segment_table
from vmcore2core.errors import FormatError, UsageError
from vmcore2core.overrides import override

IDENTITY = "raw"
"""The map of a file that is memory from physical address 0 on."""

MAP_SIZE_MAX = 1 << 20
"""Most bytes of a file with a map."""

_NUMBER = r"(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})[KMGT]?"
_ENTRY = rf"\s*({_NUMBER}):({_NUMBER})(?:@(?:(.+):)?({_NUMBER}))?\s*"
_BANK = re.compile(rf"([^:]+)@({_NUMBER})")
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


class RawContainer(SegmentedContainer):
    """A file without a header, and the map that the user gave for it.

    Args:
        files: one, or those that the map names.
        memory_map: see ``parse_map``.
    """

    DOC = ContainerDoc(
        name="raw",
        summary="memory without any header; --map says where it lies",
        references=("LiME README, format=raw and format=padded", "QEMU hmp-commands.hx, pmemsave"),
        limitations=(
            "never detected: --map is needed",
            "no registers of running tasks",
            "addresses without RAM read as the file has them, most often as zeros",
        ),
    )

    def __init__(self, files: Sequence[DumpFile], memory_map: str = "") -> None:
        self._file = files[0] if len(files) == 1 else JoinedFile(files)
        self.paths = tuple(file.path for file in files)
        self.e_machine = None
        self.byte_order = None
        self.notes = ()
        self.placed_by = "--map"
        self.warnings = [file.cut_off for file in files if file.cut_off is not None]
        starts = self._file.starts if isinstance(self._file, JoinedFile) else [0]
        segments = parse_map(memory_map, [(f.path, at, f.size) for f, at in zip(files, starts, strict=True)])
        if not self._file.size:
            raise FormatError("nothing", 0, "memory: the file is empty")
        self._set_segments(segment_table(segments), "--map's ranges")

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Return False: any bytes may be memory."""
        return False


Given = Sequence[tuple[Path, int, int]]
"""A dump's files: path, offset of its first byte in all of them, bytes."""


def banks(words: Sequence[Path], memory_map: str | None) -> tuple[list[Path], str | None]:
    """Return a dump's files, and the map if the user wrote it as crash does: FILE@START for each file.

    One word may have several, with commas. If a file has such a name, the word means that file.

    Args:
        words: the words for the dump.
        memory_map: the map that the user gave by itself; it wins.

    Raises:
        UsageError: some of the files have an address, and others do not.
    """
    if memory_map is not None or not any("@" in word.name for word in words):
        return list(words), memory_map
    pieces = [piece for word in words for piece in (_pieces(word) or [word])]
    found = [_BANK.fullmatch(str(piece)) for piece in pieces if not piece.exists()]
    if not any(found):
        return list(words), memory_map
    if len(found) < len(pieces) or not all(found):
        raise UsageError(f"{words[0]}: some files have an address, and others do not; expected FILE@START for each")
    paths = [Path(match[1]) for match in found if match is not None]
    return paths, ",".join(f"{path.name}@{match[2]}" for path, match in zip(paths, found, strict=True) if match)


def _pieces(word: Path) -> list[Path] | None:
    """Return what crash understands by a word with commas; None if it is a file, or if some part has no address."""
    pieces = str(word).split(",")
    return None if word.exists() or not all(map(_BANK.fullmatch, pieces)) else [Path(piece) for piece in pieces]


def parse_map(text: str, files: Given) -> list[tuple[int, int, int]]:
    """Return (physical address, offset in the files, bytes) of each range of a map, by address.

    Args:
        text: ``START:SIZE@OFFSET,...``, where numbers are decimal or begin with 0x, and K, M, G, T may follow; a range
            without ``@OFFSET`` lies behind the one before it (LiME's raw format). Of several files,
            ``START:SIZE@FILE:OFFSET`` names the one; ``FILE@START`` is a whole file. Or the name of a file that has
            such ranges, one or more on a line, with comments after ``#``. Or "raw": the file from its first byte on is
            memory from physical address 0 on.
        files: the dump's.

    Raises:
        UsageError: the text is not such a map, or its ranges overlap.
    """
    if text == IDENTITY and len(files) == 1:
        return [(0, 0, files[0][2])]
    if text == IDENTITY:
        raise UsageError(f"--map raw: that is one file, and {len(files)} were given; expected FILE@START for each")
    given = ":" in text or ("@" in text and not Path(text).is_file())
    segments = sorted(_entries(text if given else _map_file(Path(text)), files))
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


def _entries(text: str, files: Given) -> Iterator[tuple[int, int, int]]:
    offset = 0
    for entry in text.split(","):
        if not entry.strip():
            continue
        match, bank = re.fullmatch(_ENTRY, entry), _BANK.fullmatch(entry.strip())
        if match is not None:
            start, size = _number(match[1]), _number(match[2])
            if match[4] is not None:
                path, begin, length = _file(match[3], files, entry)
                offset = begin + _number(match[4])
                if len(files) > 1 and offset + size > begin + length:
                    raise UsageError(f"--map: {entry.strip()!r} ends behind the end of {path} ({length:#x} bytes)")
            elif len(files) > 1:
                raise UsageError(f"--map: {entry.strip()!r} does not say which file, expected START:SIZE@FILE:OFFSET")
        elif bank is not None:
            _, offset, size = _file(bank[1], files, entry)
            start = _number(bank[2])
        else:
            what = entry.strip()[:80]
            raise UsageError(f"--map: {what!r} is not START:SIZE@OFFSET, such as 0x100000000:2G@0xc0000000")
        if not size or max(start + size, offset + size) > 1 << PHYS_BITS:
            raise UsageError(f"--map: {entry.strip()!r} has no size, or ends above 2^{PHYS_BITS}")
        yield start, offset, size
        offset += size


def _file(name: str | None, files: Given, entry: str) -> tuple[Path, int, int]:
    """Return the file that an entry names by the end of its path; if it names none, the only file."""
    parts = Path(name or "").parts
    found = [file for file in files if name is None or file[0].parts[-len(parts) :] == parts]
    if len(found) != 1:
        names = ", ".join(str(path) for path, _, _ in files)
        raise UsageError(f"--map: {entry.strip()!r} does not name one of the files, expected one of {names}")
    return found[0]


def _number(text: str) -> int:
    unit = _UNITS.get(text[-1], 0)
    digits = text[:-1] if unit else text
    return int(digits, 16 if digits[:2] in ("0x", "0X") else 10) << unit


CONTAINER = RawContainer
