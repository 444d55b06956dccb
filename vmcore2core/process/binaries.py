"""Programs, libraries and their debug information as files, found by build ID.

In this order: ``sysroot/`` beside the dump, the folders that ``--sysroot`` names (at the file's path, then in any
``.build-id`` tree below them), the debug trees of this machine, debuginfod servers. A file with another build ID is
never taken. If the page with the build ID is not in the dump, the file at the path is taken if it has the mapped file's
size and its segments lie where the mappings are.

References: gdb's manual, "Separate Debug Files"; binutils' bfd/opncls.c (2.44) for .gnu_debuglink.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vmcore2core.containers.remote import Url
from vmcore2core.elf.build_id import build_id
from vmcore2core.elf.headers import ElfHeaders, parse_headers
from vmcore2core.errors import CorruptStructure, OutputError
from vmcore2core.folders import opened_folder
from vmcore2core.formats import elf
from vmcore2core.interfaces import ByteOrder
from vmcore2core.process.debuginfod import Debuginfod, Kind
from vmcore2core.process.model import Vma
from vmcore2core.process.sysroot import OriginalFile, Sysroot

DEBUG_TREE = Path("/usr/lib/debug")
SYSROOT = "sysroot"
TREE = ".build-id"
TREE_DEPTH = 4
FOLDERS_MAX = 4096


class MappedImage(NamedTuple):
    """An ELF file that a process has mapped.

    Attributes:
        path: as the process sees it.
        build_id: as read from memory, or None if it is not there.
        size: of the file in bytes, or None if it is not known.
        vmas: its mappings.
        elf_class, byte_order, page_size: of the process.
    """

    path: bytes
    build_id: bytes | None
    size: int | None
    vmas: tuple[Vma, ...]
    elf_class: int
    byte_order: ByteOrder
    page_size: int


@dataclass
class Binaries:
    """Where to look for files.

    Attributes:
        sysroots: folders with the machine's files at their paths, in search order.
        debug_trees: folders laid out like /usr/lib/debug.
        debuginfod: servers, or None to ask no server.
        notices: sentences about files that were used or rejected.
    """

    sysroots: tuple[Sysroot, ...] = ()
    debug_trees: tuple[Path, ...] = ()
    debuginfod: Debuginfod | None = None
    notices: list[str] = field(default_factory=list)
    _trees: list[Path] | None = None

    @property
    def all_notices(self) -> list[str]:
        """``notices``, and the notices about servers."""
        return self.notices + (self.debuginfod.notices if self.debuginfod is not None else [])

    def program(self, image: MappedImage) -> OriginalFile | None:
        """Return the mapped file, or None if it is not found."""
        for sysroot in self.sysroots:
            found = sysroot.find(image.path)
            if found is not None and (file := self._judged(found, image)) is not None:
                return file
        if image.build_id is None:
            return None
        for found in self._in_trees(image.build_id, ""):
            if (file := self._opened(found, image, image.build_id)) is not None:
                return file
        return self._asked(image, image.build_id, Kind.EXECUTABLE)

    def debug_information(self, image: MappedImage, build_id: bytes, link: bytes | None) -> OriginalFile | None:
        """Return the separate debug file of an image, or None.

        Args:
            image: the image.
            build_id: from memory, or from the file that was found.
            link: name in its .gnu_debuglink, or None.
        """
        for found in (*self._in_trees(build_id, ".debug"), *self._by_link(image.path, link)):
            if (file := self._opened(found, image, build_id)) is not None:
                return file
        return self._asked(image, build_id, Kind.DEBUGINFO)

    def _asked(self, image: MappedImage, build_id: bytes, kind: Kind) -> OriginalFile | None:
        found = self.debuginfod.find(build_id, kind) if self.debuginfod is not None else None
        return None if found is None else self._opened(found, image, build_id)

    def _judged(self, found: Path, image: MappedImage) -> OriginalFile | None:
        """Return the file at the image's path if it is the mapped one; otherwise add a notice."""
        if image.build_id is not None:
            return self._opened(found, image, image.build_id, say=True)
        file = _open(found, image.page_size)
        headers = None if file is None else _headers(file, image)
        if file is None or headers is None:
            return None
        if image.size != file.size or not is_mapped_so(headers, image.vmas, image.page_size):
            self._say(f"{found} is not used: its size or segments are not those of the file that was mapped")
            return None
        self._say(
            f"{found} is taken by its path, size and segments: the page of memory that has its build ID is not in the "
            "dump"
        )
        return file

    def _opened(self, found: Path, image: MappedImage, wanted: bytes, *, say: bool = False) -> OriginalFile | None:
        file = _open(found, image.page_size)
        theirs = None if file is None else build_id(file.bytes_at, image.elf_class, image.byte_order)
        if theirs == wanted:
            return file
        if say:
            other = "it has none" if theirs is None else f"its own is {theirs.hex()}"
            self._say(f"{found} is not used: memory has the build ID {wanted.hex()}, {other}")
        return None

    def _say(self, sentence: str) -> None:
        if sentence not in self.notices:
            self.notices.append(sentence)

    def _in_trees(self, wanted: bytes, suffix: str) -> Iterator[Path]:
        """Yield the files that the .build-id trees have for a build ID."""
        digits = wanted.hex()
        if len(wanted) < 2:
            return
        for tree in self._build_id_trees():
            found = tree / digits[:2] / f"{digits[2:]}{suffix}"
            if found.is_file():
                yield found

    def _build_id_trees(self) -> list[Path]:
        if self._trees is None:
            below = [tree for sysroot in self.sysroots for tree in _trees_below(sysroot.folder)]
            self._trees = [*dict.fromkeys((*below, *(folder / TREE for folder in self.debug_trees)))]
        return self._trees

    def _by_link(self, path: bytes, link: bytes | None) -> Iterator[Path]:
        """Yield the paths that .gnu_debuglink may mean: beside the file, in .debug/ there, and in the debug trees."""
        if link is None or b"/" in link:
            return
        folder = path.rpartition(b"/")[0]
        for sysroot in self.sysroots:
            for place in (folder, folder + b"/.debug", b"/usr/lib/debug" + folder):
                found = sysroot.find(place + b"/" + link)
                if found is not None:
                    yield found
        for tree in self.debug_trees:
            try:
                found = tree / os.fsdecode(folder).lstrip("/") / os.fsdecode(link)
                if ".." not in found.parts and found.is_file():
                    yield found
            except (OSError, ValueError):
                continue


def binaries(
    dump: Path,
    sysroots: Sequence[Path] = (),
    debug_trees: Sequence[Path] = (DEBUG_TREE,),
    server: Debuginfod | None = None,
) -> Binaries:
    """Return where to look for the files of a dump's processes.

    Args:
        dump: its folder may have a ``sysroot/``.
        sysroots: the folders that ``--sysroot`` names, in search order.
        debug_trees: searched if a sysroot or a server is given.
        server: of debuginfod.

    Raises:
        UsageError: a sysroot is not a directory.
    """
    folders = [] if isinstance(dump, Url) else _own(dump.parent / SYSROOT)
    folders += sysroots
    trees = tuple(debug_trees) if sysroots or server is not None else ()
    return Binaries(tuple(Sysroot(folder) for folder in folders), trees, server)


def _own(folder: Path) -> list[Path]:
    """Return a folder that the user did not name, if no other user can have put it there."""
    try:
        with opened_folder(folder):
            return [folder]
    except (OSError, OutputError):
        return []


def is_mapped_so(headers: ElfHeaders, vmas: Sequence[Vma], page_size: int) -> bool:
    """Tell whether a file's mappings match its segments: their places, and which of them are code."""
    found = [set(biases(headers, vma, page_size)) for vma in vmas]
    return bool(found) and bool(set.intersection(*found))


def biases(headers: ElfHeaders, vma: Vma, page_size: int) -> Iterator[int]:
    """Yield the possible load biases: what to add to a file's addresses to get those of the mapping."""
    if vma.pgoff is None:
        return
    first = vma.pgoff * page_size
    for segment in headers.segments:
        if segment.p_type != elf.PT_LOAD or bool(segment.p_flags & elf.PF_X) != bool(vma.p_flags & elf.PF_X):
            continue
        if segment.p_offset & -page_size <= first < segment.p_offset + segment.p_filesz:
            yield vma.start - first + segment.p_offset - segment.p_vaddr


def _headers(file: OriginalFile, image: MappedImage) -> ElfHeaders | None:
    try:
        return parse_headers(file.bytes_at, image.elf_class, image.byte_order)
    except CorruptStructure:
        return None


def _open(path: Path, page_size: int) -> OriginalFile | None:
    try:
        return OriginalFile(path, page_size)
    except OSError:
        return None


def _trees_below(folder: Path) -> Iterator[Path]:
    """Yield the .build-id folders below a folder, up to a bounded depth and number."""
    usual = folder / "usr/lib/debug" / TREE
    if usual.is_dir():
        yield usual
    level, seen = [folder], 0
    for _ in range(TREE_DEPTH):
        deeper: list[Path] = []
        for at in level:
            try:
                inside = sorted(entry.name for entry in os.scandir(at) if entry.is_dir(follow_symlinks=False))
            except OSError:
                continue
            seen += len(inside)
            if TREE in inside:
                yield at / TREE
            if seen > FOLDERS_MAX:
                return
            deeper += [at / name for name in inside if name != TREE]
        level = deeper
