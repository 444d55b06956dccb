"""Programs and libraries, rebuilt from the page cache at their paths below a folder that debuggers use as sysroot.

The sysroot has only complete files, so it contains nothing that the machine did not have. Incomplete files go to
another folder, with a list of the missing pages. Where processes see different files at one path, as in containers,
the second file goes to a second sysroot.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vmcore2core.elf.build_id import build_id
from vmcore2core.errors import OutputError
from vmcore2core.folders import opened_folder
from vmcore2core.handover.mapped import BROKEN, OS_RELEASE, MappedFile, MappedFiles, page_cache
from vmcore2core.handover.same_build import SameBuilds
from vmcore2core.handover.tree import Tree, names_of, plain_name
from vmcore2core.handover.written import FileToWrite, FileWriter, RecoveredFile, WrittenFile, pages_of
from vmcore2core.printable import text
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.snapshot import Processes

TREES_MAX = 1000
NOT_CHECKED = (
    "whether all pages of its files had been read from disk when the machine stopped is not known: PG_uptodate or page "
    "structures are missing"
)


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

    Attributes:
        same: which files have the same build ID; learn all processes before any is added.
        checked: whether it is known of all files so far that their pages had been read from disk.
        no_room: whether a file was not written because the disk is full.

    Raises:
        LayoutUnknown, MemoryFault: the page cache cannot be searched, or files' sizes are not known.
    """

    def __init__(
        self, processes: Processes, folder: Path, *, force: bool = False, secrets: Secrets | None = None
    ) -> None:
        self.folder, self.force, self.secrets = folder, force, secrets
        self.checked = page_cache(processes).tells_uptodate
        self.same = SameBuilds()
        self.no_room = False
        self._processes, self._writer = processes, FileWriter(processes, force, secrets)
        self._places: list[_Place] = []
        self._done: dict[FileToWrite, WrittenFile] = {}
        self._own: dict[int, bytes | None] = {}

    def plan(self, processes: Iterable[MappedFiles]) -> Iterator[FileToWrite]:
        """Yield the files of processes that workers may write, in any order, before the processes are added.

        Files whose names other files or links have, too, are left to ``add``: which comes first must not be chance.
        """
        at = []
        for mapped in processes:
            with suppress(OutputError):  # ``add`` says it
                at.append((self.place_for(mapped), mapped))
        taken = {_key(place, name) for place, mapped in at for name in mapped.links}
        for place, mapped in at:
            for path in mapped.files:
                key = _key(place, path)
                if key is not None and key not in taken:
                    taken.add(key)
                    yield self.to_write(place, mapped, path)

    def most_on_disk(self, processes: Iterable[MappedFiles]) -> int:
        """Return the most bytes that the files of processes take, without those that ``plan`` leaves to ``add``."""
        return sum(map(self._most_of, self.plan(processes)))

    def _most_of(self, file: FileToWrite) -> int:
        if file.others or self._processes.sysroots:
            return file.size  # they may have the pages that are not in memory
        try:
            _, pages = pages_of(self._processes, page_cache(self._processes), file.mapping)
        except BROKEN:
            return 0
        return int(np.count_nonzero(pages.known)) * pages.page_size

    def wrote(self, file: FileToWrite, done: WrittenFile) -> None:
        """Take the result of a file that others wrote."""
        self._done[file] = done

    def to_write(self, place: _Place, mapped: MappedFiles, path: bytes) -> FileToWrite:
        """Return what is to be written of a file of a process."""
        file = mapped.files[path]
        others = self.same.others(file.build_id or self._own_build_id(file.mapping, mapped), file.mapping)
        whole, incomplete = place.whole.folder, place.incomplete.folder
        return FileToWrite(
            path,
            file.mapping,
            file.build_id,
            mapped.elf_class,
            mapped.byte_order,
            whole,
            incomplete,
            self._writer.size(file.mapping),
            others,
        )

    def _own_build_id(self, address: int, mapped: MappedFiles) -> bytes | None:
        """Return the build ID in the page cache of a file of which the process's memory has none."""
        if address not in self._own:
            try:
                _, pages = pages_of(self._processes, page_cache(self._processes), address)
            except BROKEN:
                self._own[address] = None
            else:
                self._own[address] = build_id(pages.read, mapped.elf_class, mapped.byte_order)
        return self._own[address]

    def done(self, file: FileToWrite) -> WrittenFile:
        """Return the result of a file that others wrote, or write it."""
        done = self._done.get(file) or self._writer.write(file)
        self.no_room |= done.no_room
        return done

    def remove(self) -> None:
        """Remove the folders that this run has made."""
        with suppress(OSError), opened_folder(self.folder.parent) as directory:
            for tree in (tree for place in self._places for tree in (place.whole, place.incomplete)):
                if not tree.was_there:
                    shutil.rmtree(tree.folder.name, ignore_errors=True, dir_fd=directory)

    def add(self, mapped: MappedFiles) -> RecoveredFiles:
        """Write the ELF files that a process has mapped, and its os-release file."""
        return _OfProcess(self, mapped).run()

    def place_for(self, mapped: MappedFiles) -> _Place:
        """Return the place for the files of a process, which now has their paths."""
        wanted = {path: file.mapping for path, file in mapped.files.items()}
        wanted |= {name: wanted[path] for name, path in mapped.links.items()}
        place = self.place(wanted)
        place.names |= wanted
        return place

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


def _key(place: _Place, path: bytes) -> tuple[Path, tuple[bytes, ...]] | None:
    """Return which file of which folder a path means, or None if it is not valid there."""
    try:
        return place.whole.folder, tuple(names_of(path))
    except OutputError:
        return None


class _OfProcess:
    """Writes the files of one process; the attributes are the steps' shared state."""

    def __init__(self, recovery: Recovery, mapped: MappedFiles) -> None:
        self.recovery, self.mapped = recovery, mapped
        self.sentences = list(mapped.sentences)

    def run(self) -> RecoveredFiles:
        mapped = self.mapped
        place = self.recovery.place_for(mapped)
        files = [one for path, file in mapped.files.items() for one in self._recovered(place, path, file)]
        whole = {file.path for file in files if not file.missing_pages}
        for name, path in mapped.links.items():
            if path in whole:
                self._link(place.whole, name, path)
        if files and not self.recovery.checked:
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
        if key not in place.written:
            done = self.recovery.done(self.recovery.to_write(place, self.mapped, path))
            self.sentences += done.sentences
            self.recovery.checked &= done.checked
            if done.file is None:
                return
            place.written[key] = done.file
        found = place.written[key]
        if found.missing_pages:
            self.sentences.append(
                f"{text(path)} is not whole: {found.missing_pages} of its pages are not in memory; what there is, is "
                f"in {found.folder}"
            )
        yield found
