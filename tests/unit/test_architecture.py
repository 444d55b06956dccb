"""``docs/architecture.md``: its files exist, and a conversion passes the functions in the order of its list."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import vmcore2core
from tests.unit.test_layers import LAYERS

PACKAGE = Path(vmcore2core.__file__).parent
ROOT = PACKAGE.parent
TEXT = (PACKAGE / "docs" / "architecture.md").read_text()
HOPS_MAX = 15
FOLLOWED = """
import json, sys
from pathlib import Path
import vmcore2core

root, called = str(Path(vmcore2core.__file__).parent) + "/", {}

def call(frame, event, _argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root):
        called.setdefault((code.co_filename.removeprefix(root), code.co_firstlineno))

def followed(function):
    called.clear()
    sys.setprofile(call)
    try:
        function()
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    return list(called)

from vmcore2core.commands.convert import main
from vmcore2core.session import Session

dump, core = sys.argv[1:]
sys.argv = ["vmcore2core", dump, "--pid", "86", "-o", core]
conversion = followed(main)
with Session([Path(dump)]) as session:
    captured = session.processes.capture(session.processes.find(86), with_absent=False)
    heap = next(vma for vma in captured.snapshot.vmas if vma.name == "[heap]")
    captured.memory.forget_walks()
    print(json.dumps([conversion, followed(lambda: captured.memory.read(heap.start, 8))]))
"""


def hops(heading: str) -> list[tuple[str, str]]:
    """Return the files and functions of a numbered list."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py):([\w.]+)`", part, re.MULTILINE)


LISTS = ("From a PID to its core", "From a user address to its bytes")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, int]]]:
    dump, core = ROOT / "fixtures/debian-6.1-amd64/vmcore", tmp_path_factory.mktemp("followed") / "core"
    done = subprocess.run([sys.executable, "-c", FOLLOWED, dump, core], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(LISTS, [[(file, line) for file, line in calls] for calls in found], strict=True))


def first_line(file: str, name: str) -> int:
    """Return where the code of a function begins."""
    found: object = import_module(
        ".".join(["vmcore2core", *Path(file).with_suffix("").parts]).removesuffix(".__init__")
    )
    for part in name.split("."):
        found = getattr(found, part)
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return int(found.__code__.co_firstlineno)  # type: ignore[attr-defined]


@pytest.mark.parametrize("heading", LISTS)
def test_a_list_is_short_and_true(heading: str, followed: dict[str, list[tuple[str, int]]]) -> None:
    listed = hops(heading)
    assert 5 < len(listed) <= HOPS_MAX
    passed = [followed[heading].index((file, first_line(file, name))) for file, name in listed]
    assert passed == sorted(passed)


def test_a_single_core_passes_nothing_that_is_for_many(followed: dict[str, list[tuple[str, int]]]) -> None:
    files = {file for file, _ in followed[LISTS[0]]}
    assert {file for file in files if file.startswith("run/")} <= {"run/__init__.py", "run/options.py"}


def test_each_file_that_it_names_is_there() -> None:
    named = {name for name in re.findall(r"`([\w/]+(?:\.py|\.md|/))`", TEXT) if not re.search("NAME", name)}
    assert len(named) > 30
    assert not [name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()]


def test_it_names_each_room_in_the_order_of_the_layers() -> None:
    table = TEXT.split("| --- | --- |\n")[1].split("\n\n")[0]
    listed = [
        name.split("/")[0] for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]
    assert {*listed} == set().union(*LAYERS)
    rank = {name: number for number, names in enumerate(LAYERS) for name in names}
    ranks = [rank[name] for name in listed]
    assert ranks == sorted(ranks)
