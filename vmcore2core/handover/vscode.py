"""``.vscode/launch.json`` beside the cores: each opens by a name in the list of "Run and Debug".

There is a configuration for each common extension: C/C++ (``cppdbg``), CodeLLDB (``lldb``), LLDB DAP (``lldb-dap``),
and clients of gdb's own debug adapter (``gdb``, from gdb 18 on). All but the last run the start script beside the core,
which loads every file. The last opens the program and the core; it runs the script only if gdb itself is started with
it: ``gdb -i=dap -x core.app.812.gdb``.

References: code.visualstudio.com, "Configure C/C++ debugging"; MIEngine's DebuggedProcess.cs: GetInitializeCommands()
for what ``customLaunchSetupCommands`` replace; CodeLLDB's MANUAL.md (1.11), "Inspecting a Core Dump"; lldb-dap's
README.md (LLVM 22); gdb's manual, "Debugger Adapter Protocol" (18.1).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.errors import OutputError
from vmcore2core.folders import opened_folder
from vmcore2core.handover.images import Image
from vmcore2core.handover.recovered import RecoveredFiles
from vmcore2core.handover.tree import plain_name
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.sysroot import DELETED

FOLDER, NAME = ".vscode", "launch.json"
HERE = "${workspaceFolder}"
TARGET_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"x86_64": "x86_64", "aarch64": "arm64", "i686": "x86", "i586": "x86", "armv7l": "arm"}
)
"""uname -m -> the C/C++ extension's name for the machine; machines that it does not know are absent."""


@dataclass(frozen=True, slots=True)
class OpenedCore:
    """A core that has start scripts.

    Attributes:
        core: name of the unpacked core in the folder.
        program: its program's path relative to the folder, or the absolute path that the process saw; None if unknown.
    """

    core: str
    program: str | None


def opened_by(core: Path, recovered: RecoveredFiles | None, images: Sequence[Image]) -> OpenedCore:
    """Return how to open a core: with the program beside it or, as a guess, at the path that the process saw.

    Args:
        core: the core; if it is compressed, the unpacked file is opened.
        recovered: its program and libraries, or None if none were recovered.
        images: where its program and libraries are loaded.
    """
    name = core.name.removesuffix(".zst")
    path = next((image.path.removesuffix(DELETED) for image in images if image.program), None)
    if recovered is not None and recovered.program is not None:
        found = recovered.sysroot / os.fsdecode(recovered.program).strip("/")
        return OpenedCore(name, os.path.relpath(found, core.parent))
    # VS Code replaces ${command:...} in a string by the command's result.
    return OpenedCore(name, os.fsdecode(path) if path is not None and plain_name(path) == path else None)


def write_launch_json(
    folder: Path, cores: Sequence[OpenedCore], machine: str, *, force: bool = False, secrets: Secrets | None = None
) -> None:
    """Write ``.vscode/launch.json``.

    Args:
        folder: the folder of the cores, which the user opens as the workspace.
        cores: the cores that have start scripts.
        machine: what uname -m would print.
        force: replace an existing file.
        secrets: a file that contains one is not written.

    Raises:
        OutputExists, OutputError: it cannot be written.
    """
    path = folder / FOLDER / NAME
    configurations = [one for core in cores for one in _configurations(core, machine)]
    shown = json.dumps({"version": "0.2.0", "configurations": configurations}, indent=1)
    if secrets is not None and secrets.spans(shown.encode()):
        raise OutputError(f"{path} is not written: it would have a secret that --redact looks for")
    try:
        with opened_folder(path.parent, make=True):
            pass
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be written: {error.strerror}") from error
    with atomic_file(path, force=force) as fd, os.fdopen(os.dup(fd), "w", encoding="ascii") as file:
        file.write(shown + "\n")


def _configurations(opened: OpenedCore, machine: str) -> Iterator[dict[str, Any]]:
    """Yield the configurations of a core, one for each extension."""
    core, program = f"{HERE}/{opened.core}", _from_here(opened.program)
    architecture = TARGET_ARCHITECTURES.get(machine)
    if program is not None:  # the C/C++ extension requires it
        yield {
            **_named(opened, "C/C++, gdb", "cppdbg", "launch"),
            "program": program,
            "cwd": HERE,
            "coreDumpPath": core,
            "MIMode": "gdb",
            "miDebuggerPath": "gdb",
            **({} if architecture is None else {"targetArchitecture": architecture}),
            "customLaunchSetupCommands": [
                {"text": f"cd {HERE}"},
                {"text": f"source {core}.gdb"},
            ],
        }
    yield {
        **_named(opened, "CodeLLDB", "lldb", "attach"),
        "initCommands": [f'script __import__("os").chdir("{HERE}")'],
        "targetCreateCommands": [f'command source "{core}.lldb"'],
        "processCreateCommands": [],
    }
    yield {
        **_named(opened, "LLDB DAP", "lldb-dap", "attach"),
        "debuggerRoot": HERE,
        "attachCommands": [f'command source "{core}.lldb"'],
        "stopOnEntry": True,
    }
    yield {
        **_named(opened, "gdb 18", "gdb", "attach"),
        **({} if program is None else {"program": program}),
        "coreFile": core,
    }


def _named(opened: OpenedCore, how: str, kind: str, request: str) -> dict[str, Any]:
    presentation = {"group": how, "order": 1}
    return {"name": f"{opened.core} ({how})", "type": kind, "request": request, "presentation": presentation}


def _from_here(program: str | None) -> str | None:
    return program if program is None or program.startswith("/") else f"{HERE}/{program}"
