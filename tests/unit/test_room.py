"""A core without room is refused before its pages are decoded; one that may fit is not."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.builders.kdump import build_kdump
from tests.builders.present import present_runs
from tests.e2e.guests import FIXTURES, convert
from vmcore2core import room
from vmcore2core.choose import Choice, choose
from vmcore2core.commands.progress import progress_bars
from vmcore2core.containers.diskdump_part import DiskDumpPart
from vmcore2core.corefile.options import PLAIN, CoreOptions
from vmcore2core.errors import OutputError
from vmcore2core.handover import written
from vmcore2core.process.filepages import FilePages
from vmcore2core.room import is_plain, least_on_disk
from vmcore2core.run.options import RunOptions
from vmcore2core.run.run import Run
from vmcore2core.run.space import core_size
from vmcore2core.session import Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
PID = 92


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled dump with zeros in each tenth page of a process: as kdump, which tells zero pages, and as ELF."""
    folder = tmp_path_factory.mktemp("zeros")
    with Session([DUMP]) as session:
        captured = session.capture(session.processes.find(PID), PLAIN)
        mapped = [(region.start, region.end) for region in captured.memory.regions]
        frames = np.concatenate([pages.paddrs() for pages in captured.memory.located(mapped)]) // np.uint64(4096)
        notes = b"".join(note(n.name.encode(), n.n_type, n.desc) for n in session.container.notes)
        runs = present_runs(session.container)
    pages = {(start + at) // 4096: data[at : at + 4096] for start, data in runs for at in range(0, len(data), 4096)}
    pages |= dict.fromkeys(np.unique(frames).tolist()[::10], bytes(4096))
    made = {"kdump": folder / "kdump", "ELF": folder / "elf"}
    made["kdump"].write_bytes(build_kdump(pages, codec="snappy", notes=notes, dump_level=17))
    made["ELF"].write_bytes(build_elf_vmcore([Load(pfn * 4096, page) for pfn, page in sorted(pages.items())], notes))
    return made


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the file system says of itself; ``free`` is set by the test."""
    told = SimpleNamespace(f_bavail=0, f_bfree=0, f_frsize=1, f_blocks=1 << 40)
    monkeypatch.setattr(os, "statvfs", lambda _path: told)
    monkeypatch.setattr(room, "is_plain", lambda _directory: True)
    monkeypatch.setattr("vmcore2core.run.run.is_plain", lambda _directory: True)
    return told


def have(told: SimpleNamespace, size: int) -> None:
    told.f_bavail = told.f_bfree = size


def test_the_least_is_what_the_core_takes_and_never_more(tmp_path: Path, dumps: dict[str, Path]) -> None:
    """Exactly, if pages can be looked at; of a compressed dump, what it says of zeros, without decoding any page."""
    least = {}
    for form, dump in dumps.items():
        with Session([dump]) as session:
            leader = session.processes.find(PID)
            captured = session.capture(leader, PLAIN)
            least[form] = least_on_disk(captured, session.container, 1 << 60)
            report = session.extract(leader, tmp_path / form, PLAIN, captured=captured).report
            taken = (report.present_pages - report.zero_pages) * 4096
            assert report.zero_pages > 100
    assert least["ELF"] == taken
    # A page that is mapped twice is told once.
    assert taken * 0.9 < least["kdump"] <= taken


def test_no_room_is_found_before_a_page_is_decoded(
    tmp_path: Path, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session([DUMP]) as session:
        leader = session.processes.find(PID)
        captured = session.capture(leader, PLAIN)
        have(free, 64 << 10)
        decoded = []
        monkeypatch.setattr(DiskDumpPart, "read", lambda *_: decoded.append(1))
        with pytest.raises(OutputError, match=r"has room for 64.0 KiB, expected .* MiB at least for the core; nothing"):
            session.extract(leader, tmp_path / "core", PLAIN, captured=captured)
        assert not decoded
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["kdump", "ELF"])
def test_what_fits_because_of_its_zeros_is_written(
    tmp_path: Path, free: SimpleNamespace, dumps: dict[str, Path], form: str
) -> None:
    with Session([dumps[form]]) as session:
        leader = session.processes.find(PID)
        captured = session.capture(leader, PLAIN)
        most = room.most_on_disk(captured)
        least = least_on_disk(captured, session.container, 1 << 60)
        have(free, least + (1 << 20))  # of pages that are mapped twice, a kdump tells once
        assert least + (1 << 20) < most
        session.extract(leader, tmp_path / "core", PLAIN, captured=captured)
        if form == "ELF":
            have(free, least - 1)
            with pytest.raises(OutputError, match="nothing is written"):
                session.extract(leader, tmp_path / "other", PLAIN)


@pytest.mark.parametrize("options", [PLAIN, CoreOptions(compression="zstd")])
def test_where_nothing_is_sure_nothing_is_refused(
    tmp_path: Path, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, options: CoreOptions
) -> None:
    """A file system that may compress, and a core that is compressed."""
    monkeypatch.setattr(room, "is_plain", lambda _directory: options.compression is not None)
    with Session([DUMP]) as session:
        leader = session.processes.find(PID)
        have(free, 0)
        session.extract(leader, tmp_path / "core", options)


def run_all(session: Session, directory: Path) -> tuple[Run, list[str]]:
    said: list[str] = []
    run = Run(session, RunOptions(core=CoreOptions(indexed=True), output=directory), said.append)
    chosen, _ = choose(session.processes, Choice())
    run.run(chosen, progress_bars)
    return run, said


def test_a_directory_that_may_not_hold_all_cores_is_tried(
    tmp_path: Path, free: SimpleNamespace, dumps: dict[str, Path]
) -> None:
    with Session([dumps["kdump"]]) as session:
        chosen, _ = choose(session.processes, Choice())
        most = sum(core_size(session.capture(one.leader, PLAIN)).on_disk for one in chosen)
        have(free, most - (1 << 18))
        run, said = run_all(session, tmp_path / "cores")
        assert len(run.results) == 3
        assert re.search(r"has room for 1\d\.\d MiB, and the cores take 1\d.\d MiB at most: they may not fit$", said[0])
        have(free, most // 2)
        with pytest.raises(OutputError, match=r"expected more than \d+\.\d MiB for the cores; nothing is written"):
            run_all(session, tmp_path / "none")
        assert list((tmp_path / "none").iterdir()) == []


def with_files(session: Session, directory: Path) -> tuple[Run, list[str]]:
    said: list[str] = []
    run = Run(session, RunOptions(core=CoreOptions(indexed=True, companions=True), output=directory), said.append)
    run.run(choose(session.processes, Choice())[0], progress_bars)
    return run, said


def test_a_disk_that_programs_and_libraries_fill_has_the_cores_and_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    def copy(pages: FilePages, fd: int, *, whole: bool) -> None:
        if copied:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copied.append(fd)
        whole_copy(pages, fd, whole=whole)

    whole_copy = written._copy
    monkeypatch.setattr(written, "_copy", copy)
    with Session([DUMP]) as session:
        run, said = with_files(session, tmp_path)
    sentence = f"{tmp_path} has no room for programs and libraries, so the cores have none beside them"
    assert copied
    assert list(tmp_path.glob("sysroot*")) == []
    assert said == [sentence]
    assert run.report().errors == [{"pid": None, "error": sentence}]
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["finished"]
    assert [error["error"] for error in index["errors"]] == [sentence]
    for process in index["processes"]:
        assert process["debug"]["sysroot"] is None
        assert process["debug"]["notices"] == [sentence]
        assert process["debug"]["scripts"]
        assert all((tmp_path / name).exists() for name in [process["core"]["file"], *process["debug"]["scripts"]])


def test_a_disk_that_the_cores_fill_has_nothing_beside_them(
    tmp_path: Path, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcore2core.run.run.is_plain", lambda _directory: False)
    monkeypatch.setattr(room, "is_plain", lambda _directory: False)
    have(free, 64 << 10)
    with Session([DUMP]) as session:
        run, said = with_files(session, tmp_path)
    assert re.search(r"the cores, programs and libraries take \d+\.\d MiB at most: they may not fit$", said[0])
    assert said[1:] == [f"{tmp_path} has no room for programs, libraries and start scripts beside the cores"]
    assert [error["error"] for error in run.errors] == said[1:]
    assert len(json.loads((tmp_path / "index.json").read_text())["processes"]) == 3
    assert list(tmp_path.glob("sysroot*")) == list(tmp_path.glob("*.gdb")) == []


def test_the_file_systems_of_this_machine_are_known(tmp_path: Path) -> None:
    told = subprocess.run(["findmnt", "-nr", "-o", "FSTYPE", "-T", tmp_path], capture_output=True, text=True)
    assert is_plain(tmp_path / "not" / "there") == (told.stdout.strip().encode() in room.PLAIN)
    assert not is_plain(Path("/proc"))
    assert not is_plain(Path("/sys"))


def test_a_dry_run_tells_the_room(tmp_path: Path) -> None:
    result = convert(DUMP, "--all", "-n", "-o", tmp_path / "cores")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 3)
    assert f"MiB of it programs and libraries); {tmp_path / 'cores'} has " in result.stderr
    assert "free" in result.stderr
    told = json.loads(convert(DUMP, "--all", "-n", "-o", tmp_path / "cores", "--json").stdout)
    assert told["room"]["needed"] == sum(core["on_disk"] for core in told["cores"]) + told["room"]["companions"]
    assert told["room"]["free"] > 0
    assert convert(DUMP, "--all", "-o", tmp_path / "cores").returncode == 0
    files = [path for path in (tmp_path / "cores").glob("sysroot*/**/*") if path.is_file() and not path.is_symlink()]
    taken = sum(path.stat().st_blocks * 512 for path in files)
    assert 0 <= told["room"]["companions"] - taken < 64 << 10
    alone = json.loads(convert(DUMP, "--all", "-n", "--no-companions", "-o", tmp_path / "cores", "--json").stdout)
    assert alone["room"]["companions"] == 0


def test_a_core_that_is_larger_than_a_file_may_be_is_known_at_once(tmp_path: Path) -> None:
    """With holes it has 8 MiB, although it takes less on disk."""
    for words in ([], ["--dry-run"]):
        command = [
            sys.executable,
            "-m",
            "vmcore2core",
            *map(str, [DUMP, "--pid", PID, "-o", tmp_path / "core"]),
            *words,
        ]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        )
        assert result.returncode == 1
        assert re.search(r"cannot have a core of \d+\.\d MiB with holes: .*allows no file of that size", result.stderr)
        assert list(tmp_path.iterdir()) == []
