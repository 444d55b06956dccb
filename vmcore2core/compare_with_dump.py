"""Compare a finished core with its dump, page by page and note by note."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vmcore2core.addresses import U64Array
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.packed import ZSTD_IN_PLACE_MAX
from vmcore2core.containers.zstd_frames import ZstdFrames, index_frames
from vmcore2core.corefile.inspect import CoreFile, type_name
from vmcore2core.corefile.notes import notes_of
from vmcore2core.corefile.plan import Segment
from vmcore2core.elf.notes import Note
from vmcore2core.errors import DumpError, TaskError
from vmcore2core.formats import elf_core as fmt
from vmcore2core.formats.packed import ZSTD_MAGIC
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import counted
from vmcore2core.process.redact import BlankedStream
from vmcore2core.session import Session

SHOWN = 8


@dataclass
class Comparison:
    """The result of the comparison.

    Attributes:
        same: number of pages equal to the dump's.
        zero: number of zero pages in the core that the dump does not hold.
        differing: addresses of pages that differ, or have bytes although the dump has none.
        notes: sentences about notes that differ.
        zeros: (file offset, bytes) already read as zeros: PT_LOADs of untouched memory share it.
    """

    same: int = 0
    zero: int = 0
    differing: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    zeros: set[tuple[int, int]] = field(default_factory=set)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.differing or self.notes)

    def sentences(self) -> Iterator[str]:
        """Yield a sentence for each difference."""
        if self.differing:
            shown = ", ".join(f"{address:#x}" for address in self.differing[:SHOWN])
            more = f" and {len(self.differing) - SHOWN} more" if len(self.differing) > SHOWN else ""
            differ = "differs" if len(self.differing) == 1 else "differ"
            yield f"{counted(len(self.differing), 'page')} {differ} from the dump's: {shown}{more}"
        yield from self.notes


def open_core(path: Path) -> CoreFile:
    """Open a core; one in zstd's seekable format is decompressed a frame at a time.

    Raises:
        DumpError: it is not a readable ELF core, or is compressed in one piece.
    """
    with ExitStack() as stack:
        file = stack.enter_context(closing(DumpFile(path)))
        if file.read(0, len(ZSTD_MAGIC)) != ZSTD_MAGIC:
            return CoreFile(path)
        index = index_frames(file)
        if not index.known or not 0 < max(index.contents, default=0) <= ZSTD_IN_PLACE_MAX:
            raise DumpError(f"{path} is compressed in one piece, expected frames: zstd -d unpacks it")
        core = CoreFile(path, ZstdFrames(file, index))
        stack.pop_all()  # from here on the core closes it
        return core


def compare(core: CoreFile, session: Session) -> Comparison:
    """Compare a core with the process in the dump.

    Args:
        core: the core; ``corefile.inspect.problems`` must have found no problem in it.
        session: the dump.

    Raises:
        TaskError: the core does not identify its process, or the dump lacks the process.
        MemoryFault, LayoutError: the process cannot be read.
    """
    if core.pid is None:
        raise TaskError(0, f"{core.path} does not say which process it is of (NT_PRPSINFO)")
    captured = session.processes.capture(session.processes.find(core.pid))
    snapshot, result = captured.snapshot, Comparison()
    stream = BlankedStream(captured.memory, _blanked(core.own_note()), snapshot.page_size)
    for load in core.loads:
        _compare_load(core, load, stream, captured.memory, result)
    theirs = [note for note in notes_of(snapshot, {}) if note.name != fmt.NOTE_VMCORE2CORE]
    ours = [note for note in core.notes if note.name != fmt.NOTE_VMCORE2CORE]
    hidden = bool(core.own_note().get("secrets_blanked"))
    if len(ours) != len(theirs):
        result.notes.append(f"it has {counted(len(ours), 'note')}, expected {len(theirs)}")
    for number, (mine, note) in enumerate(zip(ours, theirs, strict=False)):
        if mine[:2] != note[:2] or not _same_desc(mine.desc, note.desc, hidden=hidden):
            result.notes.append(
                f"note {number} ({mine.name}, {type_name(mine.n_type)}) differs from {_described(note)}"
            )
    return result


def _same_desc(ours: bytes, theirs: bytes, *, hidden: bool) -> bool:
    """Tell whether a note equals the dump's, apart from blanked secrets."""
    if ours == theirs or not hidden or len(ours) != len(theirs):
        return ours == theirs
    return all(our in (their, ord("*")) for our, their in zip(ours, theirs, strict=True))


def _described(note: Note) -> str:
    return f"what the dump has: {note.name}, type {note.n_type:#x}, {counted(len(note.desc), 'byte')}"


def _compare_load(core: CoreFile, load: Segment, stream: BlankedStream, memory: UserMemory, result: Comparison) -> None:
    """Compare the contents of one PT_LOAD; between the pages that the dump holds there must be zeros."""
    page, at, end = memory.spec.page_size, load.start, load.start + load.filesz
    for vaddr, rows in stream.batches([(load.start, end)]):
        for first, last in _contiguous(vaddr, page):
            low = int(vaddr[first])
            _expect_zeros(core, load, at, low, page, result)
            size = (last - first) * page
            ours = core.pread(load.offset + low - load.start, size).ljust(size, b"\xff")
            equal = (np.frombuffer(ours, np.uint8).reshape(-1, page) == rows[first:last]).all(axis=1)
            result.same += int(np.count_nonzero(equal))
            result.differing += vaddr[first:last][~equal].tolist()
            at = low + size
    _expect_zeros(core, load, at, end, page, result)


def _contiguous(vaddr: U64Array, page: int) -> Iterator[tuple[int, int]]:
    cuts = [0, *(np.flatnonzero(np.diff(vaddr) != page) + 1).tolist(), len(vaddr)]
    for first, last in itertools.pairwise(cuts):
        if first < last:
            yield first, last


def _expect_zeros(core: CoreFile, load: Segment, start: int, end: int, page: int, result: Comparison) -> None:
    step, differing = 1024 * page, len(result.differing)
    whole = load.offset + start - load.start, end - start
    if whole in result.zeros:
        result.zero += (end - start) // page
        return
    for low in range(start, end, step):
        size = min(step, end - low)
        raw = core.pread(load.offset + low - load.start, size)
        rows = np.frombuffer(raw.ljust(-(-size // page) * page, b"\0"), np.uint8).reshape(-1, page)
        full = rows.any(axis=1)
        result.zero += int(np.count_nonzero(~full))
        result.differing += (low + np.flatnonzero(full) * page).tolist()
    if len(result.differing) == differing:
        result.zeros.add(whole)


def _blanked(own: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the ranges that the core's own note declares to be zeros on request."""
    found = own.get("blanked")
    try:
        return [(int(start, 16), int(end, 16)) for start, end in found] if isinstance(found, list) else []
    except (TypeError, ValueError):
        return []
