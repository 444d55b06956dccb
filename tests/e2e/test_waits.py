"""``vmcore-tasks waits`` on a guest whose processes wait for each other in all ways, with four deadlocks.

Tests commands/tasks/waits.py, tasks/waits.py.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_document import check
from tests.e2e.guests import bundled, tasks


@pytest.fixture(scope="session")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled("waits-6.12", tmp_path_factory.mktemp("waiting"))


@pytest.fixture(scope="session")
def result(dump: Path) -> subprocess.CompletedProcess[str]:
    return tasks("waits", dump, "--json")


@pytest.fixture(scope="session")
def document(result: subprocess.CompletedProcess[str]) -> Any:
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def rows(document: Any) -> dict[str, Any]:
    """By the thread's name; of the two that vfork() made of one, the parent."""
    return {row["comm"]: row for row in reversed(document["threads"])}


def test_the_document_has_its_form(result: subprocess.CompletedProcess[str]) -> None:
    check("vmcore-tasks-waits", result.stdout)


def test_the_planted_deadlocks_are_found_and_nothing_else_is(document: Any, rows: dict[str, Any]) -> None:
    pairs = [("d-mutex1", "d-mutex2"), ("d-flock1", "d-flock2"), ("d-static", "t-static2"), ("d-pipe1", "d-pipe2")]
    assert document["deadlocks"] == [[rows[one]["tid"], rows[other]["tid"]] for one, other in pairs]


@pytest.mark.parametrize(
    ("comm", "kind", "what"),
    [
        ("d-mutex1", "futex", r"futex at 0x\w+ \(/dev/zero \(deleted\)\+0x28\), held by \d+ \(d-mutex2\)"),
        ("d-mutex2", "futex", r"futex at 0x\w+ \(/dev/zero \(deleted\)\+0x0\), held by \d+ \(d-mutex1\)"),
        ("d-static", "futex", r"futex at 0x\w+ \(/init:journal_lock\+0x0\), held by \d+ \(t-static2\)"),
        ("t-pi2", "futex", r"futex at 0x\w+ \(/init:pi_lock\+0x0\), held by \d+ \(w-pi\)"),
        ("t-cond", "futex", r"futex at 0x\w+ \(anonymous memory at 0x\w+\+0x\w+\)"),
        ("d-pipe1", "pipe", r"pipe of fd \d+; other end: \d+ \(d-pipe2\)"),
        ("d-flock1", "file lock", r"flock lock of fd \d+, held by \d+ \(d-flock2\)"),
        ("d-posixw", "file lock", r"posix lock of fd \d+, held by \d+ \(d-posix\)"),
        ("w-waits", "child", r"child \d+ \(w-child\)"),
        ("w-vfork", "child", r"child \d+ \(w-vfork\) to exec or to exit, as vfork\(\) does"),
        ("t-poll", "poll", r"fd \d+"),
        ("t-epoll", "poll", r"epoll fd \d+: fd \d+"),
        ("t-recv", "socket", r"socket of fd \d+ \(u_str ESTAB .*\); other end: .*\d+ \(w-child\).*"),
        (
            "t-accept",
            "socket",
            r"a connection to fd \d+ \(tcp LISTEN recv-q 0 send-q 1 0\.0\.0\.0:4444 0\.0\.0\.0:\*\)",
        ),
        ("t-sleep", "timer", "time to pass"),
        ("h-files", "signal", "a signal"),
    ],
)
def test_what_each_waits_for_is_named(rows: dict[str, Any], comm: str, kind: str, what: str) -> None:
    wait = rows[comm]["wait"]
    assert wait["kind"] == kind
    assert re.fullmatch(what, wait["what"]), wait["what"]


def test_who_can_end_a_wait_is_told(rows: dict[str, Any]) -> None:
    assert rows["d-pipe1"]["wait"]["holders"] == [rows["d-pipe2"]["tid"]]
    assert rows["t-cond"]["wait"]["holders"] == []
    others = {row["tid"] for row in rows.values() if row["pid"] == rows["w-waits"]["pid"]} - {rows["t-poll"]["tid"]}
    assert {*rows["t-poll"]["wait"]["holders"]} == {*others, rows["w-child"]["tid"]}


def test_all_slept_for_as_long_as_the_guest_did(rows: dict[str, Any]) -> None:
    """It slept six seconds between the start of all and the dump."""
    times = {comm: float(row["since"]) for comm, row in rows.items() if comm != "init"}
    assert all(5.5 < time < 8 for time in times.values()), times


def test_the_text_has_a_line_for_each_and_the_deadlocks(dump: Path, document: Any, rows: dict[str, Any]) -> None:
    result = tasks("waits", dump, "--comm", "d-*")
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    of = {row["pid"] for row in document["threads"] if row["comm"].startswith("d-")}
    assert [line.split()[2] for line in lines[1:-4]] == [row["comm"] for row in document["threads"] if row["pid"] in of]
    one, other = rows["d-static"]["tid"], rows["t-static2"]["tid"]
    way = f"{one} (d-static) -> {other} (t-static2) -> {one} (d-static)"
    assert f"deadlock: each waits for the next: {way}" in lines
    assert sum(line.startswith("deadlock: ") for line in lines) == 4
