"""The work of a conversion is counted, not timed, so that a change that doubles it is noticed on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES
from vmcore2core.choose import Choice, choose
from vmcore2core.commands.progress import progress_bars
from vmcore2core.containers.diskdump_part import DiskDumpPart
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.handover.written import FileToWrite, FileWriter, WrittenFile
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.structs import Structs
from vmcore2core.memory import pagetable
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.process.dump_filter import EVERYTHING
from vmcore2core.process.mappings import Mappings
from vmcore2core.process.snapshot import Captured, Processes
from vmcore2core.run.converter import Converter
from vmcore2core.run.jobs import Job
from vmcore2core.run.options import RunOptions
from vmcore2core.run.run import Run
from vmcore2core.session import Session
from vmcore2core.tasks.ps import processes
from vmcore2core.unwind.eh_index import EhIndex

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts pages decoded, reads of the file, tables fetched by walks, reads of kernel memory, and captures."""
    counts: Counter[str] = Counter()

    def count(owner: object, name: str, what: str, argument: int | None) -> None:
        plain = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            counts[what] += 1 if argument is None else len(arguments[argument])
            return plain(*arguments, **more)

        monkeypatch.setattr(owner, name, counted)

    count(DiskDumpPart, "_decode_compressed", "pages", 2)
    count(DiskDumpPart, "read", "reads", None)
    count(pagetable, "_level", "tables", 3)
    count(KernelMemory, "_read", "words", None)
    count(Processes, "capture", "captures", None)
    return counts


def test_opening_decodes_the_symbols_and_the_types_and_little_else(work: Counter[str]) -> None:
    with Session([DUMP]):
        pass
    assert work["pages"] < 1800  # kallsyms and BTF are 1.3 and 4.4 MB
    assert work["reads"] < 35  # some of them for the first task and a process, on which the layout is tried


def test_a_core_decodes_each_of_its_pages_once(work: Counter[str], tmp_path: Path) -> None:
    with Session([DUMP]) as session:
        before = Counter(work)
        report = session.extract(session.processes.find(86), tmp_path / "core").report
    work.subtract(before)
    assert report.present_pages > 1700
    assert work["pages"] < report.present_pages + 500  # page tables, and the kernel's structures one by one
    assert work["reads"] < 500
    assert work["tables"] < 50  # each is read by the page index, and once more


def test_ps_walks_no_process(work: Counter[str]) -> None:
    with Session([DUMP]) as session:
        before = Counter(work)
        chosen, _ = choose(session.processes, Choice(), session.processes.leaders)
        rows = list(processes(session, chosen))
    work.subtract(before)
    assert [row.pid for row in rows if row.command is not None] == [1, 86, 92]
    assert all(row.rss_kib for row in rows if row.command is not None)
    assert (work["captures"], work["tables"]) == (0, 0)
    assert work["words"] < 30 * len(rows)
    assert work["pages"] < 3 * len(rows)


COUNTED = """
import dataclasses, json, sys
import construct, elftools.elf.elffile, numpy, typer, zstandard
theirs = set(sys.modules)
from vmcore2core.__main__ import vmcore2core

plain, made = dataclasses._process_class, []
dataclasses._process_class = lambda cls, *more: made.append(cls.__module__) or plain(cls, *more)
try:
    vmcore2core()
finally:
    ours = [name for name in sys.modules if name.startswith("vmcore2core.")]
    more = sorted(sys.modules.keys() - theirs - set(ours))
    print(json.dumps({"dataclasses": len([name for name in made if name in ours]), "modules": ours, "more": more}))
"""


def test_a_conversion_imports_what_it_needs(tmp_path: Path) -> None:
    core = str(tmp_path / "core")
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, DUMP, "--pid", "86", "-o", core], check=True, capture_output=True, text=True
    )
    imported = json.loads(done.stdout.splitlines()[-1])
    archs = {name.split(".")[2] for name in imported["modules"] if name.startswith("vmcore2core.arch.")}
    assert not {name for name in archs if name.startswith(("arm", "i386", "loong", "mips", "ppc", "riscv", "s390"))}
    # numpy.ma takes 46 million instructions, the others 60 together.
    assert not {"email.utils", "http", "numpy.ma", "secrets", "socket", "tempfile"} & set(imported["more"])
    assert len(imported["modules"]) < 205
    # One takes 2 million instructions and half a million for each field, a NamedTuple less than 1.
    assert imported["dataclasses"] < 27


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bulk_run_does_nothing_twice(jobs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two workers have two processes: a third one would be the worker's that is free first, which may not know it."""
    log, written = tmp_path / "captures", tmp_path / "written"
    plain, write = Processes.capture, FileWriter.write

    def counted(self: Processes, leader: StructView, **more: Any) -> Captured:
        with log.open("a") as file:  # workers are other processes
            file.write(f"{leader.address:#x}\n")
        return plain(self, leader, **more)

    def write_counted(self: FileWriter, file: FileToWrite) -> WrittenFile:
        with written.open("a") as lines:
            lines.write(f"{os.getpid()} {file.path.decode()}\n")
        return write(self, file)

    decoded: list[int] = []
    decode = DiskDumpPart._decode_compressed

    def decode_counted(part: DiskDumpPart, flags: int, offsets: list[int], *more: Any) -> list[int]:
        decoded.extend(offsets)
        return decode(part, flags, offsets, *more)

    monkeypatch.setattr(Processes, "capture", counted)
    monkeypatch.setattr(DiskDumpPart, "_decode_compressed", decode_counted)
    monkeypatch.setattr(FileWriter, "write", write_counted)
    with Session([DUMP]) as session:
        core = CoreOptions(indexed=True, companions=True)
        run = Run(session, RunOptions(core, output=tmp_path / "cores", jobs=jobs), print)
        chosen, _ = choose(session.processes, Choice(comm=("lab-*",)) if jobs == 2 else Choice())
        run.run(chosen, progress_bars)
    assert run.errors == []
    assert len(chosen) == 4 - jobs
    assert sorted(log.read_text().split()) == sorted(f"{one.leader.address:#x}" for one in chosen)
    pids, paths = zip(*map(str.split, written.read_text().splitlines()), strict=True)
    assert len(set(paths)) == len(paths) > 4
    assert (str(os.getpid()) in pids) is (jobs == 1)
    assert len(decoded) <= 1.05 * len(set(decoded))  # of jobs that others do, those pages that this process decodes


def test_processes_of_one_program_share_what_is_known_of_it(
    work: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A static program has no search table for its call frame information, so that an index is made."""
    plain = EhIndex.__init__

    def counted(self: EhIndex, *arguments: Any) -> None:
        work["indexes"] += 1
        plain(self, *arguments)

    monkeypatch.setattr(EhIndex, "__init__", counted)
    with Session([DUMP]) as session:
        converter = Converter(session, CoreOptions(indexed=True, companions=True))
        task = int(session.processes.find(86).address)
        for number in range(3):
            job = Job(86, "lab-static", task, str(tmp_path / f"core.{number}"))
            before = Counter(work)
            assert converter.measure(job).error is None
            assert converter.convert(job).error is None
            assert work["tables"] - before["tables"] < 50  # twice, as for a core alone
    assert work["indexes"] == 1


def test_mappings_are_read_together(work: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of numbers tell that mappings are as they should be; one by one are looked at those that have names."""
    looked: list[int] = []
    plain = Structs.view

    def counted(self: Structs, row: int) -> StructView:
        looked.append(row)
        return plain(self, row)

    monkeypatch.setattr(Structs, "view", counted)
    with Session([DUMP]) as session:
        processes_, leader = session.processes, session.processes.find(86)
        arguments = processes_.mounts, processes_.cache, EVERYTHING, processes_.links
        before = Counter(work)
        mappings = Mappings(session.kernel, processes_.mm_of(leader), leader, *arguments)
    work.subtract(before)
    seen = [mappings.vmas[row] for row in looked]
    assert len(mappings.vmas) == 29
    assert not [vma for vma in seen if vma.path is None and not vma.name]
    assert set(Counter(vma.path for vma in seen if vma.path is not None).values()) == {1}  # the file's, once
    assert work["words"] < 170  # half of them for the paths of its five files
