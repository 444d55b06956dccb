"""Checking finished headers finds headers that are not as planned."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.corefile.snapshots import PAGE, snapshot, snapshot_32, thread, vma, write
from vmcore2core.corefile import verify, writer
from vmcore2core.corefile.head import Head
from vmcore2core.corefile.notes import notes_of
from vmcore2core.corefile.plan import CorePlan, Segment, build_plan
from vmcore2core.corefile.verify import read_with_lief, verify_head
from vmcore2core.elf.notes import build_notes
from vmcore2core.errors import OutputError
from vmcore2core.process.model import ProcessSnapshot

BASE = 0x7F00_0000_0000
PROCESS = snapshot(
    vma(BASE, BASE + 4 * PAGE),
    vma(BASE + 8 * PAGE, BASE + 9 * PAGE, path=b"/bin/x", pgoff=0),
    threads=(thread(100), thread(101)),
)


def planned(process: ProcessSnapshot = PROCESS) -> CorePlan:
    return build_plan(process, build_notes(notes_of(process, {}), process.byte_order))


def whole(plan: CorePlan) -> bytes:
    return plan.head.read(0, plan.head.size)


def patched(plan: CorePlan, form: str, offset: int, value: int) -> CorePlan:
    before = whole(plan)
    head = bytearray(before)
    struct.pack_into(form, head, offset, value)
    assert head != before
    return plan._replace(head=Head([bytes(head)]))


def note_at(plan: CorePlan, n_type: int) -> int:
    """Return where the first note of this type begins in the head."""
    head = whole(plan)
    at = struct.unpack_from("<Q", head, 64 + 8)[0]
    while True:
        namesz, descsz, kind = struct.unpack_from("<3I", head, at)
        if kind == n_type:
            return int(at)
        at += 12 + -(-namesz // 4) * 4 + -(-descsz // 4) * 4


@pytest.mark.parametrize("process", [PROCESS, snapshot(), snapshot_32(vma(0x1000, 0x2000)), snapshot(threads=())])
def test_good_headers_pass(process: ProcessSnapshot) -> None:
    plan = planned(process)
    verify_head(plan, process, Path("core"))
    seen = read_with_lief(whole(plan))
    assert seen is not None
    assert seen.machine == process.e_machine
    assert seen.agrees([(s.start, s.memsz, s.filesz) for s in plan.segments])
    assert seen.tids == {thread.tid for thread in process.threads}


# Offsets of struct elf64_hdr and of the second struct elf64_phdr, behind PT_NOTE's.
LOAD = 64 + 56


@pytest.mark.parametrize(
    ("form", "offset", "value"),
    [
        pytest.param("<B", 0, 0x7E, id="magic"),
        pytest.param("<B", 4, 1, id="EI_CLASS"),
        pytest.param("<B", 5, 2, id="EI_DATA"),
        pytest.param("<H", 16, 2, id="e_type"),
        pytest.param("<H", 18, 183, id="e_machine"),
        pytest.param("<Q", 32, 65, id="e_phoff"),
        pytest.param("<H", 54, 55, id="e_phentsize"),
        pytest.param("<H", 56, 2, id="one phdr less"),
        pytest.param("<H", 56, 4, id="one phdr more"),
        pytest.param("<I", 64, 1, id="PT_NOTE's p_type"),
        pytest.param("<Q", 64 + 8, 0, id="PT_NOTE's p_offset"),
        pytest.param("<Q", 64 + 32, 12, id="PT_NOTE's p_filesz"),
        pytest.param("<I", LOAD, 0, id="p_type"),
        pytest.param("<I", LOAD + 4, 7, id="p_flags"),
        pytest.param("<Q", LOAD + 8, 0, id="p_offset"),
        pytest.param("<Q", LOAD + 16, BASE + PAGE, id="p_vaddr"),
        pytest.param("<Q", LOAD + 32, 3 * PAGE, id="p_filesz"),
        pytest.param("<Q", LOAD + 40, 3 * PAGE, id="p_memsz"),
        pytest.param("<Q", LOAD + 56 + 16, BASE, id="p_vaddr of the second"),
    ],
)
def test_a_header_that_is_not_as_planned_is_noticed(form: str, offset: int, value: int) -> None:
    with pytest.raises(OutputError, match="core is not written"):
        verify_head(patched(planned(), form, offset, value), PROCESS, Path("core"))


@pytest.mark.parametrize(
    ("n_type", "field", "value"),
    [
        pytest.param(1, 0, 60, id="n_namesz"),
        pytest.param(1, 4, 0xFFFF_0000, id="n_descsz"),
        pytest.param(1, 8, 2, id="n_type"),
        pytest.param(1, 20 + 32, 77, id="pr_pid"),
    ],
)
def test_a_thread_note_that_is_not_as_planned_is_noticed(n_type: int, field: int, value: int) -> None:
    plan = planned()
    with pytest.raises(OutputError, match="core is not written"):
        verify_head(patched(plan, "<I", note_at(plan, n_type) + field, value), PROCESS, Path("core"))


@pytest.mark.parametrize("size", [0, 4, 63, 64, 119, 120, 200, 300])
def test_a_cut_head_is_noticed(size: int) -> None:
    plan = planned()
    with pytest.raises(OutputError, match="core is not written"):
        verify_head(plan._replace(head=Head([whole(plan)[:size]])), PROCESS, Path("core"))


def test_a_plan_of_other_segments_is_noticed() -> None:
    plan = planned()
    other = (Segment(BASE, PAGE, PAGE, 6, 0x1000), *plan.segments[1:])
    with pytest.raises(OutputError, match="core is not written"):
        verify_head(plan._replace(segments=other), PROCESS, Path("core"))


def test_threads_of_equal_registers_are_all_counted() -> None:
    """lief drops a note that equals another."""
    process = snapshot(vma(BASE, BASE + PAGE), threads=(thread(100), thread(100)))
    verify_head(planned(process), process, Path("core"))


def test_threads_behind_those_that_pyelftools_reads_are_looked_at() -> None:
    count = verify.NOTES_READ + 10
    process = snapshot(vma(BASE, BASE + PAGE), threads=tuple(thread(100 + i) for i in range(count)))
    plan = planned(process)
    verify_head(plan, process, Path("core"))
    last = whole(plan).rindex(struct.pack("<I", 99 + count))
    with pytest.raises(OutputError, match="sees threads"):
        verify_head(patched(plan, "<I", last, 1), process, Path("core"))
    with pytest.raises(OutputError, match="core is not written"):
        verify_head(plan._replace(head=Head([whole(plan)[: last - 20]])), process, Path("core"))


def test_a_core_that_does_not_verify_does_not_get_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(process: ProcessSnapshot, notes: list[bytes]) -> CorePlan:
        return patched(build_plan(process, notes), "<Q", LOAD + 16, BASE + PAGE)

    monkeypatch.setattr(writer, "build_plan", planted)
    core = tmp_path / "core"
    core.write_bytes(b"before")
    with pytest.raises(OutputError, match="core is not written"):
        write(PROCESS, core, force=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
