"""One dump in every format: the cores are the same to the byte.

The source is a bundled dump, whose pages are written again by the builders of the tests. Formats without notes have no
registers of running tasks, so the process is one that sleeps.
"""

from __future__ import annotations

import gzip
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.builders.kdump import build_kdump
from tests.builders.lime import build_avml, build_lime
from tests.builders.migration import build_stream
from tests.builders.present import present_runs
from vmcore2core.containers import open_container
from vmcore2core.session import OpenOptions, Session

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "debian-6.1-amd64" / "vmcore"
INIT = 1

Ranges = list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def notes() -> bytes:
    with open_container([FIXTURE]) as container:
        return b"".join(note(n.name.encode(), n.n_type, n.desc) for n in container.notes)


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    """The pages that the dump has, as runs of (physical address, bytes)."""
    with open_container([FIXTURE]) as container:
        return present_runs(container)


def core(paths: list[Path], output: Path, memory_map: str | None = None) -> bytes:
    with Session(paths, OpenOptions(memory_map=memory_map)) as session:
        assert session.warnings == []
        result = session.extract(session.processes.find(INIT), output)
        assert result.complete
    return output.read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return core([FIXTURE], tmp_path_factory.mktemp("expected") / "core")


def pages(ranges: Ranges) -> dict[int, bytes]:
    return {start // 4096 + i // 4096: data[i : i + 4096] for start, data in ranges for i in range(0, len(data), 4096)}


def as_elf(folder: Path, ranges: Ranges, notes: bytes) -> tuple[list[Path], str | None]:
    """Write an ELF vmcore."""
    (folder / "vmcore").write_bytes(build_elf_vmcore([Load(*r) for r in ranges], notes))
    return [folder / "vmcore"], None


def as_split(folder: Path, ranges: Ranges, notes: bytes) -> tuple[list[Path], str | None]:
    """Write three parts; the first one is named last, and has the name of the source."""
    everything = pages(ranges)
    end = max(everything) + 1
    names = ["vmcore", "part2", "part3"]
    for name, pfns in zip(names, itertools.pairwise((0, end // 3, end // 2, end)), strict=True):
        (folder / name).write_bytes(build_kdump(everything, notes=notes, split=pfns, codec="snappy"))
    return [folder / name for name in reversed(names)], None


def as_raw(folder: Path, ranges: Ranges, _notes: bytes) -> tuple[list[Path], str | None]:
    """Write memory from address 0 on: a sparse file."""
    with (folder / "vmcore").open("wb") as f:
        for start, data in ranges:
            f.seek(start)
            f.write(data)
    return [folder / "vmcore"], "raw"


def as_mapped(folder: Path, ranges: Ranges, _notes: bytes) -> tuple[list[Path], str | None]:
    """Write the ranges one behind the other, as LiME's raw format does, and where they are to a file."""
    (folder / "vmcore").write_bytes(b"".join(data for _, data in ranges))
    (folder / "map").write_text("".join(f"{start:#x}:{len(data)}\n" for start, data in ranges))
    return [folder / "vmcore"], str(folder / "map")


def as_lime(folder: Path, ranges: Ranges, _notes: bytes) -> tuple[list[Path], str | None]:
    """Write a LiME image."""
    (folder / "vmcore").write_bytes(build_lime(ranges))
    return [folder / "vmcore"], None


def as_avml(folder: Path, ranges: Ranges, _notes: bytes) -> tuple[list[Path], str | None]:
    """Write an AVML image."""
    (folder / "vmcore").write_bytes(build_avml(ranges))
    return [folder / "vmcore"], None


def as_saved(folder: Path, ranges: Ranges, _notes: bytes) -> tuple[list[Path], str | None]:
    """Write a saved virtual machine: each page of its memory, from address 0 on."""
    everything = pages(ranges)
    size = (max(everything) + 1) * 4096
    sent = [(b"pc.ram", at, everything.get(at // 4096, bytes(4096))) for at in range(0, size, 4096)]
    (folder / "vmcore").write_bytes(build_stream({b"pc.ram": size}, [sent]))
    return [folder / "vmcore"], None


def as_packed(folder: Path, ranges: Ranges, notes: bytes) -> tuple[list[Path], str | None]:
    """Write an ELF vmcore in zstd frames of 1 MiB, which are read in place."""
    raw = build_elf_vmcore([Load(*r) for r in ranges], notes)
    pack = zstandard.ZstdCompressor(level=1).compress
    (folder / "vmcore").write_bytes(b"".join(pack(raw[at : at + (1 << 20)]) for at in range(0, len(raw), 1 << 20)))
    return [folder / "vmcore"], None


def as_unpacked(folder: Path, ranges: Ranges, notes: bytes) -> tuple[list[Path], str | None]:
    """Write the parts of a split dump, each compressed with gzip, which are unpacked."""
    paths, _ = as_split(folder, ranges, notes)
    for path in paths:
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    return paths, None


FORMATS: list[Callable[[Path, Ranges, bytes], tuple[list[Path], str | None]]] = [
    as_elf,
    as_split,
    as_raw,
    as_mapped,
    as_lime,
    as_avml,
    as_saved,
    as_packed,
    as_unpacked,
]


@pytest.mark.parametrize("write", FORMATS)
def test_cores_are_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranges: Ranges,
    notes: bytes,
    expected: bytes,
    write: Callable[[Path, Ranges, bytes], tuple[list[Path], str | None]],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths, memory_map = write(tmp_path, ranges, notes)
    try:
        assert core(paths, tmp_path / "core", memory_map) == expected
    finally:
        for path in paths:
            path.unlink()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
