"""Whole processes from a fake kernel: a broken part costs only that part, and a sentence.

Tests process/accounting.py, process/mappings.py, process/model.py, process/filebacking.py, process/walked.py.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.builders.kernelimage import EXPORT, TEXT
from tests.corefile.snapshots import elf_notes, loads
from tests.process.scene import (
    CODE,
    HEAP,
    PF_KTHREAD,
    STACK,
    VM_EXEC,
    VM_READ,
    VM_WRITE,
    Scene,
    registers,
    simple,
    user_regs,
)
from vmcore2core.containers.base import PageState
from vmcore2core.corefile.writer import Output, PagesChanged, write_core
from vmcore2core.errors import KernelThread, MemoryFault, NoUserMemory, TaskNotFound
from vmcore2core.process.model import AbsentReason
from vmcore2core.process.snapshot import refresh_absent

EXCLUDED, NOT_IN_DUMP = AbsentReason.EXCLUDED, AbsentReason.NOT_IN_DUMP


def test_a_process_is_captured_as_it_was() -> None:
    snapshot = simple().capture().snapshot
    assert (snapshot.tgid, snapshot.comm) == (100, b"task100")
    assert (snapshot.e_machine, snapshot.elf_class, snapshot.byte_order, snapshot.page_size) == (62, 64, "little", 4096)
    assert [(vma.start, vma.end, vma.p_flags, vma.name) for vma in snapshot.vmas] == [
        (CODE, CODE + 0x2000, 5, ""),
        (HEAP, HEAP + 0x4000, 6, "[heap]"),
        (STACK, STACK + 0x3000, 6, "[stack]"),
    ]
    assert {name: registers(snapshot.threads[0].gregs)[name] for name in user_regs(0)} == user_regs(100)
    assert snapshot.warnings == ()


def test_psinfo_is_what_the_task_says() -> None:
    scene = Scene()
    cred = scene.image.make("cred", uid=1001, gid=1002)
    parent = scene.task(55)
    leader = scene.task(100, flags=0x40_0100, static_prio=125, real_cred=cred, real_parent=parent, __state=1)
    scene.group(leader, mm=scene.mm((CODE, CODE + 0x1000, VM_READ)))
    info = scene.capture().snapshot.psinfo
    assert (info.pr_pid, info.pr_fname, info.pr_flag) == (100, b"task100", 0x40_0100)
    assert (info.pr_uid, info.pr_gid, info.pr_ppid, info.pr_nice) == (1001, 1002, 55, 5)
    assert (info.pr_state, info.pr_sname, info.pr_zomb) == (1, "S", False)


@pytest.mark.parametrize(
    ("state", "pr_state", "pr_sname"),
    [(0, 0, "R"), (0x1, 1, "S"), (0x2, 2, "D"), (0x102, 2, "D"), (0x2001, 1, "S"), (0x104, 3, "T")],
)
def test_state_and_letter_are_those_of_fill_psinfo(state: int, pr_state: int, pr_sname: str) -> None:
    """i = state ? ffz(~state) + 1 : 0; pr_sname = "RSDTZW"[i]."""
    scene = Scene()
    scene.group(scene.task(100, __state=state), mm=scene.mm((CODE, CODE + 0x1000, VM_READ)))
    info = scene.capture().snapshot.psinfo
    assert (info.pr_state, info.pr_sname) == (pr_state, pr_sname)


@pytest.mark.parametrize("nice", [-20, -1, 0, 19])
def test_nice_is_signed(nice: int) -> None:
    scene = Scene()
    scene.group(scene.task(100, static_prio=120 + nice), mm=scene.mm((CODE, CODE + 0x1000, VM_READ)))
    assert scene.capture().snapshot.psinfo.pr_nice == nice


def test_what_the_layout_does_not_know_is_none() -> None:
    scene = Scene(EXPORT)
    scene.group(scene.task(100), mm=scene.mm((CODE, CODE + 0x1000, VM_READ)))
    info = scene.capture().snapshot.psinfo
    assert (info.pr_uid, info.pr_gid, info.pr_ppid, info.pr_nice, info.pr_pgrp, info.pr_sid) == (None,) * 6


def with_ids() -> Scene:
    """Return a process in process group 70 and session 60."""
    scene = simple()
    pids = {}
    for index, number in enumerate((100, 100, 70, 60)):  # enum pid_type: PID, TGID, PGID, SID
        pid = scene.image.make("pid")
        scene.image.write(pid + 96, struct.pack("<i", number))
        pids[index] = pid
    signal = scene.image.word(scene.leaders[0] + scene.image.offset("task_struct", "signal"))
    scene.image.words(signal + 400, *pids.values())
    scene.image.table.constants |= {"PIDTYPE_PGID": 2, "PIDTYPE_SID": 3}
    return scene


def test_process_group_and_session_are_found_through_the_signal_struct() -> None:
    info = with_ids().capture().snapshot.psinfo
    assert (info.pr_pgrp, info.pr_sid) == (70, 60)


def test_prstatus_has_the_same_process_group_and_session() -> None:
    """fill_prstatus() fills pr_pgrp and pr_sid as fill_psinfo() does."""
    (thread,) = with_ids().capture().snapshot.threads
    assert (thread.pr_pgrp, thread.pr_sid) == (70, 60)


def test_a_field_that_is_zero_for_want_of_knowledge_is_named_in_our_note(tmp_path: Path) -> None:
    scene = simple()
    captured = scene.capture()
    write_core(captured.snapshot, captured.memory, Output(tmp_path / "core"))
    unknown = set(json.loads(elf_notes(tmp_path / "core")[-1][2])["unknown_fields"])
    assert {"pr_utime", "pr_stime", "pr_cutime", "pr_cstime", "pr_pgrp", "pr_sid"} <= unknown
    # Pending and blocked signals are not read either, and the core says 0.
    assert {"pr_sigpend", "pr_sighold"} <= unknown


# Tasks that have no core, and lists that are broken.


def test_a_kernel_thread_says_that_it_has_no_user_memory() -> None:
    scene = simple()
    scene.group(scene.task(2, comm=b"kthreadd", flags=PF_KTHREAD))
    processes = scene.processes()
    with pytest.raises(KernelThread, match=r"^PID 2 \(kthreadd\) is a kernel thread: it has no user memory$") as caught:
        processes.capture(processes.find(2))
    assert caught.value.pid == 2


@pytest.mark.parametrize(
    ("exit_state", "state", "words"),
    [
        (0x20, 0x80, r"^PID 7 \(task7\) is a zombie: its memory was already released$"),
        (0, 0x80, r"^PID 7 \(task7\) is exiting \(state .\): its memory was already released$"),
        (0x10, 0x80, r"^PID 7 \(task7\) is exiting \(state X\): its memory was already released$"),
    ],
)
def test_a_task_that_has_exited_says_so(exit_state: int, state: int, words: str) -> None:
    scene = simple()
    scene.group(scene.task(7, exit_state=exit_state, __state=state))
    processes = scene.processes()
    with pytest.raises(NoUserMemory, match=words):
        processes.capture(processes.find(7))


def test_a_leader_that_exited_before_its_threads_still_has_their_memory() -> None:
    scene = Scene()
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
    leader, other = scene.task(100, exit_state=0x20, top=bytes(400), flags=4), scene.task(101, 100)
    scene.group(leader, other, mm=mm)
    scene.image.set("task_struct", leader, mm=0)
    snapshot = scene.capture().snapshot
    assert snapshot.tgid == 100
    assert [thread.tid for thread in snapshot.threads] == [101]
    assert snapshot.threads_left_out == ()  # the kernel's core has no such thread either
    assert any(notice.startswith("thread 100 (") and notice.endswith("has exited") for notice in snapshot.notices)
    assert len(snapshot.vmas) == 1


def test_with_mm_lists_user_processes_alone() -> None:
    scene = simple()
    scene.group(scene.task(2, flags=PF_KTHREAD))
    scene.group(scene.task(7, exit_state=0x20))
    processes = scene.processes()
    assert [leader.address for leader in processes.with_mm()] == scene.leaders[:1]
    assert processes.warnings == []


def test_a_pid_that_nobody_has_is_named() -> None:
    with pytest.raises(TaskNotFound, match="no task has PID 4711 in this dump"):
        simple().processes().find(4711)


def test_a_thread_is_found_by_its_own_number() -> None:
    scene = Scene()
    scene.group(scene.task(100), scene.task(101, 100), mm=scene.mm((CODE, CODE + 0x1000, VM_READ)))
    assert scene.processes().find(101).address == scene.leaders[0]


def test_a_task_list_that_loops_ends_with_a_warning() -> None:
    scene = simple()
    for pid in (7, 8, 9):
        scene.group(scene.task(pid))
    at = scene.image.offset("task_struct", "tasks")
    first, second = scene.leaders[1] + at, scene.leaders[2] + at
    # 7 -> 8 -> 7: next and prev agree, so that only the visit tells.
    scene.image.words(second, first)
    scene.image.words(first + 8, second)
    processes = scene.processes()
    found = [int(leader.address) for leader in processes.leaders()]
    assert found[:1] == scene.leaders[:1]
    assert len(found) <= 4
    (warning,) = processes.warnings
    assert warning.startswith("some tasks may be missing: task_struct.tasks at 0x")
    assert list(processes.leaders())
    assert processes.warnings == [warning]


@pytest.mark.parametrize("target", [0, 0xDEAD_0000_0000_0100, 0xFFFF_FFFF_8100_0000 + 0x8000])
def test_a_task_list_that_leads_nowhere_ends_with_a_warning(target: int) -> None:
    scene = simple()
    scene.group(scene.task(7))
    scene.group(scene.task(8))
    scene.image.words(scene.leaders[1] + scene.image.offset("task_struct", "tasks"), target)
    processes = scene.processes()
    assert [leader.address for leader in processes.leaders()] == scene.leaders[:2]
    assert len(processes.warnings) == 1
    with pytest.raises(TaskNotFound, match="some tasks may be missing"):
        processes.find(8)


def test_a_thread_list_longer_than_the_group_is_told_in_the_capture() -> None:
    scene = Scene()
    tasks = [scene.task(100 + i, 100) for i in range(4)]
    scene.group(*tasks, mm=scene.mm((CODE, CODE + 0x1000, VM_READ)), nr_threads=2)
    processes = scene.processes()
    snapshot = processes.capture(processes.find(100)).snapshot
    assert [thread.tid for thread in snapshot.threads][:2] == [100, 101]
    assert any("more threads than nr_threads = 2" in text for text in (*snapshot.warnings, *processes.warnings))


def test_a_broken_thread_list_is_a_warning_of_the_core_itself() -> None:
    """Threads that are missing without a word make exit status 0 and a core that looks whole."""
    scene = Scene()
    tasks = [scene.task(100 + i, 100) for i in range(3)]
    scene.group(*tasks, mm=scene.mm((CODE, CODE + 0x1000, VM_READ)))
    scene.image.words(tasks[1] + scene.image.offset("task_struct", "thread_node"), 0xDEAD_0000_0000_0100)
    snapshot = scene.capture().snapshot
    assert [thread.tid for thread in snapshot.threads] == [100, 101]
    assert any("some tasks may be missing" in text for text in snapshot.warnings)


# Mappings.


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({"vm_start": CODE}, id="overlaps the one before"),
        pytest.param({"vm_end": HEAP}, id="empty"),
        pytest.param({"vm_end": HEAP + 0x10}, id="not whole pages"),
        pytest.param({"vm_end": 0xFFFF_FFFF_FFFF_F000}, id="beyond user space"),
    ],
)
def test_a_broken_vma_gives_a_warning_and_the_others(broken: dict[str, int]) -> None:
    scene = simple()
    scene.image.set("vm_area_struct", scene.vmas[1], {**broken})
    snapshot = scene.capture().snapshot
    assert [vma.start for vma in snapshot.vmas] == [CODE, STACK]
    (warning,) = snapshot.warnings
    assert warning.startswith(f"mappings may be missing or wrong: vm_area_struct at {scene.vmas[1]:#x}: VMA ")


def test_a_vma_whose_file_cannot_be_read_is_kept_without_its_path() -> None:
    scene = simple()
    scene.image.set("vm_area_struct", scene.vmas[0], vm_file=0xFFFF_C900_0000_0000)
    snapshot = scene.capture().snapshot
    assert [vma.start for vma in snapshot.vmas] == [CODE, HEAP, STACK]
    assert any(f"the path of the file mapped at {CODE:#x} cannot be read" in text for text in snapshot.warnings)


def test_a_process_without_a_readable_mm_is_a_memory_fault_of_ours() -> None:
    scene = simple()
    scene.image.set("task_struct", scene.leaders[0], mm=0xFFFF_C900_0000_0000)
    processes = scene.processes()
    with pytest.raises(MemoryFault, match="0xffffc9000000"):
        processes.capture(processes.find(100))


def absent(scene: Scene, at: int) -> list[tuple[int, int, AbsentReason]]:
    (vma,) = (vma for vma in scene.capture().snapshot.vmas if vma.start == at)
    return [(run.start, run.end, run.reason) for run in vma.absent]


def test_pages_that_were_never_touched_are_not_absent() -> None:
    scene = simple()
    scene.image.user_page(HEAP + 0x1000, b"there")
    assert absent(scene, HEAP) == []


def test_each_absent_page_has_its_reason() -> None:
    scene = simple()
    scene.states[scene.image.user_page(HEAP) >> 12] = PageState.EXCLUDED
    scene.states[scene.image.user_page(HEAP + 0x1000) >> 12] = PageState.TRUNCATED
    scene.image.map(HEAP + 0x2000, ~0x77 << 14 >> 5 & (1 << 59) - 1)  # swapped out
    scene.image.map(HEAP + 0x3000, 0x7FF_0000_0000 | 7)  # where no memory is
    assert absent(scene, HEAP) == [
        (HEAP, HEAP + 0x1000, AbsentReason.EXCLUDED),
        (HEAP + 0x1000, HEAP + 0x2000, AbsentReason.TRUNCATED),
        (HEAP + 0x2000, HEAP + 0x3000, AbsentReason.SWAPPED),
        (HEAP + 0x3000, HEAP + 0x4000, AbsentReason.NOT_IN_DUMP),
    ]


def file_scene() -> Scene:
    scene = simple()
    root = scene.image.dentry(b"/")
    mount = scene.image.mount(root)
    file = scene.image.file(mount, scene.image.dentry(b"prog", scene.image.dentry(b"bin", root)))
    scene.image.set("vm_area_struct", scene.vmas[0], vm_file=file, vm_pgoff=3)
    return scene


def test_a_mapped_file_has_path_and_offset_and_its_untouched_pages_are_absent() -> None:
    scene = file_scene()
    scene.image.user_page(CODE + 0x1000, b"text")
    snapshot = scene.capture().snapshot
    assert (snapshot.vmas[0].path, snapshot.vmas[0].pgoff, snapshot.vmas[0].name) == (b"/bin/prog", 3, "")
    assert absent(scene, CODE) == [(CODE, CODE + 0x1000, AbsentReason.NOT_CACHED)]
    assert any("cannot be looked for" in text for text in snapshot.warnings)


def test_a_process_in_a_chroot_sees_less_of_a_path_than_proc_maps_shows_to_others() -> None:
    scene = simple()
    root = scene.image.dentry(b"/")
    jail = scene.image.dentry(b"jail", root)
    vfsmount = scene.image.mount(root)
    file = scene.image.file(vfsmount, scene.image.dentry(b"prog", jail))
    scene.image.set("vm_area_struct", scene.vmas[0], vm_file=file)
    fs_struct = scene.image.make("fs_struct")
    scene.image.words(fs_struct + 24, vfsmount, jail)
    scene.image.set("task_struct", scene.leaders[0], fs=fs_struct)
    vma = scene.capture().snapshot.vmas[0]
    assert (vma.path, vma.proc_path) == (b"/prog", b"/jail/prog")


@pytest.mark.parametrize(("flags", "kib"), [(0, 8), (0x40_0000, 4), (0x400, 4)], ids=["", "hugetlb", "PFNs"])
def test_resident_memory_is_counted_in_the_page_tables_where_the_kernels_count_is_not_known(
    flags: int, kib: int
) -> None:
    scene = simple()
    scene.image.user_page(HEAP)
    scene.image.user_page(STACK)
    scene.image.set("vm_area_struct", scene.vmas[1], vm_flags=0x33 | flags)
    assert scene.capture().rss_kib() == kib


def test_an_anonymous_mapping_that_was_never_written_is_not_dumped() -> None:
    scene = simple()
    scene.image.set("vm_area_struct", scene.vmas[1], anon_vma=0)
    assert [vma.dumped for vma in scene.capture().snapshot.vmas] == [True, False, True]


def test_a_process_is_written_and_read_back(tmp_path: Path) -> None:
    scene = simple()
    scene.image.user_page(CODE, b"\x90" * 4096)
    scene.image.user_page(HEAP + 0x2000, b"on the heap")
    scene.states[scene.image.user_page(HEAP + 0x3000, b"secret") >> 12] = PageState.EXCLUDED
    captured = scene.capture()
    core = tmp_path / "core"
    write_core(captured.snapshot, captured.memory, Output(core))
    assert loads(core) == [
        (CODE, 0x2000, 0x2000, 5),
        (HEAP, 0x3000, 0x3000, 6),
        (STACK, 0x3000, 0x3000, 6),
    ]
    data = core.read_bytes()
    assert b"on the heap" in data
    assert b"secret" not in data


def test_pages_that_turn_out_damaged_are_absent_in_a_second_core(tmp_path: Path) -> None:
    scene = simple()
    good, bad = scene.image.user_page(HEAP, b"good"), scene.image.user_page(HEAP + 0x1000, b"bad")
    assert good != bad
    captured = scene.capture()
    captured.memory.memory.container.damaged_on_reading.add(bad >> 12)  # type: ignore[attr-defined]
    with pytest.raises(PagesChanged):
        write_core(
            captured.snapshot,
            captured.memory,
            Output(tmp_path / "core", still_valid=lambda: not captured.memory.damaged),
        )
    second = refresh_absent(captured).snapshot
    assert [(run.start, run.reason) for run in second.vmas[1].absent] == [(HEAP + 0x1000, AbsentReason.DAMAGED)]


def test_a_mapping_whose_only_page_is_damaged_does_not_stop_the_writer(tmp_path: Path) -> None:
    scene = simple()
    bad = scene.image.user_page(HEAP, b"bad")
    captured = scene.capture()
    captured.memory.memory.container.damaged_on_reading.add(bad >> 12)  # type: ignore[attr-defined]
    with pytest.raises(PagesChanged):
        write_core(
            captured.snapshot,
            captured.memory,
            Output(tmp_path / "core", still_valid=lambda: not captured.memory.damaged),
        )
    assert not list(tmp_path.iterdir())


def test_refresh_absent_keeps_the_vsyscall_page() -> None:
    """The gate VMA is in no region: it must not be looked up among them."""
    scene = simple()
    gate = scene.image.make("vm_area_struct", vm_start=0xFFFF_FFFF_FF60_0000, vm_end=0xFFFF_FFFF_FF60_1000, vm_flags=4)
    mode = scene.image.alloc(8)
    scene.image.table.symbols |= {"gate_vma": gate, "vsyscall_mode": mode}
    captured = scene.capture()
    last = captured.snapshot.vmas[-1]
    assert (last.start, last.end, last.p_flags, last.name, last.dumped) == (
        0xFFFF_FFFF_FF60_0000,
        0xFFFF_FFFF_FF60_1000,
        1,
        "[vsyscall]",
        False,
    )
    assert refresh_absent(captured).snapshot.vmas == captured.snapshot.vmas


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0xFFFF_C900_0000_0000, None),
        (0x1000, 0x2000),
        (0xFFFF_FFFF_FF60_0000, 0xFFFF_FFFF_FF60_0000),
        (5, 0xFFFF_FFFF_FF60_1003),
    ],
)
def test_a_gate_vma_that_cannot_be_one_does_not_cost_the_core(start: int, end: int | None) -> None:
    scene = simple()
    gate = (
        scene.image.make("vm_area_struct", vm_start=start, vm_end=end, vm_flags=4) if end else start
    )  # not in the dump
    scene.image.table.symbols |= {"gate_vma": gate, "vsyscall_mode": scene.image.alloc(8)}
    assert [vma.start for vma in scene.capture().snapshot.vmas] == [CODE, HEAP, STACK]


def test_a_readable_gate_is_in_the_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As 32-bit ARM's vectors, which a process's page table has."""
    scene, start = simple(), 0x8000_0000_0000
    arch = scene.image.kernel().arch
    monkeypatch.setattr(type(arch.gate), "readable", True)
    monkeypatch.setattr(type(arch), "user_end", start)
    gate = scene.image.make("vm_area_struct", vm_start=start, vm_end=start + 0x1000, vm_flags=5)
    scene.image.table.symbols |= {"gate_vma": gate, "vsyscall_mode": scene.image.alloc(8)}
    last = scene.capture().snapshot.vmas[-1]
    assert [(run.start, run.end, run.reason) for run in last.absent] == [
        (start, start + 0x1000, AbsentReason.NOT_CACHED)
    ]
    scene.image.user_page(start, b"vectors")
    captured = scene.capture()
    assert (captured.snapshot.vmas[-1].dumped, captured.snapshot.vmas[-1].absent) == (True, ())
    write_core(captured.snapshot, captured.memory, Output(tmp_path / "core"))
    assert b"vectors" in (tmp_path / "core").read_bytes()


def test_a_process_of_a_kernel_image_far_up_is_found() -> None:
    assert simple().leaders[0] >= TEXT
    assert VM_WRITE == 2
