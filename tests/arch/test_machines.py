"""Each machine's code is in its folder: it follows the list in ``arch/base.py``, and no other code compares machines.

Tests formats/utsname.py, arch/base.py, arch/capabilities.py, arch/parts.py, arch/regsets.py, arch/task.py,
layout/uts.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import vmcore2core.formats
from vmcore2core.arch import all_archs, arch_for_machine
from vmcore2core.arch.base import Arch
from vmcore2core.arch.capabilities import CpuNumbers
from vmcore2core.arch.parts import Unwind
from vmcore2core.arch.regsets import RegisterSet
from vmcore2core.formats.utsname import e_machine_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vmcore2core"
FOLDERS = sorted(path.parent.name for path in (PACKAGE / "arch").glob("*/__init__.py"))
FILES = {
    "paging": "paging",
    "registers": "registers",
    "cpus": "cpus",
    "cores": "cores",
    "unwind": "unwind",
    "kernel_stacks": "kernel_stack",
    "vdso": "vdso",
    "gate": "gate",
    "tags": "tags",
    "inference": "inference",
    "swap_entries": "paging",
    "cpu_numbers": "cpus",
}
"""Attribute of ``Arch`` -> the file, in the machine's folder or in one that it shares, that has the class."""

MACHINES_ELSEWHERE = {
    "containers/qemu_cpus.py": "QEMU's migration stream has each machine's registers in a form of its own",
    "containers/s390_dump.py": "a dump format of one machine",
    "containers/sadump.py": "a dump format of one machine, in two sizes",
    "containers/x86_cpus.py": "writes the notes of formats that are of x86 alone",
    "containers/xen.py": "its registers are struct vcpu_guest_context of x86-64",
    "handover/debugger_cfi.py": "runs inside lldb, without the package, and knows the registers of x86-64 alone",
    "handover/vscode.py": "cpptools has a word of its own for each machine",
    "corefile/contexts.py": "minidumps have a form of registers for each machine",
}


def folders_of(arch: Arch) -> set[str]:
    """Return the folders that the classes of a machine are in."""
    return {cls.__module__.split(".")[2] for cls in type(arch).__mro__ if cls.__module__.count(".") == 3}


@pytest.mark.parametrize("arch", all_archs(), ids=lambda arch: arch.name)
def test_each_part_is_in_the_file_of_its_name(arch: Arch) -> None:
    for attribute, file in FILES.items():
        part = getattr(arch, attribute)
        if part is None or type(part) in (Unwind, CpuNumbers):
            continue
        folder, module = type(part).__module__.split(".")[2:]
        assert module == file, attribute
        assert folder in folders_of(arch) or not (PACKAGE / "arch" / folder / "machine.py").exists(), attribute


@pytest.mark.parametrize("arch", all_archs(), ids=lambda arch: arch.name)
def test_a_machine_has_a_formats_file_fixtures_and_tests(arch: Arch) -> None:
    folders = folders_of(arch)
    formats = Path(vmcore2core.formats.__path__[0])
    assert [folder for folder in folders if (formats / f"{folder}.py").exists()]
    assert [folder for folder in folders if list((ROOT / "tests/arch" / folder).glob("test_*.py"))]
    others = {"aarch64": "arm64", "arm": "armhf", "x86_64": "amd64", "loongarch64": "loong64", "ppc64le": "ppc64el"}
    port = others.get(arch.name, "mips64el" if arch.name == "mips64" else arch.name)
    rows = [line for line in (ROOT / "fixtures/README.md").read_text().splitlines() if line.startswith("| `")]
    assert [row for row in rows if re.search(rf"[-,{{]{port}\b", row)]
    assert list((ROOT / "fixtures").glob(f"*-{port}*/fixture.json"))


@pytest.mark.parametrize("arch", all_archs(), ids=lambda arch: arch.name)
def test_register_sets_are_a_table(arch: Arch) -> None:
    shared = [folder for folder in FOLDERS if not (PACKAGE / "arch" / folder / "machine.py").exists()]
    files = [f for f in (*folders_of(arch), *shared) if (PACKAGE / "arch" / f / "regsets.py").exists()]
    table = import_module(f"vmcore2core.arch.{files[0]}.regsets").REGSETS
    assert all(isinstance(row, RegisterSet) for row in table)
    assert len({row.n_type for row in table}) == len(table)


def test_the_list_names_what_a_machine_has() -> None:
    told = (PACKAGE / "arch/base.py").read_text()
    for file in {"machine", "paging", "registers", "cpus", "cores", "unwind", "kernel_stack", "regsets"}:
        assert f"{file}.py" in told
    assert set(FILES) == {name for name in Arch.__annotations__ if name in FILES}


@pytest.mark.parametrize("arch", all_archs(), ids=lambda arch: arch.name)
def test_a_header_names_the_machine_as_it_names_itself(arch: Arch) -> None:
    known = {name: e_machine_of(name) for name in (arch.name, *arch.machine_names)}
    known.pop("mips64el", None)  # both orders are called mips64
    assert set(known.values()) <= {arch.e_machine}


def machines_in(source: str) -> Iterator[str]:
    """Yield what a source text has of single machines: their names, ELF numbers, declarations."""
    names = {name for arch in all_archs() for name in (arch.name, *arch.machine_names)} | set(FOLDERS)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            yield node.value
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if re.match(r"EM_(?!NONE)|PT_(AARCH64|ARM|MIPS|RISCV)_", name):
                yield name
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (
                one for one in inside if re.search(rf"\.(formats|arch)\.({'|'.join(FOLDERS)})(_\w+)?(\.|$)", one)
            )


def test_no_other_module_compares_machines() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("arch/", "formats/")) and (machines := list(machines_in(path.read_text()))):
            found[name] = machines
    assert {name: found[name] for name in found if name not in MACHINES_ELSEWHERE} == {}
    assert set(found) == set(MACHINES_ELSEWHERE)


@pytest.mark.parametrize(
    "source",
    [
        'if kernel.arch.name != "x86_64": pass',
        "ok = snapshot.e_machine == EM_X86_64",
        "table = fmt.PT_AARCH64_MEMTAG_MTE",
        "from vmcore2core.formats import s390x",
        "from vmcore2core.arch.x86.code import STEPS_MAX",
    ],
)
def test_a_planted_machine_is_found(source: str) -> None:
    assert list(machines_in(source))


def test_a_machine_is_found_by_its_number_and_byte_order() -> None:
    for arch in all_archs():
        assert arch_for_machine(arch.e_machine, arch.byte_order) is arch
