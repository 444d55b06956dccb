"""Start scripts beside a core: ``gdb -x core.app.812.gdb``, ``lldb -s core.app.812.lldb``.

All paths in them are relative to the folder of the core, so that it can be moved as a whole. gdb goes to that folder
itself where it has Python; otherwise, and with lldb, whoever starts it does. Names in them come from the dump: one that
a debugger's command line could take for anything but a name is not written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.errors import OutputError
from vmcore2core.handover.recovered import RecoveredFiles

# Neither quotes, backslashes, control characters nor what separates commands, paths or options.
_PLAIN = re.compile(r"[A-Za-z0-9._+,=@~/ -]+")
_GOES_THERE = """\
# Made by vmcore2core; from the folder of the core, or with the script's path: gdb -x {script}
if ! $_isvoid ($_streq)
  python
import os
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
os.chdir(_vmcore2core_folder())
gdb.execute("cd " + os.getcwd(), to_string=True)
try:
    gdb.execute("set debuginfod enabled " + ("on" if os.environ.get("DEBUGINFOD_URLS") else "off"))
except gdb.error:
    pass
  end
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    """One debugger's script: its path and text."""

    path: Path
    text: str


def write_scripts(core: Path, recovered: RecoveredFiles | None, *, force: bool = False) -> tuple[Path, ...]:
    """Write the start scripts of a core beside it, and return their paths.

    Args:
        core: the core; of a compressed one, the scripts take what it unpacks to.
        recovered: its program and libraries, or None where none were recovered.
        force: replace existing ones.

    Raises:
        OutputExists, OutputError: they cannot be written.
    """
    paths = []
    for script in (gdb_script(core, recovered), lldb_script(core, recovered)):
        with atomic_file(script.path, force=force) as fd, os.fdopen(os.dup(fd), "w") as file:
            file.write(script.text)
        paths.append(script.path)
    return tuple(paths)


def gdb_script(core: Path, recovered: RecoveredFiles | None) -> Script:
    """Return gdb's script."""
    name = _name(core)
    path = core.with_name(f"{name}.gdb")
    lines = [_GOES_THERE.format(script=path.name)]
    if recovered is not None:
        root = _below(core, recovered.sysroot)
        lines.append(f"set sysroot {root}")
        folders = _plain(_joined(root, folder) for folder in recovered.libraries)
        lines += [f"set solib-search-path {':'.join(folders)}"] if folders else []
        lines += [f'file "{program}"' for program in _program(root, recovered)]
    lines.append(f"core-file {name}")
    return Script(path, "\n".join(lines) + "\n")


def lldb_script(core: Path, recovered: RecoveredFiles | None) -> Script:
    """Return lldb's script."""
    name = _name(core)
    path = core.with_name(f"{name}.lldb")
    lines = [f"# Made by vmcore2core; from the folder of the core: lldb -s {path.name}"]
    program: list[str] = []
    if recovered is not None:
        root = _below(core, recovered.sysroot)
        lines.append(f'platform select --sysroot "{root}" remote-linux')
        folders = _plain(_joined(root, folder) for folder in recovered.libraries)
        quoted = " ".join(f'"{folder}"' for folder in folders)
        lines += [f"settings set target.exec-search-paths {quoted}"] if folders else []
        program = [f'"{program}"' for program in _program(root, recovered)]
    lines.append(" ".join(["target create --core", name, *program]))
    return Script(path, "\n".join(lines) + "\n")


def _name(core: Path) -> str:
    """Return the core's name, unpacked."""
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


def _joined(root: str, path: bytes) -> str:
    return f"{root}/{os.fsdecode(path).strip('/')}"


def _plain(names: Iterable[str]) -> list[str]:
    return [name for name in names if _PLAIN.fullmatch(name)]


def _program(root: str, recovered: RecoveredFiles) -> list[str]:
    return [] if recovered.program is None else _plain([_joined(root, recovered.program)])
