"""Start scripts beside a core: ``gdb -x core.app.812.gdb``, ``lldb -s core.app.812.lldb``.

All paths in them are relative to the core's folder, so that the folder can be moved as a whole. If the debugger has
Python, ``debugger_files`` finds the files that the dynamic linker's list does not lead to. gdb with Python changes to
that folder itself; other debuggers must be started there. Without Python, files come only from the sysroot beside the
core. Names come from the dump: if a debugger's command line could misread one, the script uses a link with a plain
name (``tree.plain_name``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.errors import OutputError
from vmcore2core.handover.callers import Caller, LastFrame, WithoutCfi
from vmcore2core.handover.images import Image
from vmcore2core.handover.recovered import RecoveredFiles
from vmcore2core.handover.tree import plain_name
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.sysroot import DELETED

HELPER_NAME = "debugger_files.py"
FRAMES_NAME = "debugger_frames.py"
DOWNLOAD_NAME = "debugger_download.py"
CFI_NAME = "debugger_cfi.py"
HELPERS = (HELPER_NAME, FRAMES_NAME, DOWNLOAD_NAME, CFI_NAME)
# No quotes, backslashes or control characters, and no separators of commands, paths or options.
_PLAIN = re.compile(r"[A-Za-z0-9._+,=@~%/ -]+")
_GOES_THERE = """\
# Made by vmcore2core; from the folder of the core, or with the script's path: gdb -x {script}
if ! $_isvoid ($_streq)
  python
import os, sys
def _vmcore2core_folder():
    try:
        with open("/proc/self/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\\0")]
    except OSError:
        words = []
    for word in words:
        path = word.partition("=")[2] if word.startswith("--command=") else word
        if os.path.basename(path) == {script!r} and os.path.isfile(path):
            return os.path.dirname(os.path.abspath(path))
    return os.getcwd()
if "VMCORE2CORE_SYSROOT" in os.environ: # as seen from where gdb was started
    _roots = os.environ["VMCORE2CORE_SYSROOT"].split(":")
    os.environ["VMCORE2CORE_SYSROOT"] = ":".join(os.path.abspath(root) for root in _roots if root)
os.chdir(_vmcore2core_folder())
gdb.execute("cd " + os.getcwd(), to_string=True)
try:
    gdb.execute("set debuginfod enabled " + ("on" if os.environ.get("DEBUGINFOD_URLS") else "off"))
except gdb.error:
    pass
_vmcore2core = None
def _vmcore2core_helper(name):
    helper = {{"__name__": "vmcore2core"}}
    with open(name) as file:
        exec(compile(file.read(), name, "exec"), helper)
    return helper
try:
    _vmcore2core_use = _vmcore2core_helper({frames!r})["use"]
    _vmcore2core_undescribed = _vmcore2core_helper({cfi!r})["undescribed"]
    _vmcore2core_download = _vmcore2core_helper({download!r})["download"]
    _vmcore2core = _vmcore2core_helper({helper!r})["Gdb"](os.getcwd(), [{wanted}], _vmcore2core_download)
except (OSError, SyntaxError) as error:
    print("vmcore2core: only what the dynamic linker's list leads to is loaded: " + str(error))
  end
end
"""
_PROGRAM = """\
if ! $_isvoid ($_streq)
  python if _vmcore2core: _vmcore2core.program()
end"""
_REST = """\
if ! $_isvoid ($_streq)
  python if _vmcore2core: _vmcore2core_use(_vmcore2core.rest(), _vmcore2core_undescribed, [{callers}], [{last}])
end"""


@dataclass(frozen=True, slots=True)
class Script:
    """One debugger's script: its path and text."""

    path: Path
    text: str


def write_scripts(
    core: Path,
    recovered: RecoveredFiles | None,
    images: Sequence[Image] = (),
    without_cfi: WithoutCfi | None = None,
    *,
    force: bool = False,
    secrets: Secrets | None = None,
) -> tuple[Path, ...]:
    """Write the start scripts of a core beside it, and return their paths.

    Args:
        core: the core; if it is compressed, the scripts open the unpacked file.
        recovered: its program and libraries, or None if none were recovered.
        images: where its program and libraries are loaded.
        without_cfi: the frames that were found without call frame information.
        force: replace existing scripts.
        secrets: a script that contains one is not written.

    Raises:
        OutputExists, OutputError: they cannot be written.
    """
    paths = []
    for script in (make(core, recovered, images, without_cfi) for make in (gdb_script, lldb_script)):
        if secrets is not None and secrets.spans(os.fsencode(script.text)):
            raise OutputError(f"{core} gets no start scripts: they would have a secret that --redact looks for")
        _write(script.path, script.text, force=force)
        paths.append(script.path)
    return tuple(paths)


def write_helpers(folder: Path, *, force: bool = False) -> None:
    """Write the Python files that all start scripts of a folder share, and that run in the debugger.

    Raises:
        OutputExists, OutputError: one cannot be written, or a different file is there.
    """
    for name in HELPERS:
        source = files("vmcore2core.handover").joinpath(name).read_text("utf-8")
        path = folder / name
        if not (path.is_file() and path.read_bytes() == source.encode()):
            _write(path, source, force=force)


def _write(path: Path, text: str, *, force: bool) -> None:
    with atomic_file(path, force=force) as fd, os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
        file.write(text)


def gdb_script(
    core: Path,
    recovered: RecoveredFiles | None,
    images: Sequence[Image] = (),
    without_cfi: WithoutCfi | None = None,
) -> Script:
    """Return gdb's script."""
    name = _name(core)
    path = core.with_name(f"{name}.gdb")
    there = _There(core, recovered)
    helpers = {"frames": FRAMES_NAME, "helper": HELPER_NAME, "download": DOWNLOAD_NAME, "cfi": CFI_NAME}
    lines = [_GOES_THERE.format(script=path.name, **helpers, wanted=there.wanted(images))]
    if recovered is not None:
        lines.append(f"set sysroot {there.root}")
        folders = there.folders(recovered)
        lines += [f"set solib-search-path {':'.join(folders)}"] if folders else []
    program = there.program(images)
    lines += [_PROGRAM if program is None else f'file "{program}"', f"core-file {name}", "sharedlibrary"]
    found = without_cfi or WithoutCfi()
    lines.append(_REST.format(callers=", ".join(map(_caller, found.callers)), last=", ".join(map(_last, found.last))))
    beside = [
        f'  add-symbol-file "{file}" -o {bias:#x}'
        for image, file, bias in there.loaded(images)
        if not (image.listed or image.program)
    ]
    lines += ["if $_isvoid ($_streq)", *beside, "end"] if beside else []
    return Script(path, "\n".join(lines) + "\n")


def lldb_script(
    core: Path,
    recovered: RecoveredFiles | None,
    images: Sequence[Image] = (),
    without_cfi: WithoutCfi | None = None,
) -> Script:
    """Return lldb's script."""
    name = _name(core)
    path = core.with_name(f"{name}.lldb")
    there = _There(core, recovered)
    lines = [f"# Made by vmcore2core; from the folder of the core: lldb -s {path.name}"]
    if recovered is not None:
        lines.append(f'platform select --sysroot "{there.root}" remote-linux')
        quoted = " ".join(f'"{folder}"' for folder in there.folders(recovered))
        lines += [f"settings set target.exec-search-paths {quoted}"] if quoted else []
    program = there.program(images)
    lines.append(" ".join(["target create --core", name, *([] if program is None else [f'"{program}"'])]))
    for image, file, bias in there.loaded(images):
        if not image.listed and not image.program:
            lines.append(
                f'# without Python: target modules add "{file}"; target modules load --file "{file}" --slide {bias:#x}'
            )
    lines += [f"command script import --relative-to-command-file {helper}" for helper in HELPERS]
    files, frames, download, cfi = (helper.removesuffix(".py") for helper in HELPERS)
    load = f"lambda adapt: {files}.in_lldb([{there.wanted(images)}], {download}.download, adapt)"
    found = without_cfi or WithoutCfi()
    callers, last = ", ".join(map(_caller, found.callers)), ", ".join(map(_last, found.last))
    lines.append(f"script {frames}.in_lldb({load}, {cfi}.copied, {cfi}.undescribed, [{callers}], [{last}])")
    return Script(path, "\n".join(lines) + "\n")


class _There:
    """The files beside a core, by the paths in its scripts, which are relative to the core's folder."""

    def __init__(self, core: Path, recovered: RecoveredFiles | None) -> None:
        self.root = "" if recovered is None else _below(core, recovered.sysroot)
        self._names = {} if recovered is None else recovered.names
        self._partial = {} if recovered is None else recovered.partial
        self._incomplete = "" if recovered is None else _below(core, recovered.incomplete)

    def folders(self, recovered: RecoveredFiles) -> list[str]:
        """Return the folders of libraries."""
        return [self._joined(folder) for folder in recovered.libraries if plain_name(folder) == folder]

    def file(self, image: Image) -> str | None:
        """Return the complete file of an image, or None if it is not beside the core."""
        name = self._names.get(image.path)
        return None if name is None else self._joined(name)

    def partial(self, image: Image) -> str | None:
        """Return the incomplete file of an image, or None if it is not beside the core."""
        name = self._partial.get(image.path)
        return None if name is None else f"{self._incomplete}/{os.fsdecode(name).strip('/')}"

    def program(self, images: Sequence[Image]) -> str | None:
        """Return the program's complete file, or None if it is not beside the core."""
        return next((self.file(image) for image in images if image.program), None)

    def loaded(self, images: Sequence[Image]) -> Iterator[tuple[Image, str, int]]:
        """Yield each image whose complete file is beside the core, with that file and its bias."""
        for image in images:
            file = self.file(image)
            if file is not None and image.bias is not None:
                yield image, file, image.bias

    def wanted(self, images: Sequence[Image]) -> str:
        """Return the images as Python text: ``debugger_files.Wanted`` for each."""
        return ", ".join(
            f"({_literal(os.fsdecode(image.path.removesuffix(DELETED)))}, {image.build_id!r}, {image.bias}, "
            f"{image.address:#x}, {image.offset:#x}, {self.file(image)!r}, {self.partial(image)!r}, {image.program}, "
            f"{image.size}, {image.mtime})"
            for image in images
        )

    def _joined(self, path: bytes) -> str:
        return f"{self.root}/{os.fsdecode(path).strip('/')}"


def _caller(caller: Caller) -> str:
    """Return ``debugger_frames.Caller`` as Python text."""
    path = _literal(os.fsdecode(caller.path.removesuffix(DELETED)))
    registers = ", ".join(f"({name!r}, {value:#x})" for name, value in caller.registers)
    return f"({path}, {caller.pc:#x}, {caller.sp:#x}, ({registers},), {caller.found_by!r})"


def _last(frame: LastFrame) -> str:
    """Return ``debugger_frames.LastFrame`` as Python text."""
    return f"({_literal(os.fsdecode(frame.path.removesuffix(DELETED)))}, {frame.pc:#x}, {frame.tid})"


def _literal(name: str) -> str:
    """Return a name as a Python literal without characters that debuggers interpret: lldb runs text in backticks."""
    return '"' + "".join(char if _PLAIN.fullmatch(char) else f"\\U{ord(char):08x}" for char in name) + '"'


def _name(core: Path) -> str:
    """Return the name of the unpacked core."""
    name = core.name.removesuffix(".zst")
    if not _PLAIN.fullmatch(name) or " " in name:
        raise OutputError(f"{core} gets no start scripts: a debugger's command line could misread its name")
    return name


def _below(core: Path, sysroot: Path) -> str:
    """Return the sysroot relative to the core's folder."""
    root = os.path.relpath(sysroot, core.parent)
    if not _PLAIN.fullmatch(root) or root != root.strip():
        raise OutputError(f"{core} gets no start scripts: a debugger's command line could misread {sysroot}")
    return root
