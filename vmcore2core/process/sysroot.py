"""Original files, for pages of programs and libraries that are no longer in memory.

We use a file only if it has the build ID that is in the process's own memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PageIndices, U8Array
from vmcore2core.elf.build_id import build_id
from vmcore2core.elf.headers import Read, part
from vmcore2core.errors import UsageError
from vmcore2core.formats import elf
from vmcore2core.interfaces import ByteOrder
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.model import AbsentReason, Vma

LINKS_MAX = 40
FROM_FILE = frozenset({AbsentReason.NOT_CACHED, AbsentReason.EXCLUDED, AbsentReason.NOT_IN_DUMP})
DELETED = b" (deleted)"


class OriginalFile:
    """``memory.pages.Original``: a file on disk, opened for each read, as a process may have hundreds.

    Args:
        path: of the file.
        page_size: of the process.

    Raises:
        OSError: its status cannot be read.
    """

    def __init__(self, path: Path, page_size: int) -> None:
        self.path, self._page_size = path, page_size
        self._status = _identity(path.stat())
        self.size = path.stat().st_size

    def has(self, indices: PageIndices) -> NDArray[np.bool_]:
        """Tell which pages lie within the file."""
        found: NDArray[np.bool_] = indices < np.uint64(-(-self.size // self._page_size))
        return found

    def read(self, indices: PageIndices) -> tuple[U8Array, NDArray[np.bool_]]:
        """Return the pages, and which of them were read; after the file's end, its last page is zero."""
        pages = np.zeros((len(indices), self._page_size), np.uint8)
        good = np.zeros(len(indices), np.bool_)
        try:
            with self.path.open("rb", buffering=0) as file:
                if _identity(os.fstat(file.fileno())) != self._status:
                    return pages, good
                for row, index in enumerate(indices.tolist()):
                    wanted = min(self._page_size, self.size - index * self._page_size)
                    raw = os.pread(file.fileno(), wanted, index * self._page_size) if wanted > 0 else b""
                    pages[row, : len(raw)] = np.frombuffer(raw, np.uint8)
                    good[row] = len(raw) == wanted > 0
        except OSError:
            good[:] = False
        return pages, good

    def bytes_at(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the file, or None if it does not have all of them."""
        try:
            with self.path.open("rb", buffering=0) as file:
                raw = os.pread(file.fileno(), size, offset)
        except OSError:
            return None
        return raw if len(raw) == size else None


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Sysroot:
    """A folder with the machine's files at their paths.

    Args:
        folder: the folder.

    Raises:
        UsageError: it is none, or may not be looked into.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"--sysroot {folder} is not a directory")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise UsageError(f"--sysroot {folder} cannot be read: Permission denied")
        self.folder = folder.resolve()

    def find(self, path: bytes) -> Path | None:
        """Return the file at a path of the dump, or None if there is none.

        Links are followed as on the dumped machine, as after chroot(2): an absolute one begins at the folder, and no
        link leads out of it.
        """
        todo = deque(os.fsdecode(path.removesuffix(DELETED)).split("/"))
        at, links = self.folder, 0
        try:
            while todo:
                name = todo.popleft()
                if name == "..":
                    at = at if at == self.folder else at.parent
                elif name not in ("", "."):
                    at /= name
                    if at.is_symlink():
                        target, links = str(at.readlink()), links + 1
                        if links > LINKS_MAX:
                            return None
                        todo.extendleft(reversed(target.split("/")))
                        at = self.folder if target.startswith("/") else at.parent
            return at if at.is_file() else None
        except (OSError, ValueError):  # ValueError: a NUL in the name
            return None

    def complete(
        self, vmas: Sequence[Vma], memory: UserMemory, elf_class: int, order: ByteOrder
    ) -> tuple[list[Region], list[str]]:
        """Return the regions of a process with the original files of those whose pages are missing.

        Args:
            vmas: the mappings, with what is absent; as many as ``memory`` has regions, in the same order.
            memory: of the process.
            elf_class: 32 or 64.
            order: of the process.

        Returns:
            The regions; and sentences about each file that is used or is there and is not.
        """
        regions, notices = list(memory.regions), []
        judged: dict[bytes, OriginalFile | None] = {}
        for i, (vma, region) in enumerate(zip(vmas, regions, strict=True)):
            known = vma.path is None or region.backing is None or region.original is not None
            if vma.path is None or known or not any(run.reason in FROM_FILE for run in vma.absent):
                continue
            if vma.path not in judged:
                judged[vma.path], notice = self._judged(vma.path, vmas, memory, elf_class, order)
                notices += [notice] if notice else []
            regions[i] = region._replace(original=judged[vma.path])
        return regions, notices

    def has(self, path: bytes, vmas: Sequence[Vma], memory: UserMemory, elf_class: int, order: ByteOrder) -> bool:
        """Tell whether the file of a path is there, with the build ID that memory has; see ``complete``."""
        return self._judged(path, vmas, memory, elf_class, order)[0] is not None

    def _judged(
        self, path: bytes, vmas: Sequence[Vma], memory: UserMemory, elf_class: int, order: ByteOrder
    ) -> tuple[OriginalFile | None, str | None]:
        """Return the file of a path if it is the original, and a sentence about it."""
        found = self.find(path)
        if found is None:
            return None, None
        try:
            file = OriginalFile(found, memory.spec.page_size)
        except OSError as error:
            return None, f"{found} is not used: {error.strerror or error}"
        theirs = build_id(file.bytes_at, elf_class, order)
        if theirs is None:
            return None, f"{found} is not used: it has no build ID to tell that it is the file that was mapped"
        header = next((vma for vma in vmas if vma.path == path and vma.pgoff == 0), None)
        ours = None if header is None else build_id(mapped(header, vmas, memory), elf_class, order)
        if ours is None:
            return None, f"{found} is not used: the build ID of the file that was mapped is not in memory"
        if ours != theirs:
            return None, f"{found} is not used: its build ID is {theirs.hex()}, that of memory {ours.hex()}"
        return file, f"pages that are not in memory come from {found}, whose build ID {theirs.hex()} is that of memory"


def mapped(first: Vma, vmas: Sequence[Vma], memory: UserMemory) -> Read:
    """Return a reader of a file by offset, through its mappings that the process cannot write to.

    Args:
        first: a mapping of the file's beginning, or a mapping without a file.
        vmas: all mappings of the process.
        memory: of the process.
    """
    start = part(memory.read, first.start, first.end - first.start)
    page = memory.spec.page_size

    def read(offset: int, size: int) -> bytes | None:
        if first.path is None or offset + size <= first.end - first.start:
            return start(offset, size)
        for vma in vmas:
            at = None if vma.path != first.path or vma.p_flags & elf.PF_W or vma.pgoff is None else vma.pgoff * page
            if at is not None and at <= offset and offset + size <= at + vma.end - vma.start:
                return memory.read(vma.start + offset - at, size)
        return None

    return read
