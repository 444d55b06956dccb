"""Reads a finished core again: what is wrong with it, and what a debugger will miss in it.

pyelftools and lief read the headers; they share no code with the writer. The core may come from anywhere, so every
value in it is checked.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from construct import ConstructError
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_CORE_NOTE_N_TYPE
from elftools.elf.segments import NoteSegment

from vmcore2core.corefile.plan import Segment
from vmcore2core.corefile.source import CoreSource, FileSource
from vmcore2core.corefile.verify import SeenByLief, read_with_lief
from vmcore2core.elf.build_id import build_id
from vmcore2core.elf.headers import part
from vmcore2core.elf.notes import Note
from vmcore2core.elf.readerfile import ReaderFile
from vmcore2core.errors import CodecError, DumpError, package_missing
from vmcore2core.formats import elf_core as fmt
from vmcore2core.formats._cabi import ByteOrder, ElfClass
from vmcore2core.printable import counted, text
from vmcore2core.process.model import NOT_MISSING

HEAD_MAX = 1 << 28
FILES_MAX = 1 << 17
PF_X = 1
READ_MAX = 1 << 20
DAMAGED_SHOWN = 8
ON_PURPOSE = frozenset(reason.name.lower() for reason in NOT_MISSING)
"""Reasons, by their names in our own note, that do not make a core incomplete."""
# What pyelftools raises for headers that make no sense.
_UNREADABLE = (ELFError, ConstructError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError)


@dataclass(frozen=True, slots=True)
class FileMapping:
    """An entry of NT_FILE; ``offset`` in bytes."""

    start: int
    end: int
    offset: int
    path: bytes


class CoreFile:
    """A core on disk.

    Args:
        path: the core's path.
        packed: the unpacked bytes of a compressed core; closed with the core.

    Attributes:
        path: the core's path.
        size: in bytes, unpacked.
        packed: whether it is compressed.
        cut_off: a sentence if the file shows that its end is missing, else None.
        elf_class: 32 or 64.
        order: byte order.
        loads: PT_LOADs in file order.
        notes: the notes of all PT_NOTEs.
        seen: the headers as lief reads them, or None if it cannot.
        unseen: why lief was not asked, or "".

    Raises:
        DumpError: it cannot be read as an ELF core.
    """

    def __init__(self, path: Path, packed: CoreSource | None = None) -> None:
        self.path, self.packed = path, packed is not None
        self._source = packed or FileSource(path)
        self.size, self.cut_off = self._source.size, self._source.cut_off
        self.unseen = ""
        try:
            self._read_headers()
        except (
            ELFError,
            ConstructError,
            ValueError,
            KeyError,
            TypeError,
            OSError,
            OverflowError,
            MemoryError,
        ) as error:
            self._source.close()
            raise DumpError(f"{path} is not an ELF core that can be read: {error or type(error).__name__}") from error
        except CodecError as error:
            self._source.close()
            raise DumpError(f"{path}: {error}") from error
        except BaseException:
            self._source.close()
            raise

    def _read_headers(self) -> None:
        elf = ELFFile(io.BufferedReader(ReaderFile(self._source.read, self._source.size)))
        if elf["e_type"] != "ET_CORE":
            raise DumpError(f"{self.path} is no core: its e_type is {elf['e_type']}, expected ET_CORE")
        self.elf_class = cast("ElfClass", elf.elfclass)
        self.order: ByteOrder = "little" if elf.little_endian else "big"
        loads: list[Segment] = []
        notes: list[Note] = []
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_LOAD":
                start, memsz, filesz = segment["p_vaddr"], segment["p_memsz"], segment["p_filesz"]
                loads.append(Segment(start, memsz, filesz, segment["p_flags"], segment["p_offset"]))
            if isinstance(segment, NoteSegment):
                if segment["p_filesz"] > HEAD_MAX:
                    raise DumpError(f"{self.path} has notes of {segment['p_filesz']:#x} bytes, expected {HEAD_MAX:#x}")
                notes += map(_note, segment.iter_notes())
        self.loads, self.notes = tuple(loads), tuple(notes)
        first = min((load.offset for load in loads if load.filesz), default=self.size)
        head = self.pread(0, min(first, HEAD_MAX))
        try:
            self.seen: SeenByLief | None = read_with_lief(head)
        except ImportError as error:
            self.seen, self.unseen = None, package_missing(error)

    def __enter__(self) -> CoreFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._source.close()

    def pread(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of the unpacked core, or fewer at its end.

        Raises:
            DumpError: they cannot be read.
        """
        try:
            return self._source.read(offset, size)
        except CodecError as error:
            raise DumpError(f"{self.path}: {error}") from error

    def read(self, address: int, size: int) -> bytes | None:
        """Return memory, or None if no single PT_LOAD has all of it."""
        if not 0 <= size <= READ_MAX:
            return None
        for load in self.loads:
            if load.start <= address and address + size <= load.start + load.filesz:
                found = self.pread(load.offset + address - load.start, size)
                return found if len(found) == size else None
        return None

    def of_type(self, n_type: int) -> list[Note]:
        """Return the notes of a type."""
        return [note for note in self.notes if note.n_type == n_type]

    @property
    def tids(self) -> list[int]:
        """Thread IDs from NT_PRSTATUS."""
        head = fmt.elf_prstatus_common[self.elf_class, self.order]
        found = [note.desc for note in self.of_type(fmt.NT_PRSTATUS)]
        return [int(np.frombuffer(desc, head, 1)["pr_pid"][0]) for desc in found if len(desc) >= head.itemsize]

    @property
    def pid(self) -> int | None:
        """The PID from NT_PRPSINFO."""
        forms = [fmt.PrPsInfo[self.elf_class, self.order, size] for size in (fmt.UID_SIZES[self.elf_class], 4)]
        for note in self.of_type(fmt.NT_PRPSINFO):
            form = next((form for form in forms if form.sizeof() == len(note.desc)), None)
            if form is not None:
                return int(form.parse(note.desc)["pr_pid"])
        return None

    def files(self) -> list[FileMapping]:
        """Return the entries of NT_FILE; none if the note is malformed."""
        notes = self.of_type(fmt.NT_FILE)
        header = fmt.FILE_HEADER[self.elf_class, self.order]
        if not notes or len(notes[0].desc) < header.sizeof():
            return []
        desc = notes[0].desc
        start: Any = header.parse(desc)
        word = self.elf_class // 8
        if not 0 < start["count"] <= min(FILES_MAX, len(desc) // (3 * word)):
            return []
        dtype = np.dtype([(name, f"{'<' if self.order == 'little' else '>'}u{word}") for name in ("a", "b", "pgoff")])
        table = np.frombuffer(desc, dtype, start["count"], header.sizeof())
        names = desc[header.sizeof() + table.nbytes :].split(b"\0")
        return [
            FileMapping(int(row["a"]), int(row["b"]), int(row["pgoff"]) * start["page_size"], name)
            for row, name in zip(table, names, strict=False)
        ]

    def own_note(self) -> dict[str, Any]:
        """Return the content of our own note; {} if another program wrote the core."""
        for note in self.notes:
            if note.name == fmt.NOTE_VMCORE2CORE:
                try:
                    document = json.loads(note.desc)
                except (ValueError, RecursionError):
                    return {}
                return document if isinstance(document, dict) else {}
        return {}


def _note(found: Any) -> Note:  # noqa: ANN401 - pyelftools' container
    """Return a note as pyelftools read it; it has names for the types that it knows."""
    n_type = ENUM_CORE_NOTE_N_TYPE.get(found["n_type"], found["n_type"])
    return Note(found["n_name"] or "", int(n_type), bytes(found["n_descdata"]))


def type_name(n_type: int) -> str:
    """Return a note type's name, or its number if pyelftools has no name for it."""
    return next((name for name, number in ENUM_CORE_NOTE_N_TYPE.items() if number == n_type), f"type {n_type:#x}")


@dataclass(frozen=True)
class CoreCheck:
    """The result of checking a core without its dump, as sentences.

    Attributes:
        problems: its defects.
        missing: what a debugger will miss in it, apart from what was left out on purpose.
        files_needed: each file whose mapped code is not in it, with its build ID if known.
        also: other facts, which do not make it incomplete.
    """

    problems: list[str]
    missing: list[str]
    files_needed: list[str]
    also: list[str]


def check_core(core: CoreFile) -> CoreCheck:
    """Check a core without its dump."""
    return CoreCheck(list(problems(core)), list(missing(core)), list(files_needed(core)), list(also(core)))


def problems(core: CoreFile) -> Iterator[str]:
    """Yield the core's defects, as sentences."""
    end = 0
    for load in core.loads:
        at = f"PT_LOAD at {load.start:#x}"
        if load.start < end:
            yield f"{at} begins before the one before it ends, at {end:#x}"
        end = load.start + load.memsz
        if end > 1 << core.elf_class:
            yield f"{at} ends at {end:#x}, expected at most {1 << core.elf_class:#x}"
        if load.filesz > load.memsz:
            yield f"{at} has {load.filesz:#x} bytes in the file, expected at most {load.memsz:#x}"
        if load.filesz and load.offset + load.filesz > core.size:
            yield f"{at} ends at file offset {load.offset + load.filesz:#x}, behind the file's end at {core.size:#x}"
    if not core.unseen:
        yield from _misread_by_lief(core)
    if not core.tids and not any(_strings(core.own_note(), "threads_left_out")):
        yield "it has no thread's registers (NT_PRSTATUS)"
    if len(set(core.tids)) != len(core.tids):
        yield "several of its NT_PRSTATUS are of one thread"
    if core.pid is None:
        yield "it does not say which process it is of (NT_PRPSINFO)"
    if core.cut_off is not None:
        yield core.cut_off
    if core.packed:
        yield from _undecodable(core)


def _misread_by_lief(core: CoreFile) -> Iterator[str]:
    if core.seen is None:
        yield "lief cannot read it"
    elif not core.seen.agrees([(load.start, load.memsz, load.filesz) for load in core.loads]):
        yield f"lief sees {len(core.seen.loads)} PT_LOADs that differ from the {len(core.loads)} of pyelftools"
    elif not core.seen.tids <= set(core.tids):
        yield f"lief sees threads {sorted(core.seen.tids)}, pyelftools {sorted(core.tids)}"


def _undecodable(core: CoreFile) -> Iterator[str]:
    """Yield the parts of a compressed core that do not decode; each frame has a checksum."""
    found = 0
    for at in range(0, core.size, READ_MAX):
        try:
            core.pread(at, READ_MAX)
        except DumpError as error:
            found += 1
            if found <= DAMAGED_SHOWN:
                yield str(error)
    if found > DAMAGED_SHOWN:
        rest = found - DAMAGED_SHOWN
        yield f"{counted(rest, 'more frame')} {'does' if rest == 1 else 'do'} not decode"


def missing(core: CoreFile) -> Iterator[str]:
    """Yield, as sentences, what a debugger will miss in it, apart from what was left out on purpose."""
    if not core.of_type(fmt.NT_AUXV):
        yield "there is no NT_AUXV: shared libraries will not be found"
    own = core.own_note()
    for tid, reason in _strings(own, "threads_left_out"):
        yield f"thread {tid} is left out: {reason}"
    for start, end, reason in _runs(own):
        if reason not in ON_PURPOSE:
            yield f"memory at {start}-{end}: {reason}"


def also(core: CoreFile) -> Iterator[str]:
    """Yield other notices, as sentences; they do not make a core incomplete."""
    if core.unseen:
        yield f"pyelftools alone has read its headers: {core.unseen}"
    own = core.own_note()
    for tid, reason in _strings(own, "registers_left_out"):
        yield f"thread {tid} has general registers alone: {reason}"
    for tid, names in _strings(own, "unknown_registers"):
        yield f"registers of thread {tid} are not known and zero: {names}"
    left = sum(int(end, 16) - int(start, 16) for start, end, reason in _runs(own) if reason == "in_file")
    if left:
        yield f"{left:#x} bytes of memory are left to their files, which have them unchanged"
    text_left = sum(int(end, 16) - int(start, 16) for start, end, reason in _runs(own) if reason == "beyond_filter")
    if text_left:
        yield f"{text_left:#x} bytes of text are not in it, as coredump_filter does not ask for them"
    redacted = sum(reason == "redacted" for _, _, reason in _runs(own))
    if redacted:
        were = "was" if redacted == 1 else "were"
        yield f"{counted(redacted, 'range')} of memory {were} left out as asked (--redact)"
    blanked = own.get("blanked")
    if isinstance(blanked, list) and blanked:
        are = "is" if len(blanked) == 1 else "are"
        yield f"{counted(len(blanked), 'range')} of memory {are} zeros as asked (--redact)"


def files_needed(core: CoreFile) -> Iterator[str]:
    """Yield each file whose mapped code is not in the core, with its build ID if known."""
    files = core.files()
    for path in dict.fromkeys(file.path for file in files):
        mine = [file for file in files if file.path == path]
        lacking = sum(_code_lacking(core.loads, file) for file in mine)
        if lacking:
            first = next((file for file in mine if file.offset == 0), None)
            read = None if first is None else part(core.read, first.start, first.end - first.start)
            found = None if read is None else build_id(read, core.elf_class, core.order)
            identity = f"build ID {found.hex()}" if found is not None else "build ID not in the core"
            yield f"{text(path)}: {lacking:#x} bytes of code are not in the core ({identity})"


def _code_lacking(loads: Sequence[Segment], file: FileMapping) -> int:
    code = [load for load in loads if load.p_flags & PF_X and file.start <= load.start < file.end]
    return sum(min(load.memsz, file.end - load.start) - load.filesz for load in code if load.memsz > load.filesz)


def _strings(own: dict[str, Any], key: str) -> Iterator[tuple[str, str]]:
    found = own.get(key)
    for name, value in found.items() if isinstance(found, dict) else ():
        yield text(str(name).encode()), text(str(value).encode())


def _runs(own: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    found = own.get("absent")
    for run in found if isinstance(found, list) else ():
        if isinstance(run, list) and len(run) == 3:
            start, end, reason = (text(str(part).encode()) for part in run)
            yield start, end, reason
