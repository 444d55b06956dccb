"""Runs inside gdb and lldb: finds the files that a process had loaded, by build ID, and loads each at its address.

Start scripts load this file from the folder of the cores. It searches ``sysroot`` beside the core; each folder in
$VMCORE2CORE_SYSROOT (DIR:DIR; "/" if unset), at the file's path and in .build-id trees; the debugger's own folders of
debug files; and debuginfod. If a file is nowhere, the debugger gets the incomplete copy that was recovered from memory,
in ``sysroot.incomplete``. A file with another build ID is never loaded. One line lists the files that were not found.

Reference: System V gABI, "Program Header" and "Note Section".
"""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

PT_LOAD, PT_NOTE, PF_X = 1, 4, 1
SHT_NOTE, NT_GNU_BUILD_ID = 7, 3
HEADERS_MAX = 1 << 14
NOTES_MAX = 1 << 16
LINKS_MAX = 40
PAGE_MAX = 1 << 16
LLDB_OF_SPLIT_FUNCTIONS = 22
"""lldb 19 loses callers of functions in several parts once it has their debug information; 22 does not."""

Download = Callable[[str], "Path | None"]
Adapt = Callable[[str, Path, int], "Path"]


class Wanted(NamedTuple):
    """One file of the process.

    Attributes:
        path: as the process saw it.
        build_id: hexadecimal digits, or None if it is not known.
        bias: load address minus the file's own addresses; None if only the file can tell.
        address: where some of its text is mapped.
        offset: file offset of that text.
        here: path of the complete copy beside the core, or None.
        partial: path of the incomplete copy beside the core, or None.
        program: whether it is the process's program.
        size: in bytes, or None if unknown.
        mtime: time of last modification, in seconds since 1970, or None if unknown.
    """

    path: str
    build_id: str | None
    bias: int | None
    address: int
    offset: int
    here: str | None
    partial: str | None
    program: bool
    size: int | None = None
    mtime: int | None = None

    def is_as_large_and_old(self, path: Path, *, any_time: bool) -> bool:
        """Tell whether a file has this one's size and, unless ``any_time``, its modification time."""
        status = path.stat()
        return self.size == status.st_size and (any_time or self.mtime == int(status.st_mtime))


class Facts(NamedTuple):
    """An ELF file's build ID, and p_offset, p_vaddr and p_filesz of its text."""

    build_id: str | None
    text: list[tuple[int, int, int]]

    def bias(self, wanted: Wanted) -> int | None:
        """Return the file's load bias, or None if the mapped text is not in this file's text segments."""
        if wanted.bias is not None:
            return wanted.bias
        for p_offset, p_vaddr, p_filesz in self.text:
            if p_offset - PAGE_MAX < wanted.offset < p_offset + p_filesz:
                return wanted.address - (p_vaddr + wanted.offset - p_offset)
        return None


class Found(NamedTuple):
    """A file that matches the wanted one.

    Attributes:
        path: where it is.
        bias: its load bias.
        partial: whether it lacks pages.
        by_path: whether it matched by path, size and time, because the wanted build ID is not known.
    """

    path: Path
    bias: int
    partial: bool
    by_path: bool = False


class Elf:
    """An open file that should be ELF; its content is not trusted."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        ident = file.read(16)
        if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ValueError("no ELF file")
        self.wide, self.order = ident[4] == 2, "<" if ident[5] == 1 else ">"
        self.header = self.unpack("HHIQQQIHHHHHH" if self.wide else "HHIIIIIHHHHHH", 16)

    def unpack(self, form: str, offset: int) -> tuple[int, ...]:
        """Return integers from the file."""
        self.file.seek(offset)
        return struct.unpack(self.order + form, self.file.read(struct.calcsize(self.order + form)))

    def segments(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield p_type, p_flags, p_offset, p_vaddr, p_filesz."""
        phoff, size, count = self.header[4], self.header[8], self.header[9]
        for at in range(phoff, phoff + size * min(count, HEADERS_MAX), size or 1):
            if self.wide:
                p_type, p_flags, p_offset, p_vaddr, _, p_filesz = self.unpack("IIQQQQ", at)
            else:
                p_type, p_offset, p_vaddr, _, p_filesz, _, p_flags = self.unpack("IIIIIII", at)
            yield p_type, p_flags, p_offset, p_vaddr, p_filesz

    def notes(self) -> Iterator[tuple[int, int]]:
        """Yield offset and size of each note segment and section; Go's linker puts the build ID only in a section."""
        for p_type, _, p_offset, _, p_filesz in self.segments():
            if p_type == PT_NOTE:
                yield p_offset, p_filesz
        shoff, size, count = self.header[5], self.header[10], self.header[11]
        for at in range(shoff, shoff + size * min(count, HEADERS_MAX), size or 1) if shoff else ():
            _, sh_type, _, _, sh_offset, sh_size = self.unpack("IIQQQQ" if self.wide else "IIIIII", at)
            if sh_type == SHT_NOTE:
                yield sh_offset, sh_size

    def build_id(self) -> str | None:
        """Return the build ID in hexadecimal, or None if the file has none."""
        for start, size in self.notes():
            at, end = start, start + min(size, NOTES_MAX)
            while at + 12 <= end:
                namesz, descsz, n_type = self.unpack("III", at)
                desc = at + 12 + (namesz + 3 & ~3)
                if n_type == NT_GNU_BUILD_ID and namesz == 4 and 0 < descsz <= 64 and desc + descsz <= end:
                    self.file.seek(at + 12)
                    if self.file.read(4) == b"GNU\0":
                        self.file.seek(desc)
                        return self.file.read(descsz).hex()
                at = desc + (descsz + 3 & ~3)
        return None


def facts_of(path: Path) -> Facts | None:
    """Return an ELF file's build ID and text segments, or None if the path is not a readable ELF file."""
    try:
        if not path.is_file():  # opening a FIFO or device may block
            return None
        with path.open("rb") as file:
            elf = Elf(file)
            text = [rest for kind, flags, *rest in elf.segments() if kind == PT_LOAD and flags & PF_X]
            return Facts(elf.build_id(), [(offset, vaddr, size) for offset, vaddr, size in text])
    except (OSError, ValueError, IndexError, struct.error):
        return None


def below(root: Path, path: str) -> Path:
    """Resolve a path inside a folder, as chroot would: absolute links start at the folder, and nothing leads out."""
    todo, links = path.split("/")[::-1], 0
    at: list[str] = []
    while todo:
        name = todo.pop()
        if name == "..":
            at = at[:-1]
        elif name not in ("", "."):
            here = root.joinpath(*at, name)
            if here.is_symlink() and links < LINKS_MAX:
                target, links = os.fspath(here.readlink()), links + 1
                at = [] if target.startswith("/") else at
                todo += target.split("/")[::-1]
            else:
                at = [*at, name]
    return root.joinpath(*at)


class Places:
    """The places to search for files, in order.

    Args:
        folder: the folder of the cores.
        debug_folders: the debugger's own folders of debug files, each with a .build-id tree.
        environ: the environment, for $VMCORE2CORE_SYSROOT.
        download: returns the file with a build ID from debuginfod, or None.

    Attributes:
        debug_folders: these and those of debug packages below $VMCORE2CORE_SYSROOT.
    """

    def __init__(
        self,
        folder: Path,
        debug_folders: Iterable[str],
        environ: Mapping[str, str] = os.environ,
        download: Download = lambda _build_id: None,
    ) -> None:
        self.folder, self.download = folder, download
        self.roots = [Path(root) for root in environ.get("VMCORE2CORE_SYSROOT", "/").split(":") if root]
        own = [Path(name) for name in debug_folders if name]
        given = [below(root, "usr/lib/debug") for root in self.roots if root != Path("/")]
        self.debug_folders = own + [path for path in given if path.is_dir() and path not in own]

    def find(self, wanted: Wanted) -> Found | None:
        """Return the file, or None if no place has it."""
        for path in self._candidates(wanted):
            facts = facts_of(path)
            bias = None if facts is None else facts.bias(wanted)
            if facts is not None and bias is not None and facts.build_id == wanted.build_id:
                return Found(path.absolute(), bias, wanted.partial is not None and path == self.folder / wanted.partial)
        return None if wanted.build_id is not None else self._by_path(wanted)

    def debug_file(self, build_id: str) -> Path | None:
        """Return the separate debug file with a build ID, or None."""
        name = f".build-id/{build_id[:2]}/{build_id[2:]}.debug"
        below_roots = (below(root, folder + name) for root in self.roots for folder in ("usr/lib/debug/", ""))
        for path in (*below_roots, *(folder / name for folder in self.debug_folders)):
            facts = facts_of(path)
            if facts is not None and facts.build_id == build_id:
                return path.absolute()
        return None

    def _by_path(self, wanted: Wanted) -> Found | None:
        """Return the file at the wanted path, if it has the mapped file's size and modification time.

        For a copy beside the core, vmcore2core compared the time before it copied the file.
        """
        here = [] if wanted.here is None else [self.folder / wanted.here]
        for path in (*here, *(below(root, wanted.path) for root in self.roots)):
            facts = facts_of(path)
            bias = None if facts is None else facts.bias(wanted)
            if bias is not None and wanted.is_as_large_and_old(path, any_time=path in here):
                return Found(path.absolute(), bias, partial=False, by_path=True)
        return None

    def _candidates(self, wanted: Wanted) -> Iterator[Path]:
        if wanted.here is not None:
            yield self.folder / wanted.here
        if wanted.build_id is not None:
            yield from self._elsewhere(wanted.path, wanted.build_id)
        if wanted.partial is not None:
            yield self.folder / wanted.partial

    def _elsewhere(self, path: str, build_id: str) -> Iterator[Path]:
        tree = f".build-id/{build_id[:2]}/{build_id[2:]}"
        # Not xx/yyyy.debug: it has no call frame information, and debuggers look for it themselves.
        for root in self.roots:
            yield below(root, path)
            for name in ("", "usr/lib/", "usr/lib/debug/"):
                yield below(root, name + tree)
        for folder in self.debug_folders:
            yield folder / tree
        downloaded = self.download(build_id)
        if downloaded is not None:
            yield downloaded


def missing(wanted: list[Wanted]) -> str:
    """Return one line that lists the files that were not found."""
    named = ", ".join(
        f"{quote(w.path, safe='/+=@,:~')} ({_known_by(w)}{'; in part' if w.partial else ''})" for w in wanted
    )
    return f"vmcore2core: wanted, but not found (VMCORE2CORE_SYSROOT=DIR says where to look): {named}"


def _known_by(wanted: Wanted) -> str:
    if wanted.build_id is not None or wanted.size is None or wanted.mtime is None:
        return f"build ID {wanted.build_id or 'not known'}"
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wanted.mtime))
    return f"build ID not known; {wanted.size} bytes of {shown}"


def taken_by_path(paths: list[str]) -> str:
    """Return one line that lists the files that were accepted although their build ID is not known."""
    known = "by path, size and time, as the dump does not have the build ID"
    return f"vmcore2core: {known}: {', '.join(quote(path, safe='/+=@,:~') for path in paths)}"


class Loaded(NamedTuple):
    """The files that a debugger has.

    Attributes:
        lost: wanted paths of files that are missing or incomplete.
        whole: complete files and their load biases, by wanted path.
    """

    lost: set[str]
    whole: dict[str, tuple[Path, int]]


def said(lost: list[Wanted], by_path: list[str]) -> set[str]:
    """Print the lines about files, and return the paths of files that were not found."""
    for line in [missing(lost)] * bool(lost) + [taken_by_path(by_path)] * bool(by_path):
        print(line, flush=True)
    return {one.path for one in lost}


class Gdb:
    """Loads files into gdb, whose ``gdb`` module exists only inside gdb.

    Args:
        folder: the folder of the cores.
        wanted: the files, as arguments of ``Wanted``.
        download: as in ``Places``.
    """

    def __init__(self, folder: str, wanted: list[tuple[Any, ...]], download: Download) -> None:
        import gdb

        self.gdb: Any = gdb
        self.partial_program: int | None = None  # load bias of a program that lacks pages
        self.wanted = [Wanted(*one) for one in wanted]
        self.places = Places(
            Path(folder), str(gdb.parameter("debug-file-directory") or "").split(":"), download=download
        )
        folders = ":".join(os.fspath(path.absolute()) for path in self.places.debug_folders)
        if folders.isprintable():
            gdb.execute(f"set debug-file-directory {folders}")

    def program(self) -> None:
        """Load the program, before the core: with it, gdb follows the dynamic linker's list."""
        for wanted in self.wanted:
            if wanted.program and (found := self.places.find(wanted)) is not None:
                self.partial_program = found.bias if found.partial else None
                self.gdb.execute(f"file {_quoted(found.path)}", to_string=True)

    def rest(self) -> Loaded:
        """Load the files that gdb did not find through the dynamic linker's list."""
        there = [one for one in self.gdb.objfiles() if one.owner is None]
        loaded = [(one.build_id, Path(one.filename)) for one in there if one.build_id]
        names = {os.path.realpath(one.filename) for one in there if one.filename}
        lost, by_path, whole = [], [], dict[str, tuple[Path, int]]()
        for wanted in self.wanted:
            own = next((one for one in loaded if one[0] == wanted.build_id), None)
            if own is not None:
                loaded.remove(own)
                if wanted.program and self.partial_program is not None:
                    lost.append(wanted)
                    self._add_debug_file(wanted, self.partial_program)
                elif wanted.bias is not None:
                    whole[wanted.path] = own[1], wanted.bias
                continue
            found = self.places.find(wanted)
            if found is None or found.partial:
                lost.append(wanted)
            else:
                whole[wanted.path] = found.path, found.bias
            by_path += [wanted.path] if found is not None and found.by_path else []
            if found is not None and not (found.by_path and os.path.realpath(found.path) in names):
                self._add(found.path, found.bias)
                if found.partial:
                    self._add_debug_file(wanted, found.bias)
        return Loaded(said(lost, by_path), whole)

    def _add(self, path: Path, bias: int) -> None:
        self.gdb.execute(f"add-symbol-file {_quoted(path)} -o {'-' * (bias < 0)}{abs(bias):#x}", to_string=True)

    def _add_debug_file(self, wanted: Wanted, bias: int) -> None:
        """Add debug information for a file that lacks pages; gdb cannot match its sections to the debug file's."""
        found = None if wanted.build_id is None else self.places.debug_file(wanted.build_id)
        if found is not None:
            self._add(found, bias)


def _quoted(path: Path) -> str:
    """Quote a path for gdb, which splits command lines as libiberty's buildargv() does.

    A path with a line break cannot be quoted; it gets a link with another name.
    """
    if not os.fspath(path).isprintable():
        folder = tempfile.mkdtemp(prefix="vmcore2core-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder) / "file"
        link.symlink_to(path)
        path = link
    return '"' + "".join("\\" + char if char in '"\\' else char for char in os.fspath(path)) + '"'


def in_lldb(wanted: list[tuple[Any, ...]], download: Download, adapt: Adapt) -> Loaded:
    """Load each file that lldb lacks, and remove modules with another build ID that lldb found on this machine.

    Args:
        wanted: the files, as arguments of ``Wanted``.
        download: as in ``Places``.
        adapt: returns the file to load in place of an incomplete one, by its wanted path, path and load bias.
    """
    import lldb

    files = [Wanted(*one) for one in wanted]
    target = lldb.debugger.GetSelectedTarget()
    folders = lldb.debugger.GetInternalVariableValue("target.debug-file-search-paths", lldb.debugger.GetInstanceName())
    debug = [folders.GetStringAtIndex(i) for i in range(folders.GetSize())]
    places = Places(Path(__file__).absolute().parent, [*debug, "/usr/lib/debug"], download=download)
    if version_of(lldb.SBDebugger.GetVersionString()) >= LLDB_OF_SPLIT_FUNCTIONS:
        paths = " ".join(_quoted(path.absolute()) for path in places.debug_folders)
        # -g: lldb finds debug files by the setting of targets to come, not by this target's.
        lldb.debugger.HandleCommand(f"settings set -g target.debug-file-search-paths {paths}")
    own = {one.build_id for one in files}
    for module in list(target.modules):
        if _build_id(module) not in own and not module.file.basename.startswith("["):
            target.RemoveModule(module)
    whole = {one.path: found for one in files if (found := _load_in_lldb(target, places, one, adapt)) is not None}
    lost = [one for one in files if one.path not in whole]
    by_path = [one.path for one in files if one.build_id is None and one not in lost]
    return Loaded(said(lost, by_path), whole)


def version_of(text: str) -> int:
    """Return the major version in a text such as "lldb version 19.1.7"; 0 if there is none."""
    number = text.partition("version ")[2].partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _build_id(module: Any) -> str:  # noqa: ANN401
    return (module.GetUUIDString() or "").replace("-", "").lower()


def _load_in_lldb(target: Any, places: Places, wanted: Wanted, adapt: Adapt) -> tuple[Path, int] | None:  # noqa: ANN401
    """Load a file into lldb at its address; return path and load bias if it is complete, else None."""
    module = target.ResolveLoadAddress(wanted.address).module
    if wanted.build_id and _build_id(module) == wanted.build_id:
        return Path(module.file.fullpath), wanted.bias or 0
    found = places.find(wanted)
    if found is None:
        return None
    there = (module for module in target.modules if wanted.build_id and _build_id(module) == wanted.build_id)
    path = adapt(wanted.path, found.path, found.bias) if found.partial else found.path
    module = next(there, None) or target.AddModule(os.fspath(path), None, None)
    loaded = bool(module) and target.SetModuleLoadAddress(module, found.bias % (1 << 64)).Success()
    return (found.path, found.bias) if loaded and not found.partial else None
