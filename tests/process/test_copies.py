"""Pages of a program that the dump lacks, from another file with its build ID: a container's, and the machine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.e2e.guests import bundled, rows
from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.commands.tasks import bt
from vmcore2core.commands.tasks.app import app
from vmcore2core.containers.base import PageState
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.dump import Dump
from vmcore2core.handover.mapped import Finder
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.process.copies import Copies
from vmcore2core.process.threads import thread_rows
from vmcore2core.run.converter import Converter
from vmcore2core.session import Session
from vmcore2core.unwind.originals import Files
from vmcore2core.unwind.stacks import backtraces

PID, PATH, SIZE = 86, b"/bin/lab-app", 830408
"""The machine's /init is the same program, in a file of its own."""
PAGE = 4096


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session([bundled("containers-6.1", tmp_path)]) as opened:
        yield opened


def lose(session: Session, monkeypatch: pytest.MonkeyPatch, first: int, pid: int = PID) -> bytes:
    """Have the dump lack the pages of a process's program from one on, and return its build ID."""
    file = Finder(session.processes).find(session.processes.find(pid)).files[PATH if pid == PID else b"/init"]
    cached = PageCache(session.kernel).pages(session.kernel.view("address_space", file.mapping), 0, SIZE // PAGE)
    gone = cached[cached.at >= first].paddrs() // PAGE
    container = session.container
    page_states, read_pages, read_page = container.page_states, container.read_pages, container.read_page

    def states(pfns: U64Array) -> U8Array:
        return np.where(np.isin(pfns, gone), PageState.EXCLUDED, page_states(pfns)).astype(np.uint8)

    def read(pfns: U64Array, out: U8Array) -> U8Array:
        found = np.where(np.isin(pfns, gone), PageState.EXCLUDED, read_pages(pfns, out)).astype(np.uint8)
        out[np.isin(pfns, gone)] = 0
        return found

    def read_one(pfn: int) -> tuple[bytes, PageState]:
        return (bytes(PAGE), PageState.EXCLUDED) if pfn in gone else read_page(pfn)

    monkeypatch.setattr(container, "page_states", states)
    physical = session.kernel.memory.physical
    monkeypatch.setattr(physical, "_read_page", read_one)  # which it took from the container
    monkeypatch.setattr(physical, "_read_pages", read)
    assert file.build_id is not None
    return file.build_id


def stack(session: Session, files: Files) -> tuple[list[tuple[int, str, str | None]], bool]:
    """Return address, way and origin of each frame, and whether the stack is complete."""
    captured = session.processes.capture(session.processes.find(PID))
    (row,) = backtraces(captured, session.kernel.arch, thread_rows(captured.answers), files=files)
    return [(frame.address, frame.found_by, frame.cfi_from) for frame in row.frames], row.complete


def test_call_frame_information_comes_from_another_copy(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(session.container.paths) as whole:
        expected = stack(whole, Files())
    assert expected[1]
    assert [way for _, way, _ in expected[0]] == ["registers", *["CFI"] * 4]
    lose(session, monkeypatch, first=1)
    assert not stack(session, Files())[1]
    assert stack(session, Files(copies=Copies(session.processes))) == expected


def test_bt_and_the_index_take_pages_of_another_copy(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(session, monkeypatch, first=1)
    monkeypatch.setattr(bt, "opened", lambda _dump: nullcontext(Dump(session)))
    shown = CliRunner().invoke(app, ["bt", "vmcore", "--pid", str(PID), "--json"])
    assert shown.exception is None, shown.output
    assert [thread["complete"] for thread in rows(shown.stdout)] == [True]
    converter = Converter(session, CoreOptions(indexed=True))
    assert stack(session, converter._stack_files)[1]


def test_what_all_copies_lack_and_what_is_another_build_is_not_known(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = lose(session, monkeypatch, first=1)
    copies = Copies(session.processes)
    assert (copies.read(build_id, SIZE, 64, "little", 0, 4) or b"")[:4] == b"\x7fELF"
    assert copies.read(build_id, SIZE, 64, "little", 5 * PAGE, PAGE) not in (None, bytes(PAGE))
    last = copies.read(build_id, SIZE, 64, "little", SIZE // PAGE * PAGE, PAGE)
    assert last is not None
    assert last[SIZE % PAGE :] == bytes(PAGE - SIZE % PAGE)
    assert copies.read(build_id, SIZE, 64, "little", SIZE // PAGE * PAGE, PAGE + 1) is None
    assert copies.read(bytes(20), SIZE, 64, "little", 0, 4) is None
    assert copies.read(build_id, SIZE + 1, 64, "little", 0, 4) is None
    lose(session, monkeypatch, first=5, pid=1)
    copies = Copies(session.processes)
    assert copies.read(build_id, SIZE, 64, "little", 4 * PAGE, PAGE) is not None
    assert copies.read(build_id, SIZE, 64, "little", 5 * PAGE, PAGE) is None
