"""What a user names as the dump: files, a directory of kdump's, banks of memory, and crash's ``vmlinux vmcore``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmcore2core.containers.raw import banks
from vmcore2core.containers.remote import located
from vmcore2core.errors import DumpError, UsageError
from vmcore2core.formats.elf import EI_DATA, ELF_BYTE_ORDERS, ELFMAG

IN_DIRECTORY = ("vmcore", "dump.*", "vmcore.*", "vmcore-incomplete")
"""What kdump's directories have: RHEL's vmcore, Debian's dump.DATE; with makedumpfile --split, several."""
ET_EXEC, ET_DYN = 2, 3
E_TYPE = 16


@dataclass(frozen=True)
class Named:
    """The dump's files, and what came with their names.

    Attributes:
        said: sentences about what was understood.
    """

    paths: list[Path]
    vmlinux: Path | None
    memory_map: str | None
    said: tuple[str, ...] = ()


def named(words: Sequence[str], vmlinux: Path | None, memory_map: str | None) -> Named:
    """Return what the words on a command line name.

    Args:
        words: paths and URLs.
        vmlinux: what was given as the kernel's ELF file otherwise.
        memory_map: what was given as the dump's map.

    Raises:
        UsageError: two files are a vmlinux, or some files alone are given with an address.
        DumpError: a directory has no dump, or several.
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
    return Named(paths, vmlinux, memory_map, tuple(said))


def _is_program(path: Path) -> bool:
    """Tell whether a file is an ELF program, as a vmlinux is and no dump."""
    try:
        with path.open("rb") as file:
            head = file.read(E_TYPE + 2)
    except (OSError, ValueError):
        return False
    if not head.startswith(ELFMAG) or len(head) < E_TYPE + 2 or head[EI_DATA] not in ELF_BYTE_ORDERS:
        return False
    return int.from_bytes(head[E_TYPE:], ELF_BYTE_ORDERS[head[EI_DATA]]) in (ET_EXEC, ET_DYN)


def _in_directory(directory: Path) -> list[Path]:
    """Return the dump in a directory, as kdump makes one a crash.

    Raises:
        DumpError: there is none, or the directory cannot be looked into, which glob() takes for empty.
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
    """Return the dump to take when none is named, and how it was found.

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
