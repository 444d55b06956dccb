"""Programs and libraries, rebuilt from the page cache at their paths below a folder that debuggers take as sysroot.

Only a file all of whose bytes are known comes there. What is known of the others goes to another folder, with a list of
what is missing: there is nothing in the first that the machine did not have. Where processes see different files at
one path, as containers do, the second gets a folder of its own.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

import numpy as np

from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault, OutputError
from vmcore2core.handover.tree import Tree
from vmcore2core.kernel import dcache, mm
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import text
from vmcore2core.process.capture import Captured, Processes
from vmcore2core.process.dump_filter import EVERYTHING
from vmcore2core.process.filepages import FilePages
from vmcore2core.process.linkmap import link_map, program_path, vma_at
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.process.sysroot import DELETED, build_id, mapped

TREES_MAX = 1000
REWRITES_MAX = 4
OS_RELEASE = (b"/etc/os-release", b"/usr/lib/os-release")
ELFMAG = b"\x7fELF"
MISSING_SUFFIX = b".missing"
NOT_CHECKED = (
    "whether all pages of its files had been read from disk when the machine stopped is not known: PG_uptodate or page "
    "structures are missing"
)
BROKEN = (CorruptStructure, MemoryFault, LayoutUnknown)

log = logging.getLogger(__name__)


class _PagesDamaged(Exception):
    """Pages turned out not to decode; the file is not whole."""


@dataclass(frozen=True, slots=True)
class RecoveredFile:
    """One file of a process.

    Attributes:
        path: below the folder, as the process sees it.
        folder: where it is; None where it could not be written.
        size: bytes.
        missing_pages: pages that are not known; not 0 means that it is in the folder of the incomplete ones.
        build_id: of its bytes, as hexadecimal digits, or None where it has none.
        build_id_in_process: what the process's own memory has there, likewise.
    """

    path: bytes
    folder: Path | None
    size: int
    missing_pages: int
    build_id: str | None
    build_id_in_process: str | None


@dataclass(frozen=True)
class RecoveredFiles:
    """What came of one process's files.

    Attributes:
        sysroot: the folder that has the complete ones.
        program: path of the process's program below it, or None where it is not there.
        libraries: directories below it in which there are libraries, absolute as the process sees them.
        files: all.
        sentences: about files that are not there, or not whole.
    """

    sysroot: Path
    program: bytes | None
    libraries: tuple[bytes, ...]
    files: tuple[RecoveredFile, ...]
    sentences: tuple[str, ...]


@dataclass
class _Place:
    """One sysroot and its folder of incomplete files; what has which path is known by ``struct address_space``."""

    whole: Tree
    incomplete: Tree
    names: dict[bytes, int] = field(default_factory=dict)
    written: dict[tuple[int, bytes], RecoveredFile] = field(default_factory=dict)

    def agrees(self, wanted: dict[bytes, int]) -> bool:
        return all(self.names.get(path, mapping) == mapping for path, mapping in wanted.items())


class Recovery:
    """The files of all processes of a run.

    Args:
        processes: of the dump.
        folder: the first sysroot; others are beside it, as FOLDER.2, FOLDER.incomplete.
        force: replace existing files.

    Raises:
        LayoutUnknown, MemoryFault: there is no page cache that can be searched, or files' sizes are not known.
    """

    def __init__(self, processes: Processes, folder: Path, *, force: bool = False) -> None:
        self.processes, self.folder, self.force = processes, folder, force
        for struct, member in (("address_space", "host"), ("inode", "i_size")):
            processes.kernel.layout.member(struct, member)  # without a file's size, none is ever whole
        self.cache = PageCache(processes.kernel)
        self._places: list[_Place] = []

    def add(self, leader: StructView, captured: Captured | None = None) -> RecoveredFiles:
        """Write what a process has mapped of ELF files, and its os-release.

        Args:
            leader: the thread group's leader.
            captured: the process, if it was captured already.

        Raises:
            TaskError, MemoryFault, LayoutError, CorruptStructure: the process cannot be converted.
        """
        captured = captured or self.processes.capture(leader, dump_filter=EVERYTHING, with_absent=False)
        return _OfProcess(self, captured.snapshot, captured.memory, leader).run()

    def place(self, wanted: dict[bytes, int]) -> _Place:
        """Return the first place in which no path has another file; a new one where there is none."""
        for place in self._places:
            if place.agrees(wanted):
                return place
        number = len(self._places) + 1
        if number > TREES_MAX:
            raise OutputError(f"{self.folder}: more than {TREES_MAX} processes have other files at the same paths")
        name = self.folder.name if number == 1 else f"{self.folder.name}.{number}"
        whole, incomplete = (Tree(self.folder.with_name(n), force=self.force) for n in (name, f"{name}.incomplete"))
        self._places.append(_Place(whole, incomplete))
        return self._places[-1]


class _OfProcess:
    """The files of one process; its attributes are what the steps share."""

    def __init__(self, recovery: Recovery, snapshot: ProcessSnapshot, memory: UserMemory, leader: StructView) -> None:
        self.recovery, self.snapshot, self.memory, self.leader = recovery, snapshot, memory, leader
        self.swap = recovery.processes.swap.space
        self.files: dict[bytes, StructView] = {}
        self.path_of: dict[bytes, bytes] = {}  # by the mapping's path, which may say " (deleted)"
        self.sentences: list[str] = []

    def run(self) -> RecoveredFiles:
        self._choose()
        links = self._links()
        wanted = {path: int(mapping.address) for path, mapping in self.files.items()}
        wanted |= {name: wanted[path] for name, path in links.items()}
        place = self.recovery.place(wanted)
        place.names |= wanted
        files = [file for path, mapping in self.files.items() for file in self._recovered(place, path, mapping)]
        whole = {file.path for file in files if not file.missing_pages}
        for name, path in links.items():
            if path in whole:
                self._link(place, name, path)
        if files and not self.recovery.cache.tells_uptodate:
            self.sentences.append(NOT_CHECKED)
        program = self.path_of.get(program_path(self.snapshot) or b"")
        return RecoveredFiles(
            sysroot=place.whole.folder,
            program=program if program in whole else None,
            libraries=tuple(sorted({path.rpartition(b"/")[0] for path in whole - {program, *OS_RELEASE}})),
            files=tuple(files),
            sentences=tuple(self.sentences),
        )

    def _choose(self) -> None:
        """Find the ELF files that the process has mapped, and the file that tells what system it saw."""
        paths = {int(vma.start): vma.path for vma in self.snapshot.vmas}
        chosen: set[int] = set()
        for view in self._vmas():
            try:
                path = paths.get(mm.vma_start(view))
                file = view.follow("vm_file", "file")
                mapping = None if file is None else file.follow("f_mapping", "address_space")
                if mapping is None or path is None or mapping.address in chosen:
                    continue
                if self._is_image(mapping, executed=bool(view.ulong("vm_flags") & mm.VM_EXEC)):
                    chosen.add(mapping.address)
                    short = path.removesuffix(DELETED)
                    self.path_of[path] = path if short in self.files else short
                    self.files[self.path_of[path]] = mapping
            except BROKEN as error:
                self.sentences.append(f"the file mapped at {mm.vma_start(view):#x} is not recovered: {error}")
        self._choose_os_release()

    def _vmas(self) -> Iterator[StructView]:
        try:
            yield from mm.for_each_vma(self.recovery.processes.mm_of(self.leader))
        except BROKEN as error:
            self.sentences.append(f"files may be missing: {error}")

    def _is_image(self, mapping: StructView, *, executed: bool) -> bool:
        """Tell whether a file begins as an ELF file; where that is not known, whether it is executed."""
        first = FilePages(self.recovery.cache, mapping, self.swap, first_only=True)
        return executed if first.size and not first.known[0] else first.read(0, len(ELFMAG)) == ELFMAG

    def _choose_os_release(self) -> None:
        """Find /etc/os-release, or what it is a link to, in the root directory of the process."""
        try:
            fs_struct = self.leader.follow("fs", "fs_struct")
            root = None if fs_struct is None else fs_struct.embedded("root", "path").follow("dentry", "dentry")
            for path in OS_RELEASE:
                inode = None if root is None else dcache.lookup(root, path[1:])
                mapping = None if inode is None else inode.follow("i_mapping", "address_space")
                # A link's inode has its text there.
                if mapping is not None and inode is not None and S_ISREG(inode.uint("i_mode", size=2)):
                    self.files[path] = mapping
        except BROKEN as error:
            log.info("os-release of PID %d is not looked for: %s", self.snapshot.tgid, error)

    def _links(self) -> dict[bytes, bytes]:
        """Return the names by which the dynamic linker has the files, where these are others."""
        links = {}
        for loaded in link_map(self.snapshot, self.memory.read).objects:
            vma = vma_at(self.snapshot, loaded.l_ld)
            path = None if vma is None else self.path_of.get(vma.path or b"")
            name = loaded.l_name
            # What leads through ".." is found by its last component, in the script's solib-search-path.
            if path is not None and name.startswith(b"/") and name not in self.files and b".." not in name.split(b"/"):
                links[name] = path
        return links

    def _link(self, place: _Place, name: bytes, path: bytes) -> None:
        try:
            place.whole.link(name, path)
        except OutputError as error:
            self.sentences.append(str(error))

    def _recovered(self, place: _Place, path: bytes, mapping: StructView) -> Iterator[RecoveredFile]:
        """Write a file that is not there yet, and yield what there is to say of it; nothing where that failed."""
        key = int(mapping.address), path
        try:
            if key not in place.written:
                place.written[key] = self._write(place, path, FilePages(self.recovery.cache, mapping, self.swap))
            file = place.written[key]
        except (*BROKEN, OutputError) as error:
            self.sentences.append(f"{text(path)} is not recovered: {error}")
            return
        if file.missing_pages:
            self.sentences.append(
                f"{text(path)} is not whole: {file.missing_pages} of its pages are not in memory; what there is, is in "
                f"{file.folder}"
            )
        yield file

    def _write(self, place: _Place, path: bytes, pages: FilePages) -> RecoveredFile:
        """Write a file where it belongs: pages may turn out to be damaged only when they are read.

        Raises:
            OutputError: it cannot be written, or is not the file that the process had.
        """
        ours, theirs = self._build_ids(path, pages)
        if ours is not None and theirs is not None and ours != theirs:
            raise OutputError(f"its build ID is {ours.hex()}, that of the process's memory {theirs.hex()}")
        for _ in range(REWRITES_MAX):
            whole = bool(pages.known.all())
            tree = place.whole if whole else place.incomplete
            try:
                with tree.create(path) as fd:
                    _copy(pages, fd, whole=whole)
                if not whole:
                    with tree.create(path + MISSING_SUFFIX) as fd:
                        _pwrite(fd, memoryview(b"".join(b"%#x-%#x\n" % run for run in pages.missing)), 0)
            except _PagesDamaged:
                continue
            missing = int(np.count_nonzero(~pages.known))
            return RecoveredFile(path, tree.folder, pages.size, missing, _hex(ours), _hex(theirs))
        raise OutputError("its pages read differently each time")

    def _build_ids(self, path: bytes, pages: FilePages) -> tuple[bytes | None, bytes | None]:
        """Return the build ID of a file, and of what the process has mapped of it."""
        elf_class, order = self.snapshot.elf_class, self.snapshot.byte_order
        first = next((v for v in self.snapshot.vmas if v.pgoff == 0 and self.path_of.get(v.path or b"") == path), None)
        theirs = None if first is None else build_id(mapped(first, self.memory), elf_class, order)
        return build_id(pages.read, elf_class, order), theirs


def _copy(pages: FilePages, fd: int, *, whole: bool) -> None:
    """Write what is known of a file; the rest stays a hole.

    Raises:
        _PagesDamaged: it was to be whole, and is not.
    """
    os.ftruncate(fd, pages.size)
    for index, rows in pages.batches():
        cuts = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        for first, last in itertools.pairwise(cuts):
            if first < last:
                at = int(index[first]) * pages.page_size
                _pwrite(fd, rows[first:last].reshape(-1).data[: pages.size - at], at)
    if whole and not pages.known.all():
        raise _PagesDamaged


def _pwrite(fd: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
