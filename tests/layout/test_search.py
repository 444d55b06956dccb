"""Dumps without VMCOREINFO: memory is searched as far as the file has it, and no further than needed.

Tests layout/bootstrap.py, layout/find_vmcoreinfo.py.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note, page
from tests.builders.present import present_runs
from tests.e2e.guests import FIXTURES
from vmcore2core.commands import progress
from vmcore2core.containers import open_container
from vmcore2core.containers.cache import Progress
from vmcore2core.errors import DumpError
from vmcore2core.layout.bootstrap import bootstrap

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
MIB = 1 << 20


class Bar:
    """What a progress bar was told."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.told: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def __call__(self, label: str) -> Iterator[Progress]:
        self.labels.append(label)
        yield lambda done, total: self.told.append((done, total))


@pytest.fixture(scope="module")
def runs() -> list[tuple[int, bytes]]:
    with open_container([DUMP]) as container:
        return present_runs(container)


def written(path: Path, loads: list[Load]) -> Path:
    path.write_bytes(build_elf_vmcore(loads, note(b"CORE", 1, bytes(336))))
    return path


def test_the_search_stops_at_the_text(tmp_path: Path, runs: list[tuple[int, bytes]]) -> None:
    noise = Load(8 << 30, random.Random(1).randbytes(64 * MIB))
    bar = Bar()
    with open_container([written(tmp_path / "vmcore", [*(Load(*run) for run in runs), noise])]) as container:
        boot = bootstrap(container, progress=bar)
    assert boot.vmcoreinfo_origin.startswith("VMCOREINFO text at physical 0x")
    found = int(boot.vmcoreinfo_origin.split()[-1], 16)
    assert bar.labels == ["searching memory for VMCOREINFO"]
    assert {total for _, total in bar.told} == {sum(len(data) for _, data in runs) + 64 * MIB}
    assert [done for done, _ in bar.told] == sorted(done for done, _ in bar.told)
    assert bar.told[-1][0] <= found < 128 * MIB


def test_all_of_memory_is_searched_before_it_is_said_to_have_none(tmp_path: Path) -> None:
    bar = Bar()
    loads = [Load(0, page(1) * 3000), Load(1 << 40, page(2) * 3)]
    with (
        open_container([written(tmp_path / "vmcore", loads)]) as container,
        pytest.raises(DumpError, match="no VMCOREINFO note, and in its memory neither the text was found"),
    ):
        bootstrap(container, progress=bar)
    assert bar.told[-1] == (3003 * 4096, 3003 * 4096)


def test_memory_that_the_file_does_not_have_is_not_searched(tmp_path: Path) -> None:
    """A file of some KB says that the machine has 2^55 bytes, and that the file has more than it does."""
    loads = [Load(0x1000, page(1), memsz=1 << 55), Load(1 << 55, page(2), filesz=1 << 54)]
    begun = time.monotonic()
    with open_container([written(tmp_path / "vmcore", loads)]) as container:
        assert sum(r.size for r in container.dumped_ranges()) == 2 * 4096
        with pytest.raises(DumpError, match="neither the text was found"):
            bootstrap(container)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(("long_s", "drawn"), [(60.0, False), (0.0, True)])
def test_a_bar_is_drawn_when_it_takes_long(monkeypatch: pytest.MonkeyPatch, *, long_s: float, drawn: bool) -> None:
    bars = [progress._bars()]
    monkeypatch.setattr(progress, "LONG_S", long_s)
    monkeypatch.setattr(progress, "_bars", lambda: bars[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.one_bar("working") as update:
        assert update is not None
        update(1000, 0)
        amounts = [task.fields["amount"] for task in bars[0].tasks]
        update(2000, 4000)
    assert [task.description for task in bars[0].tasks] == ["working"] * drawn
    amounts += [task.fields["amount"] for task in bars[0].tasks]
    assert amounts == ["1.0 kB", "2.0 kB/4.0 kB"] * drawn
