"""One program or library of a sysroot, rebuilt from the page cache; any worker of a run can write it.

A file that lacks pages takes them from other files with its build ID, else it is copied from ``--sysroot``, else it
goes to the folder of incomplete files.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.corefile.sink import pwrite_all
from vmcore2core.elf.build_id import build_id
from vmcore2core.errors import DumpError, OutputError
from vmcore2core.handover.mapped import BROKEN, page_cache
from vmcore2core.handover.partial import Rebuilt, rebuilt
from vmcore2core.handover.tree import Tree
from vmcore2core.interfaces import ByteOrder
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import counted, text
from vmcore2core.process.filebacking import mtime_of
from vmcore2core.process.filepages import FilePages
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.snapshot import Processes

COPY_SIZE = 1 << 20
REWRITES_MAX = 4
MISSING_SUFFIX = b".missing"
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


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


@dataclass(frozen=True, slots=True)
class FileToWrite:
    """One file, and what a process that has mapped it knows about it.

    Attributes:
        path: below the folder, as the process sees it.
        mapping: kernel virtual address of its ``struct address_space``.
        build_id: the build ID in the process's memory, or None if it is not there.
        elf_class, byte_order: of the process.
        whole: the folder that it is written to if it is complete.
        incomplete: likewise, if it is not.
        size: of the file in bytes, as its inode says; 0 if that is not known.
        others: ``struct address_space`` and path of each other file with its build ID.
    """

    path: bytes
    mapping: int
    build_id: bytes | None
    elf_class: int
    byte_order: ByteOrder
    whole: Path
    incomplete: Path
    size: int
    others: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """The result of writing a file.

    Attributes:
        file: what was written, or None.
        sentences: where its pages come from, and why it was not written.
        checked: whether it is known that its pages had been read from disk.
        no_room: whether it was not written because the disk is full.
    """

    file: RecoveredFile | None
    sentences: tuple[str, ...]
    checked: bool = True
    no_room: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the original file must match: size, build ID, modification time in seconds since 1970; None: not known."""

    size: int
    build_id: bytes | None
    mtime: int | None


@dataclass(frozen=True)
class FileWriter:
    """Writes files of processes.

    Attributes:
        processes: the dump's processes.
        force: replace existing files.
        secrets: a file that contains one is not written.
        base: the folder that relative paths begin at.
    """

    processes: Processes
    force: bool = False
    secrets: Secrets | None = None
    base: Path = Path()

    def write(self, file: FileToWrite) -> WrittenFile:
        """Write a file, or say why that failed."""
        writing = _Writing(self, file)
        written: RecoveredFile | None
        no_room = False
        try:
            written = writing.write()
        except (*BROKEN, DumpError, OutputError) as error:
            written = None
            no_room = isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM
            writing.sentences.append(f"{text(file.path)} is not recovered: {error}")
        return WrittenFile(written, tuple(writing.sentences), writing.cache.tells_uptodate, no_room)

    def size(self, address: int) -> int:
        """Return the bytes of the file of a ``struct address_space``, 0 if that is not known."""
        try:
            inode = self.processes.kernel.view("address_space", KernelAddr(address)).follow("host", "inode")
            return 0 if inode is None else inode.uint("i_size", size=8)
        except BROKEN:
            return 0


def pages_of(processes: Processes, cache: PageCache, address: int) -> tuple[StructView, FilePages]:
    """Return a ``struct address_space``, and the pages of its file.

    Raises:
        CorruptStructure, MemoryFault, LayoutUnknown: as of ``FilePages``.
    """
    mapping = processes.kernel.view("address_space", KernelAddr(address))
    return mapping, FilePages(cache, mapping, processes.swap.space)


class _Writing:
    """Writes one file; the attributes are the steps' shared state."""

    def __init__(self, writer: FileWriter, file: FileToWrite) -> None:
        self.writer, self.file = writer, file
        self.cache = page_cache(writer.processes)  # its own, so that its sentences about pages are about this file
        self.sentences: list[str] = []

    def write(self) -> RecoveredFile:
        """Write the file to the sysroot or, if a page turns out to be damaged when read, to the incomplete files.

        Raises:
            OutputError: it cannot be written, or is not the file that the process had.
        """
        path, theirs = self.file.path, self.file.build_id
        mapping, pages = pages_of(self.writer.processes, self.cache, self.file.mapping)
        ours = build_id(pages.read, self.file.elf_class, self.file.byte_order)
        if ours is not None and theirs is not None and ours != theirs:
            raise OutputError(f"its build ID is {ours.hex()}, that of the process's memory {theirs.hex()}")
        self._complete(pages)
        inode = mapping.follow("host", "inode")
        wanted = _Wanted(pages.size, theirs or ours, None if inode is None else mtime_of(inode))
        for _ in range(REWRITES_MAX):
            whole = bool(pages.known.all())
            origin = None if whole else self._original(wanted)
            if origin is not None:
                return RecoveredFile(path, self.file.whole, pages.size, 0, _hex(theirs or ours), _hex(theirs), origin)
            folder = self.file.whole if whole else self.file.incomplete
            tree = self._tree(folder)
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
            return RecoveredFile(path, folder, pages.size, missing, _hex(ours), _hex(theirs), rebuilt=made is not None)
        raise OutputError("its pages read differently each time")

    def _tree(self, folder: Path) -> Tree:
        return Tree(self.writer.base / folder, force=self.writer.force, secrets=self.writer.secrets)

    def _complete(self, pages: FilePages) -> None:
        """Add missing pages to the file from other files with its build ID."""
        for address, path in self.file.others:
            if pages.known.all():
                return
            try:
                taken = pages.take(pages_of(self.writer.processes, self.cache, address)[1])
            except BROKEN:
                continue
            if taken:
                what = f"{counted(taken, 'page')} from another file with its build ID, {text(path)}"
                self.sentences.append(f"{text(self.file.path)} is not whole in memory: it has {what}")

    def _rebuild(self, pages: FilePages, fd: int) -> Rebuilt | None:
        """Give a file that lacks pages section headers for its known bytes."""
        file, read, known = self.file, partial(_known_at, pages, fd), partial(_is_known, pages)
        made = rebuilt(read, known, pages.size, file.elf_class, file.byte_order, pages.page_size)
        if made is not None:
            pwrite_all(fd, memoryview(made.header), 0)
            pwrite_all(fd, memoryview(made.tail), made.tail_at)
        return made

    def _original(self, wanted: _Wanted) -> Path | None:
        """Copy the file from the first --sysroot that has it, and return the path that it was copied from."""
        places = filter(None, (sysroot.find(self.file.path) for sysroot in self.writer.processes.sysroots))
        return next((found for found in places if self._is_copied(found, wanted)), None)

    def _is_copied(self, found: Path, wanted: _Wanted) -> bool:
        """Copy a file if it matches; return whether the copy exists."""
        try:
            with self._tree(self.file.whole).create(self.file.path) as fd:
                self._copy_original(found, fd, wanted)
                os.utime(fd, (0, 0))
        except OSError as error:
            self.sentences.append(f"{found} is not used: {error.strerror or error}")
            return False
        except OutputError as error:
            self.sentences.append(str(error))
            return False
        has = "its build ID" if wanted.build_id is not None else "its size and time; its build ID is not in the dump"
        self.sentences.append(
            f"{text(self.file.path)} is not whole in memory: it is copied from {found}, which has {has}"
        )
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
            build_id(partial(_read_at, fd), self.file.elf_class, self.file.byte_order),
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


def _is_known(pages: FilePages, offset: int, size: int) -> bool:
    """Return whether all pages of a range are known; no range outside of the file is."""
    first, end = offset // pages.page_size, -(-(offset + size) // pages.page_size)
    return size >= 0 and 0 <= offset <= pages.size - size and bool(pages.known[first:end].all())


def _known_at(pages: FilePages, fd: int, offset: int, size: int) -> bytes | None:
    """Return bytes of a file, as ``FilePages.read`` does, from the copy of its known pages."""
    return _read_at(fd, offset, size) if _is_known(pages, offset, size) else None


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
