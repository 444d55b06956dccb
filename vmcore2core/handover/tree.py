"""A folder of files whose names come from the dump: nothing is ever written outside it.

Each name is checked, and the folder and each directory below it is opened by its own descriptor without following links
(``folders``), so neither the dump nor existing files can lead the writer elsewhere. Files are 0600, directories 0700,
because a process's mapped files may be secret. A file gets its name only when it is complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from urllib.parse import quote

from vmcore2core.corefile.atomic import new_file
from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.folders import opened_below, opened_folder
from vmcore2core.printable import file_name, text
from vmcore2core.process.secrets import Search, Secrets

SYSROOT_NAME = "sysroot"
"""How the names of such folders begin."""
PAGE_DATA_NAME = "index.data"
"""The folder of the files that the page loads."""
_TREE = re.compile(rf"{SYSROOT_NAME}(\.\d+)?(\.incomplete)?|{re.escape(PAGE_DATA_NAME)}")
NAME_MAX = 255
LEVELS_MAX = 256
COMPARE_SIZE = 1 << 20
RENAMED = b"/.renamed/"
"""The folder of links with plain names, for files whose own names scripts cannot use."""
_PLAIN = re.compile(rb"[A-Za-z0-9._+,=@~/-]+")


def names_of(path: bytes) -> list[bytes]:
    """Return the components of a path in a tree, with control characters replaced.

    Raises:
        OutputError: a component is "..", too long, or has a NUL; or the path has no components, or too many.
    """
    if b"\0" in path:
        raise OutputError(f"{text(path[:NAME_MAX])} is not written: it has a NUL, expected a path")
    names = [file_name(name) for name in path.split(b"/") if name not in (b"", b".")]
    for name in names:
        if name == b".." or len(name) > NAME_MAX:
            raise OutputError(f"{text(path[:NAME_MAX])} is not written: {text(name[:NAME_MAX])} is no name of a file")
    if not 0 < len(names) <= LEVELS_MAX:
        raise OutputError(f"{text(path[:NAME_MAX])} is not written: {len(names)} names, expected 1 to {LEVELS_MAX}")
    return names


def check_trees(directory: Path) -> None:
    """Check, before anything is written, that existing folders are safe to write to.

    Args:
        directory: where the cores go.

    Raises:
        OutputError: a folder is a link, or other users could change it.
    """
    try:
        with opened_folder(directory) as at:
            for name in sorted(path.name for path in directory.iterdir() if _TREE.fullmatch(path.name)):
                with opened_below(at, name, f"{directory}/{name}"):
                    pass
    except OSError as error:
        raise OutputError(f"{directory} cannot be read: {error.strerror}") from error


def plain_name(path: bytes) -> bytes:
    """Return a path that start scripts can use: the path itself, or a name made from it, for a link.

    A debugger's command line could misread quotes, backslashes, control characters, and separators of commands, paths
    or options.
    """
    if _PLAIN.fullmatch(path):
        return path
    name = quote(path.strip(b"/"), safe=b"+=,@~").encode()
    return RENAMED + (name if len(name) <= NAME_MAX else name[:180] + b"." + sha256(path).hexdigest().encode())


class Tree:
    """One such folder, created with its first file.

    Args:
        folder: its path; the folder must not be a link, and ``opened_folder`` says which links above it are followed.
        force: replace existing files.
        secrets: a file is not written if its content or name contains one.

    Attributes:
        was_there: whether something had the folder's name before.
    """

    def __init__(self, folder: Path, *, force: bool = False, secrets: Secrets | None = None) -> None:
        self.folder, self.force, self.secrets = folder, force, secrets
        self.was_there = os.path.lexists(folder)

    @contextmanager
    def create(self, path: bytes) -> Iterator[int]:
        """Give a file descriptor whose file gets its name when the block ends well.

        A file with the very same content may be there already.

        Raises:
            OutputExists: another file is there, and ``force`` was not given.
            OutputError: the path is not valid in a tree, or a system call fails.
        """
        names = names_of(path)
        with self._refusals(path), self._directory(names[:-1]) as directory:
            there = partial(_same_content, name=names[-1], directory=directory)
            try:
                with new_file(directory, names[-1], ".", force=self.force, enough=there) as fd:
                    yield fd
                    self._check(fd, path)
            except FileExistsError:
                raise OutputExists(f"{self._where(path)} exists already; --force replaces it") from None

    def _check(self, fd: int, path: bytes) -> None:
        """Raise ``OutputError`` if a file's content or name contains a secret."""
        if self.secrets is None:
            return
        search = Search(self.secrets)
        for at in range(0, os.fstat(fd).st_size, COMPARE_SIZE):
            search.add(at, os.pread(fd, COMPARE_SIZE, at))
        if search.found or self.secrets.spans(path):
            raise OutputError(f"{self._where(path)} is not written: it has a secret that --redact looks for")

    def link(self, path: bytes, target: bytes) -> None:
        """Make ``path`` a relative symbolic link to another path of the tree.

        Raises:
            OutputExists: something else is there.
            OutputError: as ``create`` raises it.
        """
        names, to = names_of(path), names_of(target)
        common = next((i for i, (a, b) in enumerate(zip(names[:-1], to[:-1], strict=False)) if a != b), None)
        if common is None:
            common = min(len(names), len(to)) - 1
        content = b"/".join([b".."] * (len(names) - 1 - common) + to[common:])
        with self._refusals(path), self._directory(names[:-1]) as directory:
            try:
                os.symlink(content, names[-1], dir_fd=directory)
            except FileExistsError:
                if _content_of_link(names[-1], directory) != content:
                    raise OutputExists(f"{self._where(path)} exists already") from None

    @contextmanager
    def _directory(self, names: list[bytes]) -> Iterator[int]:
        """Open a directory of the tree, created if needed, and give its descriptor."""
        with ExitStack() as stack:
            at = stack.enter_context(opened_folder(self.folder.parent, make=True))
            shown = os.fspath(self.folder.parent)
            for name in (os.fsencode(self.folder.name), *names):
                shown = f"{shown}/{text(name)}"
                at = stack.enter_context(opened_below(at, name, shown, make=True))
            yield at

    @contextmanager
    def _refusals(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._where(path)} cannot be written: {error.strerror or error}") from error

    def _where(self, path: bytes) -> str:
        return f"{self.folder}/{text(path.lstrip(b'/'))}"


def _content_of_link(name: bytes, directory: int) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def _same_content(fd: int, name: bytes, directory: int) -> bool:
    """Tell whether ``name`` is a regular file, or a link to one, with the same content as ``fd``."""
    try:
        other = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        size, there = os.fstat(fd).st_size, os.fstat(other)
        return (S_ISREG(there.st_mode) and there.st_size == size) and all(
            os.pread(fd, COMPARE_SIZE, at) == os.pread(other, COMPARE_SIZE, at) for at in range(0, size, COMPARE_SIZE)
        )
    except OSError:
        return False
    finally:
        os.close(other)
