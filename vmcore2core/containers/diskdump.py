"""kdump-compressed dumps: makedumpfile -c/-l/-p/-z and uncompressed, QEMU's dump-guest-memory -z/-l/-s, diskdump.

What a page frame's bits in the two bitmaps say: in the second, the page is in the file; in the first only, it is RAM
that was filtered out; in neither, there is no RAM.

References: makedumpfile's diskdump_mod.h, write_kdump_header(), write_kdump_pages_cyclic(), write_kdump_bitmap_file()
(1.7.9); QEMU's dump/dump.c, create_header64(), write_dump_pages().
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import ContainerDoc, DumpContainer, Note, PageState
from vmcore2core.containers.bitmap import RankedBitmap, bit_runs, test_bits
from vmcore2core.containers.compression import CODEC_NAMES, PageDecoder, page_decoder
from vmcore2core.containers.diskdump_header import read_header
from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.notes import NOTES_SIZE_MAX, parse_notes
from vmcore2core.errors import CodecError, FormatError, UsageError
from vmcore2core.formats.diskdump import (
    DISK_DUMP_SIGNATURE,
    DUMP_DH_CODECS,
    DUMP_DH_COMPRESSED_INCOMPLETE,
    DUMP_DH_EXCLUDED_VMEMMAP,
    DUMP_HEADER_COMPRESSED,
    DUMP_HEADER_INCOMPLETED,
    KDUMP_SIGNATURE,
    PAGE_DESC_DTYPE,
    SIG_LEN,
)

RANGES_MAX = 1 << 18
"""Ranges of RAM; keeps a hostile bitmap from filling memory."""

DESCS_PER_CHECK = 1 << 12
"""Page descriptors at the end of the table that tell whether the file is cut off: pages are written in order."""

DESCS_MAX_COUNTED = 1 << 24
"""Page descriptors that are looked at to count the missing pages of a file that is cut off (400 MB of table)."""


class DiskDumpContainer(DumpContainer):
    """A kdump-compressed dump, or a diskdump.

    A page left out because it was zero is not ``EXCLUDED`` here: since header_version 1 (makedumpfile 1.1.3-05) its bit
    stays set in the second bitmap and its descriptor points to one shared page of zeros, so it is ``PRESENT``. An
    ``EXCLUDED`` page was cache, user, free, poisoned or offline memory, whatever ``dump_level`` says of zeros; before
    header_version 1 the file does not tell.

    Attributes:
        header: what the headers say.
        phys_base: kdump_sub_header.phys_base, or None in a diskdump; QEMU writes a guess.
        eraseinfo_size: bytes that describe what makedumpfile --config erased; 0 if nothing was.
    """

    DOC = ContainerDoc(
        name="kdump-compressed",
        summary="makedumpfile's default format (zlib, lzo, snappy, zstd or no compression), QEMU dump-guest-memory -z",
        references=(
            "makedumpfile diskdump_mod.h and IMPLEMENTATION",
            "QEMU include/sysemu/dump.h",
        ),
        limitations=("split dumps and flattened files have to be put together with makedumpfile first",),
    )

    def __init__(self, paths: Sequence[Path]) -> None:
        if len(paths) != 1:
            raise UsageError(f"a kdump-compressed dump is one file, and {len(paths)} were given")
        self.paths = tuple(paths)
        self._decoders: dict[int, PageDecoder | None] = {}
        self._file = open_dump_file(paths[0])
        try:
            self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        header = self.header = read_header(self._file)
        self.page_size = header.block_size
        self.byte_order = header.byte_order
        self.e_machine = header.e_machine
        self.dump_level = header.dump_level
        self.phys_base = header.phys_base
        self.eraseinfo_size = header.eraseinfo.size
        self.compressed = self._codec_name()
        self._open_bitmaps()
        self._open_page_descs()
        self.notes = self._read_notes()
        self._warn_of_status()
        self._warn_if_truncated()

    def _codec_name(self) -> str | None:
        if not self.header.is_kdump:
            return "zlib" if self.header.status & DUMP_HEADER_COMPRESSED else None
        return CODEC_NAMES.get(self.header.status & DUMP_DH_CODECS)

    def _open_bitmaps(self) -> None:
        """Map the bitmaps: two, or one in old diskdumps, where every page of RAM is in the file."""
        header = self.header
        size = header.bitmap_size
        second = header.bitmap_offset
        self._ram: U8Array | None = None
        if header.bitmap_count == 2:
            self._ram = self._file.array(header.bitmap_offset, size, "the first bitmap")
            second += size
        self._dumped = RankedBitmap(self._file.array(second, size, "the second bitmap"))

    def _open_page_descs(self) -> None:
        """Map the part of the descriptor table that the file has."""
        dtype = PAGE_DESC_DTYPE[self.header.byte_order]
        offset = self.header.page_desc_offset
        count = min(self._dumped.count, max(0, self._file.size - offset) // dtype.itemsize)
        raw = self._file.array(offset, count * dtype.itemsize, "the page descriptors")
        self._page_descs: NDArray[np.void] = raw.view(dtype)

    def _read_notes(self) -> tuple[Note, ...]:
        notes: tuple[Note, ...] = ()
        if self.header.note.size:
            raw = self._read_range(self.header.note, "ELF notes")
            notes, warning = parse_notes(raw, self.header.byte_order, self.header.note.start)
            if warning is not None:
                self.warnings.append(warning)
        if self.header.vmcoreinfo.size and not any(note.name == "VMCOREINFO" for note in notes):
            # header_version 3 has no notes, only this.
            desc = self._read_range(self.header.vmcoreinfo, "VMCOREINFO")
            if desc:
                notes = (*notes, Note("VMCOREINFO", 0, desc))
        return notes

    def _read_range(self, where: AddressRange, what: str) -> bytes:
        raw = self._file.read(where.start, min(where.size, NOTES_SIZE_MAX))
        if len(raw) < where.size:
            self.warnings.append(
                f"only {len(raw):#x} of the {where.size:#x} bytes of {what} at file offset {where.start:#x} can be read"
            )
        return raw

    def _warn_of_status(self) -> None:
        status = self.header.status
        incomplete = DUMP_DH_COMPRESSED_INCOMPLETE if self.header.is_kdump else DUMP_HEADER_INCOMPLETED
        if status & incomplete:
            self.warnings.append(
                "the dump says of itself that it is incomplete: writing it stopped early, as for lack of space"
            )
        if self.header.is_kdump and status & DUMP_DH_EXCLUDED_VMEMMAP:
            self.warnings.append("the kernel's page structures of unused memory were left out of the dump")

    def _warn_if_truncated(self) -> None:
        lacking = self._dumped.count - len(self._page_descs)
        if not lacking and not self._is_cut_off(self._page_descs[-DESCS_PER_CHECK:]).any():
            return
        counted = self._page_descs[-DESCS_MAX_COUNTED:]
        for i in range(0, len(counted), DESCS_PER_CHECK):
            lacking += int(np.count_nonzero(self._is_cut_off(counted[i : i + DESCS_PER_CHECK])))
        self.warnings.append(
            f"the file is cut off: it ends at {self._file.size:#x}, and {lacking} of its {self._dumped.count} pages "
            f"lie behind that or were never written"
        )

    def _is_cut_off(self, descs: NDArray[np.void]) -> NDArray[np.bool_]:
        """Return which pages the file does not have; a descriptor that was never written is zero."""
        offset = descs["offset"].astype(np.uint64)
        room = np.uint64(self._file.size)
        cut: NDArray[np.bool_] = (offset == 0) | (offset > room) | (descs["size"] > room - np.minimum(offset, room))
        return cut

    @classmethod
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with the signature of kdump or diskdump."""
        return f.read(SIG_LEN) in (KDUMP_SIGNATURE, DISK_DUMP_SIGNATURE)

    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return the runs of RAM in the first bitmap."""
        bitmap = self._dumped.bitmap if self._ram is None else self._ram
        size = self.page_size
        runs = bit_runs(bitmap, self.header.max_mapnr)
        ranges = tuple(AddressRange(s * size, e * size) for s, e in itertools.islice(runs, RANGES_MAX + 1))
        if len(ranges) > RANGES_MAX:
            what = f"first bitmap with more than {RANGES_MAX} runs"
            raise FormatError(what, self.header.bitmap_offset, "the RAM of a machine, which comes in few ranges")
        return ranges

    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame."""
        return self._locate(np.asarray(pfns, dtype=np.uint64))[0]

    def _locate(self, pfns: U64Array) -> tuple[U8Array, NDArray[np.void]]:
        """Return the state of each page frame and the descriptors of the ``PRESENT`` ones, in the same order."""
        states = np.full(len(pfns), PageState.MISSING, dtype=np.uint8)
        valid = np.flatnonzero(pfns < np.uint64(self.header.max_mapnr))
        if self._ram is not None:
            states[valid[test_bits(self._ram, pfns[valid])]] = PageState.EXCLUDED
        dumped = valid[test_bits(self._dumped.bitmap, pfns[valid])]
        index = self._dumped.rank(pfns[dumped])
        known = index < len(self._page_descs)
        states[dumped] = PageState.TRUNCATED
        dumped = dumped[known]
        descs = self._page_descs[index[known].astype(np.intp)]
        found = np.full(len(descs), PageState.PRESENT, dtype=np.uint8)
        found[(descs["size"] > self.page_size) | (descs["size"] == 0)] = PageState.DAMAGED
        found[self._is_cut_off(descs)] = PageState.TRUNCATED
        states[dumped] = found
        return states, descs[found == PageState.PRESENT]

    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Decode page frames into ``out``; descriptors that point to the same bytes are decoded once."""
        states, descs = self._locate(np.asarray(pfns, dtype=np.uint64))
        rows = np.flatnonzero(states == PageState.PRESENT)
        out[states != PageState.PRESENT] = 0
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
        return states

    def _decode(self, descs: NDArray[np.void], rows: NDArray[np.intp], out: U8Array, states: U8Array) -> None:
        """Read the page of each descriptor into its row; mark those that do not decode."""
        for flags in np.unique(descs["flags"]).tolist():
            mine = descs["flags"] == flags
            offsets = descs["offset"][mine].astype(np.uint64)
            sizes = descs["size"][mine]
            if flags:
                bad = self._decode_compressed(flags, offsets.tolist(), sizes.tolist(), rows[mine].tolist(), out)
            else:
                whole = sizes == self.page_size
                self._file.gather(offsets[whole], rows[mine][whole].astype(np.uint64), out)
                bad = rows[mine][~whole].tolist()
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
        buffer = self._file.buffer
        for offset, size, row in zip(offsets, sizes, rows, strict=True):
            try:
                decode(buffer(offset, size), out[row].data)
            except CodecError:
                bad.append(row)
        return bad


CONTAINER = DiskDumpContainer
