"""Dumps that have of processes nothing but stacks and ELF headers: makedumpfile -d 31 with two extensions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.stacks_only import bundled_stacks_only
from tests.e2e.guests import tasks_json
from vmcore2core.containers import open_container

GUEST = "debian-6.1-amd64"


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled_stacks_only(GUEST, tmp_path_factory.mktemp("stacks"))


def test_the_builder_leaves_stacks_and_headers_and_no_other_page_of_a_process(dump: Path) -> None:
    with open_container([dump]) as container:
        assert container.dump_level == 31
    (row,) = tasks_json("ps", dump, "--comm", "lab-static")
    maps = tasks_json("maps", dump, "--pid", str(row["pid"]))
    pages = {vma["start"]: vma["pages"] for vma in maps}
    assert pages["0x400000"] == {"present": 1}
    assert pages["0x401000"] == {"excluded": 141}  # .text
    stack = next(vma["pages"] for vma in maps if vma["name"] == "[stack]")
    assert stack["present"] >= 1
    heap = next(vma["pages"] for vma in maps if vma["name"] == "[heap]")
    assert "present" not in heap
