"""No dump, however broken, does more than end in a sentence or in a result that says what is missing.

Every format is cut off at each field of its headers and at random places, and has random bits flipped. A dump format
that has no sample in ``tests.builders`` fails here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.builders.samples import PAGE_SIZE, PAGES, Sample, all_samples
from tests.containers import hostile
from tests.containers.contract import check_contract
from tests.containers.hostile import MEMORY_MAX, Outcome, check, torture
from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers import all_containers, open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.containers.raw import RawContainer

SAMPLES = all_samples()
SHARES = 3
SECONDS_MAX = 240


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_has_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sample = SAMPLES[name]
    paths = [tmp_path / f"vmcore{number}" for number in range(len(sample.files))]
    for path, content in zip(paths, sample.files, strict=True):
        path.write_bytes(content)
    with open_container(paths, sample.memory_map) as container:
        assert (container.DOC.name, container.warnings) == (sample.container, [])
        check_contract(container, {pfn: content for pfn, content in PAGES.items() if content.strip(b"\0")})
        pfns = np.arange(64, dtype=np.uint64)
        usable = np.isin(container.page_states(pfns), (PageState.PRESENT, PageState.ZERO))
        assert set(pfns[usable].tolist()) == set(PAGES) | sample.zeros


def test_every_format_has_a_sample() -> None:
    names = {container.DOC.name for container in all_containers()} | {RawContainer.DOC.name}
    assert {sample.container for sample in SAMPLES.values()} == names


@pytest.mark.parametrize("share", range(SHARES))
def test_broken_in_every_way(share: int) -> None:
    """Many samples a process, because a process takes longer to begin than a sample to be broken."""
    names = list(SAMPLES)[share::SHARES]
    command = [sys.executable, "-m", "tests.containers.hostile", "--json", *names]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert [outcome["name"] for outcome in outcomes] == names, f"the process ended: {result.stderr[-2000:]}"
    for outcome in outcomes:
        assert outcome["failures"] == [], outcome["name"]
        assert outcome["counts"]["error"] + outcome["counts"].get("marked", 0) > 200
        assert outcome["peak"] < MEMORY_MAX


def invented(container: DumpContainer, *, only_alone: bool) -> Callable[[U64Array, U8Array], U8Array]:
    read_pages = container.read_pages

    def changed(pfns: U64Array, out: U8Array) -> U8Array:
        states = read_pages(pfns, out)
        out[(states == PageState.PRESENT) & (len(pfns) == 1 or not only_alone)] ^= 1
        return states

    return changed


def test_what_must_not_be_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a page that is another one or only sometimes so, a loss that nobody names, a loop without an end."""

    monkeypatch.setenv("XDG_CACHE_HOME", "")

    def broken(change: str) -> Outcome:
        def opened(paths: list[Path], memory_map: str | None) -> object:
            container = open_container(paths, memory_map)
            if change == "traceback":
                raise KeyError
            if change == "hang":
                while True:
                    pass
            if change == "silent":
                container.warnings.clear()
            if change in ("invented", "alone"):
                monkeypatch.setattr(container, "read_pages", invented(container, only_alone=change == "alone"))
            return container

        monkeypatch.setattr(hostile, "open_container", opened)
        return torture(Sample("ELF", SAMPLES["elf"].files), 1, 5, 0)

    monkeypatch.setattr(hostile, "CPU_SECONDS_MAX", 0.05)
    monkeypatch.setattr(hostile, "HEADER_SIZES", (2 * PAGE_SIZE,))
    assert "KeyError" in broken("traceback").failures[0]
    assert "Hang" in broken("hang").failures[0]
    assert "nothing says so" in broken("silent").failures[0]
    assert "is another one" in broken("invented").failures[0]
    assert "a page alone has other bytes" in broken("alone").failures[0]


def test_untouched_sample_passes_its_own_check(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(SAMPLES["elf"].files[0])
    assert check(SAMPLES["elf"], [path], whole_truth=True) == "unnoticed"
