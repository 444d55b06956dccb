"""The index and the page say the same about the machine, and why threads sleep, as the single commands.

Tests run/story.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser
from tests.commands.test_document import check
from tests.e2e.guests import bundled, convert, tasks, tasks_json

PAIRS = [("d-mutex1", "d-mutex2"), ("d-flock1", "d-flock2"), ("d-static", "t-static2"), ("d-pipe1", "d-pipe2")]
"""Of the guest's threads, those that wait for each other."""


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled("waits-6.12", tmp_path_factory.mktemp("waits"))


@pytest.fixture(scope="module")
def cores(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story") / "cores"
    result = convert(dump, "--all", "-o", folder, "--no-companions", "--jobs", "2")
    assert (result.returncode, result.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def index(cores: Path) -> Any:
    printed = (cores / "index.json").read_text()
    check("vmcore2core-index", printed)
    return json.loads(printed)


def test_threads_wait_for_what_waits_says(dump: Path, index: Any) -> None:
    waiting = json.loads(tasks("waits", dump, "--json").stdout)
    threads = {thread["tid"]: thread for process in index["processes"] for thread in process["threads"]}
    names = {thread["comm"]: tid for tid, thread in threads.items()}
    assert index["deadlocks"] == waiting["deadlocks"] == [[names[one], names[other]] for one, other in PAIRS]
    asleep = {row["tid"]: (row["since"], row["wait"]) for row in waiting["threads"]}
    assert {tid: (threads[tid]["since"], threads[tid]["wait"]) for tid in asleep} == asleep
    assert [threads[tid]["wait"] for tid in threads.keys() - asleep.keys()] == [None]


def test_processes_have_the_files_that_files_says(dump: Path, index: Any) -> None:
    assert [table for process in index["processes"] for table in process["files"]] == tasks_json("files", dump)


def test_the_machine_did_what_info_says(dump: Path, index: Any) -> None:
    info = json.loads(tasks("info", dump, "--json").stdout)
    for name in ("crash", "cpus", "unknown"):
        assert index[name] == info[name]
    assert index["messages"][-len(info["messages"]) :] == info["messages"]
    (blocked,) = index["blocked"]
    assert (blocked["comm"], blocked["frames"][0], "__do_sys_vfork" in blocked["frames"]) == (
        "w-vfork",
        "__schedule",
        True,
    )
    assert (index["left_out"], index["notices"]) == ([], [])


def test_the_page_shows_who_waits_for_whom(cores: Path, index: Any, tmp_path: Path) -> None:
    names = {thread["comm"]: thread["tid"] for process in index["processes"] for thread in process["threads"]}
    with Browser(tmp_path / "browser") as browser:
        browser.size(1600)
        browser.open(cores / "index.html")
        story = browser.text("#panel")
        for one, other in PAIRS:
            assert f"{one} {names[one]} waits for {other} {names[other]} waits for {one} {names[one]}" in story
        assert "the kernel did not panic" in browser.text("header")
        assert f"b-kernel {names['b-kernel']}, in the kernel" in story
        assert index["messages"][-1] in story
        browser.open(cores / "index.html", f"#pid={names['d-static']}")
        panel = browser.text("#panel")
        for words in (
            "journal_lock+0x0), held by",
            "futex_wait+",
            "op=FUTEX_WAIT_PRIVATE, val=2",
            "pthread_mutex_lock",
        ):
            assert words in panel
        browser.open(cores / "index.html", f"#pid={names['d-pipe1']}&tab=files")
        assert f"other end: d-pipe2 {names['d-pipe2']} fd" in browser.text("#panel").replace("\n", "")
        assert browser.complaints() == []
