"""The layers of the architecture import only what is to their left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vmcore2core

PACKAGE = Path(__file__).resolve().parents[2] / "vmcore2core"

LAYERS = (
    {"errors", "addresses", "interfaces", "overrides", "printable", "times", "folders", "signals"},
    {"formats"},
    {"elf"},
    {"arch", "containers"},
    {"memory"},
    {"layout"},
    {"kernel"},
    {"process"},
    {"corefile", "unwind"},
    {"handover"},
    {"session", "room", "blank_secrets", "report", "compare_with_dump", "arguments", "support", "choose"},
    {"tasks", "run", "convert", "minidump"},
    {"dump", "dumped_process"},
    {"capture"},
    {"commands"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
STRANGERS = {
    "arch": {"containers"},
    "containers": {"arch"},
    "corefile": {"kernel", "memory", "layout", "containers", "unwind"},
    "unwind": {"kernel", "layout", "corefile"},
}
DATA_ONLY = {"process.model": {"errors", "addresses", "interfaces", "printable"}, "formats": {"formats"}}

SHARED_WITH_COMMANDS = {"errors", "overrides", "printable", "signals", "times"}
"""Modules that know nothing of dumps."""
INSIDE_OF_COMMANDS = {
    "commands.capture": ("capture", "the capture kernel's own program, of which the command is the front"),
    "commands.journal": ("capture", "likewise: it reads no dump, only the cores that were captured"),
}
"""Commands that import modules which are not public, and why."""


def imports_of(source: str) -> set[str]:
    """Return the vmcore2core modules that a source text imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "vmcore2core" else [f"vmcore2core.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix("vmcore2core.") for name in names if name.startswith("vmcore2core.")}
    return found


def violations(module: str, source: str) -> list[str]:
    layer = module.split(".")[0]
    bad = []
    for name in imports_of(source):
        target = name.split(".")[0]
        if target not in RANK:
            continue  # __version__
        if RANK[target] > RANK[layer] or target in STRANGERS.get(layer, set()):
            bad.append(f"{module} imports {name}")
        if (allowed := DATA_ONLY.get(module, DATA_ONLY.get(layer))) is not None and target not in allowed:
            bad.append(f"{module} imports {name}")
    return bad


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] in ("__init__", "__main__"):
            parts = parts[:-1]
        if parts:
            found.append((".".join(parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_a_module_imports_only_layers_to_its_left(module: str, path: Path) -> None:
    assert violations(module, path.read_text()) == []


def not_public(module: str, source: str) -> list[str]:
    """Return what a command imports from the package that is not public."""
    bad = []
    for name in imports_of(source):
        folder = name.split(".")[0]
        public = name in vmcore2core.__all__ or folder in SHARED_WITH_COMMANDS | {"commands"}
        if not public and folder != INSIDE_OF_COMMANDS.get(module, ("",))[0]:
            bad.append(f"{module} imports {name}")
    return bad


COMMANDS = [(module, path) for module, path in modules() if module.startswith("commands.")]


@pytest.mark.parametrize(("module", "path"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_a_command_uses_nothing_but_the_public_interface(module: str, path: Path) -> None:
    assert not_public(module, path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from vmcore2core.session import Session",
        "def f():\n    from vmcore2core import session",
        "if TYPE_CHECKING:\n    from vmcore2core.process.identity import Identity",
        "import vmcore2core.capture.run",
    ],
)
def test_a_planted_inside_of_a_command_is_caught(source: str) -> None:
    assert not_public("commands.debug", source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("memory.user", "from vmcore2core.kernel import mm"),
        ("arch.x86_64", "import vmcore2core.containers.elf"),
        ("corefile.plan", "from vmcore2core.memory.user import UserMemory"),
        ("unwind.image", "from vmcore2core.corefile.plan import plan"),
        ("formats.elf", "from vmcore2core.errors import FormatError"),
        ("handover.index", "from vmcore2core.session import Session"),
        ("process.model", "from vmcore2core.kernel.struct import Kernel"),
    ],
)
def test_a_planted_bad_import_is_caught(module: str, source: str) -> None:
    assert violations(module, source)
