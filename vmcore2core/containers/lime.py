"""LiME memory images (format=lime), and those of AVML without --compress: ranges of memory, each after a header.

References: LiME src/lime.h and src/main.c, write_lime_header(), write_range(); AVML src/image.rs (0.14).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from vmcore2core.containers.base import ContainerDoc
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.containers.segmented import PHYS_BITS, SegmentedContainer, segment_table
from vmcore2core.errors import FormatError
from vmcore2core.formats import lime as fmt
from vmcore2core.overrides import override

RANGES_MAX = 1 << 20
"""Most ranges of one image. AVML makes one of each 16 MiB, so these are 16 TiB."""


class LimeRange(NamedTuple):
    """One ``lime_mem_range_header``: physical addresses ``[start, end)``, and where their bytes begin in the file."""

    start: int
    end: int
    version: int
    data_offset: int

    @property
    def size(self) -> int:
        """Bytes of memory in the range."""
        return self.end - self.start


def read_range_header(file: DumpFile, at: int) -> LimeRange | None:
    """Return the header at ``at``; None if the file ends before or inside it.

    Raises:
        FormatError: a field has an impossible value.
    """
    layout = fmt.lime_mem_range_header
    raw = file.read(at, layout.itemsize)
    if len(raw) < layout.itemsize:
        return None
    header = np.frombuffer(raw, layout)[0]
    magic, version = bytes(header["magic"]), int(header["version"])
    if (magic, version) not in ((fmt.LIME_MAGIC, fmt.LIME_VERSION), (fmt.AVML_MAGIC, fmt.AVML_VERSION)):
        what = f"lime_mem_range_header with magic {raw[:4].hex()} and version {version}"
        raise FormatError(what, at, f"{fmt.LIME_MAGIC.hex()} and 1, or {fmt.AVML_MAGIC.hex()} and 2")
    start, last = int(header["s_addr"]), int(header["e_addr"])
    if not start <= last < 1 << PHYS_BITS:
        what = f"lime_mem_range_header with s_addr {start:#x} and e_addr {last:#x}"
        raise FormatError(what, at, f"a range of physical addresses below 2^{PHYS_BITS}")
    return LimeRange(start, last + 1, version, at + layout.itemsize)


def end_warning(file: DumpFile, at: int) -> list[str]:
    """Return a sentence if the file ends inside a header at ``at``; else no sentence."""
    left = file.size - at
    if left <= 0 or file.cut_off is not None:
        return []
    return [f"the file is cut off: it ends at {file.size:#x}, {left} bytes into the header of a range"]


class LimeContainer(SegmentedContainer):
    """A LiME image."""

    DOC = ContainerDoc(
        name="LiME",
        summary="LiME format=lime, AVML without --compress; its raw and padded formats are read with --map",
        references=("LiME src/lime.h and src/main.c", "AVML src/image.rs"),
        limitations=(
            "no registers of running tasks, because the machine kept running while its memory was read",
            "memory that LiME could not read is zeros in the file, and reads as zeros",
            "an image that is cut off exactly between two ranges looks complete",
        ),
    )

    def __init__(self, files: Sequence[DumpFile]) -> None:
        self._file = only_file(files, "a LiME image")
        self.paths = (self._file.path,)
        self.e_machine = None
        self.byte_order = None
        self.notes = ()
        self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
        segments: list[tuple[int, int, int]] = []
        at = 0
        while (found := read_range_header(self._file, at)) is not None:
            if found.version != fmt.LIME_VERSION or len(segments) == RANGES_MAX:
                what = f"range {len(segments)} of the image, of version {found.version}"
                raise FormatError(what, at, f"at most {RANGES_MAX} ranges, all of version {fmt.LIME_VERSION}")
            segments.append((found.start, found.data_offset, found.size))
            at = found.data_offset + found.size
        if not segments:
            raise FormatError(
                "lime_mem_range_header is cut off by the end of the file",
                self._file.size,
                f"{fmt.lime_mem_range_header.itemsize} bytes",
            )
        self.warnings += end_warning(self._file, at)
        self._set_segments(segment_table(segments), "its headers")

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with LiME's magic number."""
        return f.read(len(fmt.LIME_MAGIC)) == fmt.LIME_MAGIC


CONTAINER = LimeContainer
