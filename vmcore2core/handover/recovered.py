"""Programs and libraries, rebuilt from the page cache at their paths below a folder that debuggers use as sysroot.

The sysroot has only complete files, so it contains nothing that the machine did not have. Incomplete files go to
another folder, with a list of the missing pages. Where processes see different files at one path, as in containers,
the second file goes to a second sysroot.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.corefile.sink import pwrite_all
from vmcore2core.errors import OutputError
from vmcore2core.handover.mapped import BROKEN, OS_RELEASE, MappedFile, MappedFiles, page_cache
from vmcore2core.handover.partial import Rebuilt, rebuilt
from vmcore2core.handover.same_build import SameBuilds
from vmcore2core.handover.tree import Tree, plain_name
from vmcore2core.printable import counted, text
from vmcore2core.process.filebacking import mtime_of
from vmcore2core.process.filepages import FilePages
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.snapshot import Processes
from vmcore2core.process.sysroot import build_id

TREES_MAX = 1000
COPY_SIZE = 1 << 20
REWRITES_MAX = 4
MISSING_SUFFIX = b".missing"
NOT_CHECKED = (
    "whether all pages of its files had been read from disk when the machine stopped is not known: PG_uptodate or page "
    "structures are missing"
)


class _PagesDamaged(Exception):
    """Pages of the file failed to decode, so the file is not complete."""


@dataclass(frozen=True, slots=True)
class RecoveredFile:
    """One file of a process.

    Attributes:
        path: below the folder, as the process sees it.
        folder: the folder that it was written to; None if it could not be written.
        size: bytes.
        missing_pages: pages that are not known; if any, the file is in the folder of incomplete files.
        build_id: the build ID in its bytes, in hexadecimal, or None.
        build_id_in_process: the build ID in the process's own memory, in hexadecimal, or None.
        origin: the file below --sysroot that it was copied from, or None.
        rebuilt: whether it lacks pages and got new section headers for its known bytes.
    """

    path: bytes
    folder: Path | None
    size: int
    missing_pages: int
    build_id: str | None
    build_id_in_process: str | None
    origin: Path | None = None
    rebuilt: bool = False


@dataclass(frozen=True)
class RecoveredFiles:
    """The files that were written for one process.

    Attributes:
        sysroot: the folder of complete files.
        program: path of the process's program below it, or None if it is not there.
        libraries: directories of libraries below it, as absolute paths that the process sees.
        names: path below it of each complete file, by the mapping's name; start scripts can use the path unquoted.
        incomplete: the folder of incomplete files.
        partial: path below ``incomplete``, by the mapping's name, of each incomplete file that debuggers can read.
        files: all files.
        sentences: name the files that are missing or incomplete.
    """

    sysroot: Path
    program: bytes | None
    libraries: tuple[bytes, ...]
    names: dict[bytes, bytes]
    incomplete: Path
    partial: dict[bytes, bytes]
    files: tuple[RecoveredFile, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the original file must match: size, build ID, modification time in seconds since 1970; None: not known."""

    size: int
    build_id: bytes | None
    mtime: int | None


@dataclass
class _Place:
    """One sysroot and its folder of incomplete files; remembers which ``struct address_space`` has which path."""

    whole: Tree
    incomplete: Tree
    names: dict[bytes, int] = field(default_factory=dict)
    written: dict[tuple[int, bytes], RecoveredFile] = field(default_factory=dict)

    def agrees(self, wanted: dict[bytes, int]) -> bool:
        return all(self.names.get(path, mapping) == mapping for path, mapping in wanted.items())


class Recovery:
    """The files of all processes of a run.

    Args:
        processes: the dump's processes.
        folder: the first sysroot; others are beside it, as FOLDER.2, FOLDER.incomplete.
        force: replace existing files.
        secrets: a file that contains one is not written.

    Raises:
        LayoutUnknown, MemoryFault: the page cache cannot be searched, or files' sizes are not known.
    """

    def __init__(
        self, processes: Processes, folder: Path, *, force: bool = False, secrets: Secrets | None = None
    ) -> None:
        self.processes, self.folder, self.force, self.secrets = processes, folder, force, secrets
        self.cache = page_cache(processes)
        self.same = SameBuilds(processes, self.cache)
        self._places: list[_Place] = []

    def add(self, mapped: MappedFiles) -> RecoveredFiles:
        """Write the ELF files that a process has mapped, and its os-release file."""
        return _OfProcess(self, mapped).run()

    def place(self, wanted: dict[bytes, int]) -> _Place:
        """Return the first place where no path has a different file, or a new place."""
        for place in self._places:
            if place.agrees(wanted):
                return place
        number = len(self._places) + 1
        if number > TREES_MAX:
            raise OutputError(f"{self.folder}: more than {TREES_MAX} processes have other files at the same paths")
        name = self.folder.name if number == 1 else f"{self.folder.name}.{number}"
        whole, incomplete = (
            Tree(self.folder.with_name(n), force=self.force, secrets=self.secrets) for n in (name, f"{name}.incomplete")
        )
        self._places.append(_Place(whole, incomplete))
        return self._places[-1]


class _OfProcess:
    """Writes the files of one process; the attributes are the steps' shared state."""

    def __init__(self, recovery: Recovery, mapped: MappedFiles) -> None:
        self.recovery, self.mapped = recovery, mapped
        self.sentences = list(mapped.sentences)

    def run(self) -> RecoveredFiles:
        mapped = self.mapped
        wanted = {path: file.mapping for path, file in mapped.files.items()}
        wanted |= {name: wanted[path] for name, path in mapped.links.items()}
        place = self.recovery.place(wanted)
        place.names |= wanted
        files = [one for path, file in mapped.files.items() for one in self._recovered(place, path, file)]
        whole = {file.path for file in files if not file.missing_pages}
        for name, path in mapped.links.items():
            if path in whole:
                self._link(place.whole, name, path)
        if files and not self.recovery.cache.tells_uptodate:
            self.sentences.append(NOT_CHECKED)
        program = mapped.program
        rebuilt_files = {file.path for file in files if file.rebuilt}
        names, partial_names = (
            {of: self._name(tree, path) for of, path in mapped.paths.items() if path in chosen}
            for tree, chosen in ((place.whole, whole), (place.incomplete, rebuilt_files))
        )
        return RecoveredFiles(
            sysroot=place.whole.folder,
            program=program if program in whole else None,
            libraries=tuple(sorted({path.rpartition(b"/")[0] for path in whole - {program, *OS_RELEASE}})),
            names=names,
            incomplete=place.incomplete.folder,
            partial=partial_names,
            files=tuple(files),
            sentences=tuple(self.sentences),
        )

    def _name(self, tree: Tree, path: bytes) -> bytes:
        name = plain_name(path)
        if name != path:
            self._link(tree, name, path)
        return name

    def _link(self, tree: Tree, name: bytes, path: bytes) -> None:
        try:
            tree.link(name, path)
        except OutputError as error:
            self.sentences.append(str(error))

    def _recovered(self, place: _Place, path: bytes, file: MappedFile) -> Iterator[RecoveredFile]:
        """Write a file unless it was written before, and yield its record; yield nothing if that failed."""
        key = file.mapping, path
        try:
            if key not in place.written:
                place.written[key] = self._write(place, path, file)
            found = place.written[key]
        except (*BROKEN, OutputError) as error:
            self.sentences.append(f"{text(path)} is not recovered: {error}")
            return
        if found.missing_pages:
            self.sentences.append(
                f"{text(path)} is not whole: {found.missing_pages} of its pages are not in memory; what there is, is "
                f"in {found.folder}"
            )
        yield found

    def _write(self, place: _Place, path: bytes, file: MappedFile) -> RecoveredFile:
        """Write a file to the sysroot or, if a page turns out to be damaged when read, to the incomplete files.

        Raises:
            OutputError: it cannot be written, or is not the file that the process had.
        """
        processes, theirs = self.recovery.processes, file.build_id
        mapping = processes.kernel.view("address_space", KernelAddr(file.mapping))
        pages = FilePages(self.recovery.cache, mapping, processes.swap.space)
        ours = build_id(pages.read, self.mapped.elf_class, self.mapped.byte_order)
        if ours is not None and theirs is not None and ours != theirs:
            raise OutputError(f"its build ID is {ours.hex()}, that of the process's memory {theirs.hex()}")
        for other, count in self.recovery.same.complete(pages, file.mapping, theirs or ours):
            what = f"{counted(count, 'page')} from another file with its build ID, {text(other)}"
            self.sentences.append(f"{text(path)} is not whole in memory: it has {what}")
        inode = mapping.follow("host", "inode")
        wanted = _Wanted(pages.size, theirs or ours, None if inode is None else mtime_of(inode))
        for _ in range(REWRITES_MAX):
            whole = bool(pages.known.all())
            origin = None if whole else self._original(place, path, wanted)
            if origin is not None:
                return RecoveredFile(
                    path, place.whole.folder, pages.size, 0, _hex(theirs or ours), _hex(theirs), origin
                )
            tree = place.whole if whole else place.incomplete
            try:
                with tree.create(path) as fd:
                    _copy(pages, fd, whole=whole)
                    made = None if whole else self._rebuild(pages, fd)
                    # The file's time is not known. gdb warns if a file is newer than the core, so do not leave "now".
                    os.utime(fd, (0, 0))
                if not whole:
                    with tree.create(path + MISSING_SUFFIX) as fd:
                        pwrite_all(fd, memoryview(b"".join(b"%#x-%#x\n" % run for run in pages.missing)), 0)
            except _PagesDamaged:
                continue
            missing = int(np.count_nonzero(~pages.known))
            return RecoveredFile(
                path, tree.folder, pages.size, missing, _hex(ours), _hex(theirs), rebuilt=made is not None
            )
        raise OutputError("its pages read differently each time")

    def _rebuild(self, pages: FilePages, fd: int) -> Rebuilt | None:
        """Give a file that lacks pages section headers for its known bytes."""
        mapped = self.mapped
        made = rebuilt(pages.read, pages.size, mapped.elf_class, mapped.byte_order, pages.page_size)
        if made is not None:
            pwrite_all(fd, memoryview(made.header), 0)
            pwrite_all(fd, memoryview(made.tail), made.tail_at)
        return made

    def _original(self, place: _Place, path: bytes, wanted: _Wanted) -> Path | None:
        """Copy a file from the first --sysroot that has it, and return the path that it was copied from."""
        places = filter(None, (sysroot.find(path) for sysroot in self.recovery.processes.sysroots))
        return next((found for found in places if self._is_copied(place, path, found, wanted)), None)

    def _is_copied(self, place: _Place, path: bytes, found: Path, wanted: _Wanted) -> bool:
        """Copy a file if it matches; return whether the copy exists."""
        try:
            with place.whole.create(path) as fd:
                self._copy_original(found, fd, wanted)
                os.utime(fd, (0, 0))
        except OSError as error:
            self.sentences.append(f"{found} is not used: {error.strerror or error}")
            return False
        except OutputError as error:
            self.sentences.append(str(error))
            return False
        has = "its build ID" if wanted.build_id is not None else "its size and time; its build ID is not in the dump"
        self.sentences.append(f"{text(path)} is not whole in memory: it is copied from {found}, which has {has}")
        return True

    def _copy_original(self, found: Path, fd: int, wanted: _Wanted) -> None:
        """Copy a file.

        Raises:
            OutputError: the copy has another size or build ID; or, if no build ID is known, another time.
            OSError: it cannot be read, or written.
        """
        with found.open("rb", buffering=0) as source, os.fdopen(os.dup(fd), "wb") as target:
            shutil.copyfileobj(source, target, COPY_SIZE)
        copied, theirs = (
            os.fstat(fd).st_size,
            build_id(partial(_read_at, fd), self.mapped.elf_class, self.mapped.byte_order),
        )
        if wanted.build_id is None:
            time = int(found.stat().st_mtime)
            if (copied, time) != (wanted.size, wanted.mtime):
                raise OutputError(
                    f"{found} is not used: it has {copied:#x} bytes of {time} (seconds since 1970), expected "
                    f"{wanted.size:#x} of {'an unknown time' if wanted.mtime is None else wanted.mtime}"
                )
        elif (copied, theirs) != (wanted.size, wanted.build_id):
            raise OutputError(
                f"{found} is not used: it has {copied:#x} bytes and the build ID {_hex(theirs) or 'none'}, "
                f"expected {wanted.size:#x} and {wanted.build_id.hex()}"
            )


def _read_at(fd: int, offset: int, size: int) -> bytes | None:
    raw = os.pread(fd, size, offset)
    return raw if len(raw) == size else None


def _copy(pages: FilePages, fd: int, *, whole: bool) -> None:
    """Write the known pages of a file; the others stay holes.

    Raises:
        _PagesDamaged: ``whole`` is set, and a page failed to decode.
    """
    os.ftruncate(fd, pages.size)
    for index, rows in pages.batches():
        cuts = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        for first, last in itertools.pairwise(cuts):
            if first < last:
                at = int(index[first]) * pages.page_size
                pwrite_all(fd, rows[first:last].reshape(-1).data[: pages.size - at], at)
    if whole and not pages.known.all():
        raise _PagesDamaged


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
