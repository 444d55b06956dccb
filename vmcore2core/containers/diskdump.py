"""kdump-compressed dumps: makedumpfile -c/-l/-p/-z and uncompressed, QEMU's dump-guest-memory -z/-l/-s, diskdump.

There are two bitmaps of page frames. A bit in the second: the page is in the file. A bit in the first alone: RAM that
was filtered out. No bit: no RAM. makedumpfile --split writes several files; each has both bitmaps completely, and the
pages of its own range of page frames.

References: makedumpfile's diskdump_mod.h, write_kdump_header(), write_kdump_pages_cyclic(), write_kdump_bitmap_file(),
setup_splitting() (1.7.9); QEMU's dump/dump.c, create_header64(), write_dump_pages().
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import ContainerDoc, DumpContainer, PageState
from vmcore2core.containers.compression import CODEC_NAMES
from vmcore2core.containers.diskdump_part import DiskDumpPart
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.errors import FormatError, UsageError
from vmcore2core.formats.diskdump import (
    DISK_DUMP_SIGNATURE,
    DUMP_DH_CODECS,
    DUMP_HEADER_COMPRESSED,
    KDUMP_SIGNATURE,
    SIG_LEN,
    DumpLevel,
)
from vmcore2core.overrides import override

STATES_AT_ONCE = 1 << 16
"""Page frames whose descriptors are looked at together: 100 bytes for each."""


class DiskDumpContainer(DumpContainer):
    """A kdump-compressed dump, or a diskdump.

    A page left out because it was zero is not ``EXCLUDED`` here: since header_version 1 (makedumpfile 1.1.3-05) its bit
    stays set in the second bitmap and its descriptor points to one shared page of zeros, so it is ``PRESENT``. An
    ``EXCLUDED`` page was cache, user, free, poisoned or offline memory, whatever ``dump_level`` says of zeros; before
    header_version 1 the file does not tell. The pages of a part of a split dump that was not given are ``TRUNCATED``.

    Attributes:
        header: the headers' values; of a split dump, those of the part with the lowest page frames.
        phys_base: kdump_sub_header.phys_base, or None in a diskdump; QEMU writes a guess.
    """

    DOC = ContainerDoc(
        name="kdump-compressed",
        summary="makedumpfile's default format (zlib, lzo, snappy, zstd or no compression), also --split into several "
        "files; QEMU dump-guest-memory -z",
        references=(
            "makedumpfile diskdump_mod.h and IMPLEMENTATION",
            "QEMU include/sysemu/dump.h",
        ),
        limitations=("the file does not tell what makedumpfile --eppic erased",),
    )

    def __init__(self, files: Sequence[DumpFile]) -> None:
        self._parts = _open_parts(files)
        self.paths = tuple(part.file.path for part in self._parts)
        self.warnings = [*_missing_parts(self._parts), *_part_warnings(self._parts)]
        header = self.header = self._parts[0].header
        self.page_size = header.block_size
        self.byte_order = header.byte_order
        self.e_machine = header.e_machine
        self.dump_level = header.dump_level
        self.phys_base = header.phys_base
        self.compressed = self._codec_name()
        self.notes = self._parts[0].read_notes(self.warnings)

    def _codec_name(self) -> str | None:
        if not self.header.is_kdump:
            return "zlib" if self.header.status & DUMP_HEADER_COMPRESSED else None
        return CODEC_NAMES.get(self.header.status & DUMP_DH_CODECS)

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with the signature of kdump or diskdump."""
        return f.read(SIG_LEN) in (KDUMP_SIGNATURE, DISK_DUMP_SIGNATURE)

    @override
    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return the runs of RAM in the first bitmap."""
        return self._parts[0].memory_ranges()

    @override
    def dumped_ranges(self) -> tuple[AddressRange, ...]:
        """Return ranges of 128 MiB and more in which the second bitmap has pages."""
        return self._parts[0].dumped_ranges()

    @override
    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame."""
        pfns = np.asarray(pfns, dtype=np.uint64)
        parts = [self._states(pfns[at : at + STATES_AT_ONCE]) for at in range(0, len(pfns), STATES_AT_ONCE)]
        return np.concatenate([*parts, np.zeros(0, np.uint8)])

    def _states(self, pfns: U64Array) -> U8Array:
        states = self._parts[0].outline(pfns)
        for part, rows in self._dumped_rows(pfns, states):
            states[rows] = part.locate(pfns[rows])[0]
        return states

    @override
    def not_zero(self, pfns: U64Array) -> int:
        """If zero pages were left out, all of them have one place in the file, and no other page has that."""
        if not (self.dump_level or 0) & DumpLevel.DL_EXCLUDE_ZERO:
            return 0
        states = self._parts[0].outline(pfns)
        places = [part.locate(pfns[rows])[1]["offset"] for part, rows in self._dumped_rows(pfns, states)]
        return sum(max(len(np.unique(offsets)) - 1, 0) for offsets in places)

    def _dumped_rows(self, pfns: U64Array, states: U8Array) -> Iterator[tuple[DiskDumpPart, NDArray[np.intp]]]:
        """Yield each part with the rows of the dumped page frames that are in it."""
        rows = np.flatnonzero(states == PageState.TRUNCATED)
        for part in self._parts:
            mine = (pfns[rows] >= np.uint64(part.start_pfn)) & (pfns[rows] < np.uint64(part.end_pfn))
            yield part, rows[mine]

    @override
    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Decode page frames into ``out``."""
        pfns = np.asarray(pfns, dtype=np.uint64)
        states = self._parts[0].outline(pfns)
        found = []
        for part, rows in self._dumped_rows(pfns, states):
            states[rows], descs = part.locate(pfns[rows])
            found.append((part, descs, rows[states[rows] == PageState.PRESENT]))
        out[states != PageState.PRESENT] = 0
        for part, descs, rows in found:
            part.read(descs, rows, out, states)
        return states

    @override
    def read_page(self, pfn: int) -> tuple[bytes, PageState]:
        """Decode one page frame."""
        state = self._parts[0].outline_page(pfn)
        part = next((part for part in self._parts if part.start_pfn <= pfn < part.end_pfn), None)
        if state is PageState.TRUNCATED and part is not None:
            return part.read_page(pfn)
        return bytes(self.page_size), state

    @override
    def close(self) -> None:
        """Release the files."""
        for part in self._parts:
            part.file.close()


def _open_parts(files: Sequence[DumpFile]) -> list[DiskDumpPart]:
    """Return the parts of a dump, by page frame; most dumps have one.

    Raises:
        UsageError: the files are not parts of one split dump.
        FormatError: one of the files is broken.
    """
    if len(files) == 1:
        return [DiskDumpPart(files[0])]
    parts = []
    for file in files:
        try:
            part = DiskDumpPart(file)
        except FormatError as error:
            raise FormatError(f"{file.path}: {error.what}", error.offset, error.expected) from error
        if part.header.split_pfns is None:
            only_file(files, f"{file.path} is not a part of a split dump, and a kdump-compressed dump")
        parts.append(part)
    parts.sort(key=lambda part: (part.start_pfn, part.end_pfn))
    first = parts[0]
    end = first.end_pfn
    for previous, part in pairwise(parts):
        if not part.is_of_one_dump_with(first):
            raise UsageError(f"{part.file.path} and {first.file.path} are parts of different dumps")
        if part.start_pfn < end and part.start_pfn < part.end_pfn:
            raise UsageError(
                f"{part.file.path} has page frames {part.start_pfn:#x} to {part.end_pfn:#x}, and "
                f"{previous.file.path} has {previous.start_pfn:#x} to {previous.end_pfn:#x} of them too: "
                f"the same part was given twice, or these are parts of different dumps"
            )
        end = max(end, part.end_pfn)
    return parts


def _missing_parts(parts: list[DiskDumpPart]) -> list[str]:
    """Return a sentence for each range of page frames whose part of a split dump was not given."""
    sentences = []
    borders = [0, *(pfn for part in parts for pfn in (part.start_pfn, part.end_pfn)), parts[0].header.max_mapnr]
    for end, start in zip(borders[::2], borders[1::2], strict=True):
        if end < start:
            sentences.append(
                f"this dump was split, and the part with page frames {end:#x} to {start:#x} was not given: name all "
                f"parts, in any order"
            )
    return sentences


def _part_warnings(parts: list[DiskDumpPart]) -> Iterator[str]:
    for part in parts:
        for warning in part.warnings():
            yield warning if len(parts) == 1 else f"{part.file.path}: {warning}"


CONTAINER = DiskDumpContainer
