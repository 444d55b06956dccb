"""Every document that a command prints with --json has the form that docs/schema.json says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES, convert, tasks
from vmcore2core.commands.document import hexadecimal

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "vmcore2core/docs/schema.json").read_text())
FORMS = {one["properties"]["format"]["const"]: one for one in SCHEMA["oneOf"]}
DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
PID = ("--pid", "86")
COMMANDS: list[tuple[str, tuple[str, ...]]] = [
    ("ps", ()),
    ("ps", ("-L",)),
    ("threads", PID),
    ("regs", PID),
    ("bt", PID),
    ("maps", PID),
    ("files", ()),
    ("info", ()),
    ("dmesg", ()),
]
EXACT_MAX = 1 << 53
"""Larger integers lose bits in a reader that keeps numbers as doubles, as jq and JavaScript do."""


def numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list):
        for one in [v for k, v in value.items() if k != "mtime_ns"] if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, int):
        yield value


def check(form: str, printed: str) -> None:
    document = json.loads(printed)
    assert document["format"] == form
    validator = pytest.importorskip("jsonschema").Draft202012Validator({**FORMS[form], "$defs": SCHEMA["$defs"]})
    assert [error.message for error in validator.iter_errors(document)] == []
    assert all(abs(number) < EXACT_MAX for number in numbers(document))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A core, and what was printed of it."""
    path = tmp_path_factory.mktemp("core") / "app.core"
    return path, convert(DUMP, *PID, "-o", path, "--json").stdout


@pytest.mark.parametrize(("command", "options"), COMMANDS)
def test_vmcore_tasks(command: str, options: tuple[str, ...]) -> None:
    check(f"vmcore-tasks-{command}", tasks(command, DUMP, *options, "--json").stdout)


@pytest.mark.corpus
def test_a_crash(corpus: Path) -> None:
    dump = corpus / "debian-6.1-amd64-kdump" / "vmcore.zlib-d31-userstack"
    check("vmcore-tasks-info", tasks("info", dump, "--json").stdout)


def test_vmcore2core(core: tuple[Path, str]) -> None:
    check("vmcore2core-summary", core[1])
    check("vmcore2core-plan", convert(DUMP, *PID, "-n", "--json").stdout)


def test_dump(tmp_path: Path) -> None:
    check("vmcore-tasks-dump", tasks("dump", DUMP, *PID, "-o", tmp_path / "core", "--json").stdout)


def test_stacks_in_groups() -> None:
    check("vmcore-tasks-bt-groups", tasks("bt", DUMP, *PID, "--group", "--json").stdout)


def test_the_index(tmp_path: Path) -> None:
    assert convert(DUMP, "--all", "-o", tmp_path / "cores").returncode == 0
    check("vmcore2core-index", (tmp_path / "cores" / "index.json").read_text())


def test_every_form_has_a_test() -> None:
    tests = Path(__file__).resolve().parents[1]
    texts = [path.read_text() for path in tests.rglob("test_*.py")]
    here = {f"vmcore-tasks-{command}" for command, _ in COMMANDS}
    assert [form for form in FORMS.keys() - here if not any(f'check("{form}"' in text for text in texts)] == []


def test_verify(core: tuple[Path, str]) -> None:
    check("vmcore2core-verify", convert("verify", core[0], "--json").stdout)
    check("vmcore2core-verify-cores", convert("verify", core[0], core[0].parent / "none", "--json").stdout)


def test_a_document_of_another_form_is_refused() -> None:
    pytest.importorskip("jsonschema")
    thread = {"tid": 1, "comm": "x", "state": "S", "cpu": 0, "source": "kernel stack", "unknown": []}
    document = {"format": "vmcore-tasks-regs", "version": 1, "threads": [{**thread, "registers": {"rip": "0x10"}}]}
    check("vmcore-tasks-regs", json.dumps(document))
    document["threads"] = [{**thread, "registers": {"rip": 0x10}}]
    with pytest.raises(AssertionError, match="is not of type 'string'"):
        check("vmcore-tasks-regs", json.dumps(document))


def test_numbers_are_as_c_writes_them() -> None:
    assert (hexadecimal(0xFFFF_8880_0000_0000), hexadecimal(0), hexadecimal(None)) == (
        "0xffff888000000000",
        "0x0",
        None,
    )
