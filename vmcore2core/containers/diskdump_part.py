"""One file of a kdump-compressed dump: the whole dump, or the page frames ``[start_pfn, end_pfn)`` of a split one.

Each part of a split dump has both bitmaps completely, and only the descriptors of its own page frames.

References: makedumpfile's write_kdump_pages_cyclic(), write_kdump_bitmap_file(), reassemble_kdump_pages() (1.7.9).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import PageState
from vmcore2core.containers.bitmap import Bitmap, RankedBitmap
from vmcore2core.containers.compression import PageDecoder, page_decoder
from vmcore2core.containers.diskdump_header import read_header
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.eraseinfo import ERASEINFO_SIZE_MAX, erased
from vmcore2core.containers.page_descs import DESCS_PER_PART, PageDescs
from vmcore2core.elf.notes import NOTES_SIZE_MAX, Note, parse_notes
from vmcore2core.errors import CodecError, FormatError
from vmcore2core.formats.diskdump import (
    DUMP_DH_COMPRESSED_INCOMPLETE,
    DUMP_DH_EXCLUDED_VMEMMAP,
    DUMP_HEADER_INCOMPLETED,
)
from vmcore2core.printable import counted

RANGES_MAX = 1 << 18
"""Ranges of RAM; keeps a hostile bitmap from filling memory."""

DESCS_MAX_COUNTED = 1 << 24
"""How many page descriptors are read to count the missing pages of a truncated file (400 MB of table)."""

GAP_MAX = 1 << 13
"""Largest gap between two pages in the file that is read along with them: another read would cost as much."""


class DiskDumpPart:
    """A file with its headers, bitmaps and descriptors.

    Attributes:
        file: the file.
        header: the headers' values.
        start_pfn: first page frame with a descriptor.
        end_pfn: page frame behind the last one.
    """

    def __init__(self, file: DumpFile) -> None:
        self.file = file
        header = self.header = read_header(file)
        self.start_pfn, self.end_pfn = header.split_pfns or (0, header.max_mapnr)
        self._decoders: dict[int, PageDecoder | None] = {}
        size = -(-header.max_mapnr // 8)  # bitmap_size may be far more: it only tells where the second bitmap is
        second = header.bitmap_offset + (header.bitmap_count - 1) * header.bitmap_size
        self._ram: Bitmap | None = None
        if header.bitmap_count == 2:
            self._ram = Bitmap(file, header.bitmap_offset, size, "the first bitmap")
        self._dumped = RankedBitmap(file, second, size, "the second bitmap")
        self._nr_before = self._dumped.count_below(self.start_pfn)
        self.nr_pages = self._dumped.count_below(self.end_pfn) - self._nr_before
        self._page_descs = PageDescs(file, header, self.nr_pages)

    def read_notes(self, warnings: list[str]) -> tuple[Note, ...]:
        """Return the ELF notes; defects in them go into ``warnings``."""
        header = self.header
        notes: tuple[Note, ...] = ()
        if header.note.size:
            raw = self._read_range(header.note, "ELF notes", warnings)
            notes, warning = parse_notes(raw, header.byte_order, header.note.start)
            if warning is not None:
                warnings.append(warning)
        if header.vmcoreinfo.size and not any(note.name == "VMCOREINFO" for note in notes):
            # header_version 3 has no notes, only this.
            desc = self._read_range(header.vmcoreinfo, "VMCOREINFO", warnings)
            if desc:
                notes = (*notes, Note("VMCOREINFO", 0, desc))
        return notes

    def _read_range(self, where: AddressRange, what: str, warnings: list[str]) -> bytes:
        raw = self.file.read(where.start, min(where.size, NOTES_SIZE_MAX))
        if len(raw) < where.size:
            warnings.append(
                f"only {len(raw):#x} of the {where.size:#x} bytes of {what} at file offset {where.start:#x} can be read"
            )
        return raw

    def warnings(self) -> list[str]:
        """Return sentences on what the file reports of itself, and on what it lacks."""
        found = [] if self.file.cut_off is None else [self.file.cut_off]
        status, is_kdump = self.header.status, self.header.is_kdump
        if status & (DUMP_DH_COMPRESSED_INCOMPLETE if is_kdump else DUMP_HEADER_INCOMPLETED):
            found.append("the dump is marked as incomplete: writing it stopped early, perhaps for lack of space")
        if is_kdump and status & DUMP_DH_EXCLUDED_VMEMMAP:
            found.append("the kernel's page structures of unused memory were left out of the dump")
        if self.header.eraseinfo.size:
            start, size = self.header.eraseinfo.start, self.header.eraseinfo.size
            found.append(erased(self.file.read(start, min(size, ERASEINFO_SIZE_MAX))))
        lacking = self._nr_cut_off()
        if lacking:
            found.append(
                f"the file is cut off: it ends at {self.file.size:#x}, and {lacking} of its "
                f"{counted(self.nr_pages, 'page')} {'lies' if lacking == 1 else 'lie'} behind that or "
                f"{'was' if lacking == 1 else 'were'} never written"
            )
        return found

    def _nr_cut_off(self) -> int:
        lacking = self.nr_pages - len(self._page_descs)
        count = len(self._page_descs)
        if not lacking and not self._is_cut_off(self._page_descs.part(max(0, count - DESCS_PER_PART), count)).any():
            return 0
        for start in range(max(0, count - DESCS_MAX_COUNTED), count, DESCS_PER_PART):
            lacking += int(np.count_nonzero(self._is_cut_off(self._page_descs.part(start, start + DESCS_PER_PART))))
        return lacking

    def _is_cut_off(self, descs: NDArray[np.void]) -> NDArray[np.bool_]:
        """Tell which pages are not in the file; a descriptor that was never written is zero."""
        offset = descs["offset"].astype(np.uint64)
        room = np.uint64(self.file.size)
        cut: NDArray[np.bool_] = (offset == 0) | (offset > room) | (descs["size"] > room - np.minimum(offset, room))
        return cut

    def is_of_one_dump_with(self, other: DiskDumpPart) -> bool:
        """Tell whether two parts come from one run of makedumpfile: then their bitmaps are equal."""
        mine, theirs = self.header, other.header
        return (
            mine.dump_identity == theirs.dump_identity
            and self._dumped.equals(other._dumped)
            and (self._ram is None) == (other._ram is None)
            and (self._ram is None or other._ram is None or self._ram.equals(other._ram))
        )

    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return the runs of RAM in the first bitmap."""
        bitmap = self._dumped if self._ram is None else self._ram
        size = self.header.block_size
        runs = bitmap.runs(self.header.max_mapnr)
        ranges = tuple(AddressRange(s * size, e * size) for s, e in itertools.islice(runs, RANGES_MAX + 1))
        if len(ranges) > RANGES_MAX:
            what = f"first bitmap with more than {RANGES_MAX} runs"
            raise FormatError(what, self.header.bitmap_offset, "the RAM of a machine, which comes in few ranges")
        return ranges

    def dumped_ranges(self) -> tuple[AddressRange, ...]:
        """Return ranges outside of which no page was dumped."""
        size = self.header.block_size
        ranges = self._dumped.neighbourhoods(self.header.max_mapnr)
        return tuple(AddressRange(start * size, end * size) for start, end in ranges)

    def outline(self, pfns: U64Array) -> U8Array:
        """Return the state of each page frame by the bitmaps: ``MISSING``, ``EXCLUDED``, or ``TRUNCATED`` for dumped.

        Whether a dumped page is really there, ``locate`` of its part tells.
        """
        states = np.full(len(pfns), PageState.MISSING, dtype=np.uint8)
        valid = np.flatnonzero(pfns < np.uint64(self.header.max_mapnr))
        dumped = self._dumped.has(pfns[valid])
        states[valid[dumped]] = PageState.TRUNCATED
        rest = valid[~dumped]
        if self._ram is not None and len(rest):
            states[rest[self._ram.has(pfns[rest])]] = PageState.EXCLUDED
        return states

    def locate(self, pfns: U64Array) -> tuple[U8Array, NDArray[np.void]]:
        """Return the state of each dumped page frame of this part, and the descriptors of the ``PRESENT`` ones."""
        index = self._dumped.rank(pfns) - np.uint64(self._nr_before)
        known = index < len(self._page_descs)
        states = np.full(len(pfns), PageState.TRUNCATED, dtype=np.uint8)
        descs = self._page_descs.take(index[known])
        found = np.full(len(descs), PageState.PRESENT, dtype=np.uint8)
        found[(descs["size"] > self.header.block_size) | (descs["size"] == 0)] = PageState.DAMAGED
        found[self._is_cut_off(descs)] = PageState.TRUNCATED
        states[known] = found
        return states, descs[found == PageState.PRESENT]

    def read(self, descs: NDArray[np.void], rows: NDArray[np.intp], out: U8Array, states: U8Array) -> None:
        """Read the page of each descriptor into its row; descriptors that point to the same bytes are decoded once.

        Rows of pages that do not decode become zeros, and ``DAMAGED`` in ``states``.
        """
        if len(rows) == 1:  # as for kernel structures, which are read page by page
            self._decode(descs, rows, out, states)
            return
        order = np.lexsort((descs["flags"], descs["size"], descs["offset"]))
        descs, rows = descs[order], rows[order]
        fields = descs[["offset", "size", "flags"]]
        first = np.ones(len(rows), dtype=np.bool_)
        first[1:] = fields[1:] != fields[:-1]
        self._decode(descs[first], rows[first], out, states)
        if not first.all():
            source = rows[first][np.cumsum(first) - 1]
            copies = rows[~first]
            out[copies] = out[source[~first]]
            states[copies] = states[source[~first]]

    def outline_page(self, pfn: int) -> PageState:
        """Return the state of one page frame by the bitmaps, as ``outline`` does for many."""
        if pfn >= self.header.max_mapnr:
            return PageState.MISSING
        if self._dumped.has_one(pfn):
            return PageState.TRUNCATED
        return PageState.EXCLUDED if self._ram is not None and self._ram.has_one(pfn) else PageState.MISSING

    def read_page(self, pfn: int) -> tuple[bytes, PageState]:
        """Return the bytes of a dumped page frame of this part, zeros if it has none, and its state."""
        size = self.header.block_size
        index = self._dumped.rank_of(pfn) - self._nr_before
        if index >= len(self._page_descs):
            return bytes(size), PageState.TRUNCATED
        desc = self._page_descs.one(index)
        offset, length, flags = int(desc["offset"]), int(desc["size"]), int(desc["flags"])
        if not 0 < offset <= self.file.size - length:
            return bytes(size), PageState.TRUNCATED
        out = np.zeros((1, size), np.uint8)
        is_bad = not 0 < length <= size
        if flags and not is_bad:
            is_bad = bool(self._decode_compressed(flags, [offset], [length], [0], out))
        elif not is_bad:
            is_bad = length < size or bool(self.file.gather(np.array([offset], np.uint64), np.zeros(1, np.uint64), out))
        return (bytes(size), PageState.DAMAGED) if is_bad else (out.tobytes(), PageState.PRESENT)

    def _decode(self, descs: NDArray[np.void], rows: NDArray[np.intp], out: U8Array, states: U8Array) -> None:
        """Read the page of each descriptor into its row; mark those that do not decode."""
        for flags in set(descs["flags"].tolist()):
            mine = descs["flags"] == flags
            offsets = descs["offset"][mine].astype(np.uint64)
            sizes = descs["size"][mine]
            if flags:
                bad = self._decode_compressed(flags, offsets.tolist(), sizes.tolist(), rows[mine].tolist(), out)
            else:
                whole = sizes == self.header.block_size
                bad = self.file.gather(offsets[whole], rows[mine][whole].astype(np.uint64), out)
                bad += rows[mine][~whole].tolist()
            out[bad] = 0
            states[bad] = PageState.DAMAGED

    def _decode_compressed(
        self, flags: int, offsets: list[int], sizes: list[int], rows: list[int], out: U8Array
    ) -> list[int]:
        """Decode pages of one codec; return the rows of those that are damaged."""
        if flags not in self._decoders:
            self._decoders[flags] = page_decoder(flags)
        decode = self._decoders[flags]
        if decode is None:
            return rows
        bad = []
        for first, last, end in _near(offsets, sizes, self.file.span_max):
            start = offsets[first]
            try:
                raw = self.file.buffer(start, end - start)
            except CodecError:
                bad += rows[first:last]
                continue
            for offset, size, row in zip(offsets[first:last], sizes[first:last], rows[first:last], strict=True):
                try:
                    decode(raw[offset - start : offset - start + size], out[row].data)
                except CodecError:
                    bad.append(row)
        return bad


def _near(offsets: list[int], sizes: list[int], span_max: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(first, last, end)`` of pages that lie near together, to be read at once.

    Args:
        offsets: of pages in the file, mostly ascending.
        sizes: of these pages in the file.
        span_max: largest range that is read at once for several pages.
    """
    first = 0
    while first < len(offsets):
        start, end, last = offsets[first], offsets[first] + sizes[first], first + 1
        while (
            last < len(offsets)
            and start <= offsets[last] <= end + GAP_MAX
            and offsets[last] + sizes[last] <= start + span_max
        ):
            end = max(end, offsets[last] + sizes[last])
            last += 1
        yield first, last, end
        first = last
