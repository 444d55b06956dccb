"""The manual pages equal the commands' declarations, and their readers can read them.

Tests commands/manpage.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.guests import TASKS
from tests.needs import need
from vmcore2core.commands import manpage

ROOT = Path(__file__).resolve().parents[2]
MAN = ROOT / "vmcore2core" / "man"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def test_the_pages_are_those_that_the_code_makes() -> None:
    made = dict(manpage.pages())
    assert {path.name: path.read_text() for path in MAN.iterdir()} == made, (
        "run: python -m vmcore2core.commands.manpage vmcore2core/man"
    )


@pytest.mark.parametrize("path", sorted(MAN.iterdir()), ids=lambda path: path.stem)
def test_mandoc_has_nothing_to_say(path: Path) -> None:
    result = subprocess.run(
        [need("mandoc"), "-Tlint", "-W", "warning", path], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def shown(name: str) -> str:
    """Return a page as people read it."""
    result = subprocess.run([need("mandoc"), "-Tascii", MAN / name], capture_output=True, text=True, check=True)
    return re.sub(".\b", "", result.stdout)


def usage(*command: str) -> str:
    """Return what --help says."""
    environment = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, *command, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("vmcore2core.1", ["-m", "vmcore2core"]),
        ("vmcore2core-debug.1", ["-m", "vmcore2core", "debug"]),
        ("vmcore2core-verify.1", ["-m", "vmcore2core", "verify"]),
    ],
)
def test_a_page_has_the_options_that_help_has(name: str, command: list[str]) -> None:
    options = re.findall(r"^ {7}(-.*)", shown(name).partition("\nOPTIONS")[2].partition("\nEXIT STATUS")[0], re.M)
    assert set(OPTION.findall(" ".join(options))) == set(OPTION.findall(usage(*command)))


def test_the_page_of_vmcore_tasks_has_its_commands_and_their_options() -> None:
    page = shown("vmcore-tasks.1")
    commands = re.split(r"^   (?=\w)", page.partition("\nCOMMANDS")[2].partition("\nEXIT STATUS")[0], flags=re.M)[1:]
    assert [text.split()[0] for text in commands] == [
        "ps",
        "threads",
        "regs",
        "bt",
        "maps",
        "files",
        "waits",
        "dump",
        "info",
        "dmesg",
        "layout",
    ]
    for text in commands[:3]:
        options = re.findall(r"^ {7}(-.*)", text, re.M)
        assert set(OPTION.findall(" ".join(options))) == set(OPTION.findall(usage("-c", TASKS, text.split()[0])))


def test_exit_statuses_are_those_of_the_document() -> None:
    page = " ".join(shown("vmcore2core.1").partition("\nEXIT STATUS")[2].partition("\nENVIRONMENT")[0].split())
    table = re.findall(r"^\| (\d[\d, ]*) \| (.*) \|$", (ROOT / "vmcore2core/docs/commands.md").read_text(), re.M)
    assert len(table) == 5
    for status, meaning in table:
        assert f"{status} {meaning}" in page
