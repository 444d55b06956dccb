"""The dump as a user names it: files, a kdump directory, memory banks, or ``vmlinux vmcore`` as for crash."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmcore2core.containers.raw import banks
from vmcore2core.containers.remote import located
from vmcore2core.errors import DumpError, UsageError
from vmcore2core.formats.elf import EI_DATA, ELF_BYTE_ORDERS, ELFMAG

IN_DIRECTORY = ("vmcore", "dump.*", "vmcore.*", "vmcore-incomplete")
"""File names in kdump's directories: RHEL's vmcore, Debian's dump.DATE; makedumpfile --split writes several."""
ET_EXEC, ET_DYN = 2, 3
E_TYPE = 16


class NamedDump(NamedTuple):
    """The dump's files, and the options that the user's words imply.

    Attributes:
        said: sentences that tell the user how the words were understood.
    """

    paths: list[Path]
    vmlinux: Path | None
    memory_map: str | None
    said: tuple[str, ...] = ()


def named_dump(words: Sequence[str], vmlinux: Path | None, memory_map: str | None) -> NamedDump:
    """Return the files that the words on a command line name.

    Args:
        words: paths and URLs.
        vmlinux: the kernel's ELF file, if an option names it.
        memory_map: the memory map, if an option gives it.

    Raises:
        UsageError: two files are a vmlinux, or some files have an address and others do not.
        DumpError: a directory holds no dump, or several.
    """
    paths = [located(word) for word in words]
    said = []
    if len(paths) > 1:
        kernels = [path for path in paths if _is_program(path)]
        if kernels and (len(kernels) > 1 or vmlinux is not None):
            raise UsageError(f"{kernels[0]} is taken as --vmlinux, and so is {vmlinux or kernels[1]}: expected one")
        if kernels:
            vmlinux, paths = kernels[0], [path for path in paths if path != kernels[0]]
            said.append(f"taking {vmlinux} as --vmlinux")
    if len(paths) == 1 and paths[0].is_dir():
        directory, paths = paths[0], _in_directory(paths[0])
        said.append(f"taking {', '.join(path.name for path in paths)} in {directory}")
    paths, memory_map = banks(paths, memory_map)
    return NamedDump(paths, vmlinux, memory_map, tuple(said))


def _is_program(path: Path) -> bool:
    """Tell whether a file is an ELF program; a vmlinux is one, a dump is not."""
    try:
        with path.open("rb") as file:
            head = file.read(E_TYPE + 2)
    except (OSError, ValueError):
        return False
    if not head.startswith(ELFMAG) or len(head) < E_TYPE + 2 or head[EI_DATA] not in ELF_BYTE_ORDERS:
        return False
    return int.from_bytes(head[E_TYPE:], ELF_BYTE_ORDERS[head[EI_DATA]]) in (ET_EXEC, ET_DYN)


def _in_directory(directory: Path) -> list[Path]:
    """Return the dump in a directory; kdump makes one directory per crash.

    Raises:
        DumpError: it holds no dump, or cannot be read, which glob() reports as empty.
    """
    if not os.access(directory, os.R_OK | os.X_OK):
        raise DumpError(f"{directory} cannot be read: Permission denied")
    for pattern in IN_DIRECTORY:
        found = sorted(path for path in directory.glob(pattern) if path.is_file() and "dmesg" not in path.name)
        if found:
            return found
    raise DumpError(f"{directory} is a directory, and none of {', '.join(IN_DIRECTORY)} is in it; expected a dump")


def _may_look_into(directory: Path) -> bool:
    return os.access(directory, os.R_OK | os.X_OK)


def find_dump(environ: str | None) -> tuple[Path, str]:
    """Return the dump to use when the user names none, and how it was found.

    Raises:
        DumpError: there is none.
    """
    if environ:
        return located(environ), "$VMCORE"
    if Path("/proc/vmcore").exists():
        return Path("/proc/vmcore"), "this is a capture kernel"
    newest: tuple[float, Path] | None = None
    # Debian's kdump-tools: /var/crash/YYYYMMDDHHMM/dump.YYYYMMDDHHMM; RHEL's kdump: /var/crash/HOST-DATE/vmcore.
    crashes = Path("/var/crash")
    for pattern in ("*/vmcore", "*/dump.*", "vmcore*", "*/vmcore.*", "*/vmcore-incomplete"):
        for path in crashes.glob(pattern):
            try:
                stat = path.stat()
            except OSError:
                continue
            if path.is_file() and "dmesg" not in path.name and (newest is None or stat.st_mtime > newest[0]):
                newest = stat.st_mtime, path
    if newest is None:
        shut = [path for path in (crashes, *crashes.glob("*")) if path.is_dir() and not _may_look_into(path)]
        hint = f"; you have no permission to look into {shut[0]}" if shut else ""
        raise DumpError(
            f"no dump is named, $VMCORE is not set, and there is none at /proc/vmcore or below /var/crash{hint}"
        )
    return newest[1], "the newest below /var/crash"
