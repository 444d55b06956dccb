"""Registers come from the right place: the CPU's note in user mode, else the kernel stack.

Tests kernel/crash_notes.py, kernel/percpu.py, kernel/runqueue.py, kernel/sched.py, process/regsets.py.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.builders.kernelimage import EXPORT, TEXT
from tests.process.scene import (
    CODE,
    PF_EXITING,
    VM_EXEC,
    VM_READ,
    Scene,
    frame,
    prstatus,
    qemu_note,
    registers,
    simple,
    user_regs,
)
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.x86_64.cpus import X86_64Cpus
from vmcore2core.arch.x86_64.registers import X86_64Registers
from vmcore2core.elf.notes import Note
from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.sched import PF_KTHREAD, task_cpu
from vmcore2core.process.threads import ThreadRegs

LIVE = user_regs(0xAA, rip=CODE + 0xAA0, fs_base=0x7F00_0000_1000, gs_base=0x77, ds=1, es=2, fs=3, gs=4)
IN_KERNEL = {**LIVE, "cs": 0x10, "ss": 0x18, "rip": 0xFFFF_FFFF_8100_1234}
ROOT = 0x1000  # physical address of the process's page table


def one(scene: Scene, *notes: Note) -> ThreadRegs | str:
    processes = scene.processes(*notes)
    ((_, found),) = processes.thread_registers(processes.find(100))
    return found


def regs_of(scene: Scene, *notes: Note) -> ThreadRegs:
    found = one(scene, *notes)
    assert isinstance(found, ThreadRegs)
    return found


def scene_of(**task: Any) -> Scene:
    scene = Scene()
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
    scene.group(scene.task(100, **task), mm=mm)
    return scene


def test_a_task_off_the_cpu_has_its_registers_on_its_kernel_stack() -> None:
    scene = scene_of(
        on_cpu=0, members={"thread.fsbase": 0x7F00_0000_2000, "thread.gsbase": 0x55, "thread.fsindex": 0x63}
    )
    found = regs_of(scene)
    assert {name: found.regs[name] for name in user_regs(100)} == user_regs(100)
    assert (found.regs["fs_base"], found.regs["gs_base"], found.regs["fs"]) == (0x7F00_0000_2000, 0x55, 0x63)
    assert (found.source, found.unknown) == ("kernel stack", ())


def test_a_task_off_the_cpu_ignores_a_note_with_its_pid() -> None:
    """The CPU ran it before: kdump's note was made when it was already off."""
    found = regs_of(scene_of(on_cpu=0), Note("CORE", 1, prstatus(100, LIVE)))
    assert found.source == "kernel stack"
    assert found.regs["rip"] == CODE + 100


def test_a_task_in_user_mode_on_a_cpu_has_the_registers_of_kdumps_note() -> None:
    scene = scene_of(on_cpu=1, members={"thread.fsbase": 0x7F00_0000_1000, "thread_info.cpu": 1})
    found = regs_of(scene, Note("CORE", 1, prstatus(7, IN_KERNEL)), Note("CORE", 1, prstatus(100, LIVE)))
    assert found.source == "crash note of CPU 1"
    assert {name: found.regs[name] for name in user_regs(0)} == {name: LIVE[name] for name in user_regs(0)}


def offline_scene() -> tuple[Scene, list[Note]]:
    """Return a machine of four CPUs whose second was offline when it crashed, and its dump's notes.

    CPU 0 and 3 were idle; CPU 2 ran PID 100.
    """
    scene = scene_of(on_cpu=1, members={"thread_info.cpu": 2})
    image = scene.image
    ran = {
        0: prstatus(0, user_regs(1, cs=0x10, rsp=TEXT)),
        2: prstatus(100, LIVE),
        3: prstatus(0, user_regs(1, cs=0x10, rsp=TEXT + 64)),
    }
    stride = 0x1000
    area = image.alloc(4 * stride, 4096)
    for cpu, desc in ran.items():
        image.write(area + cpu * stride, struct.pack("<3I8s", 5, len(desc), 1, b"CORE") + desc)
    image.table.symbols |= {
        "crash_notes": image.words(image.alloc(8), area),
        "__per_cpu_offset": image.words(image.alloc(32), *(cpu * stride for cpu in range(4))),
        "nr_cpu_ids": image.words(image.alloc(8), 4),
    }
    return scene, [Note("CORE", 1, desc) for desc in ran.values()]


def test_a_note_is_of_the_cpu_that_made_it_where_another_cpu_was_offline() -> None:
    scene, notes = offline_scene()
    assert regs_of(scene, *notes).source == "crash note of CPU 2"
    running = scene.processes(*notes).cpus.running
    assert [(seen.cpu, seen.pid) for seen in running] == [(0, 0), (2, 100), (3, 0)]


def test_without_the_kernels_own_copy_a_note_is_of_the_cpu_that_its_task_was_on() -> None:
    scene, notes = offline_scene()
    del scene.image.table.symbols["crash_notes"]
    image, stride = scene.image, 0x1000
    image.table.offsets["rq"] = {"curr": (0, 8)}
    area = image.alloc(4 * stride, 4096)
    image.words(area + 2 * stride, scene.leaders[0])
    image.table.symbols["runqueues"] = area
    running = scene.processes(*notes).cpus.running
    assert [(seen.cpu, seen.pid) for seen in running] == [(None, 0), (2, 100), (None, 0)]


def test_a_crash_note_that_cannot_be_read_tells_no_cpu() -> None:
    scene, notes = offline_scene()
    scene.image.words(scene.image.table.symbols["crash_notes"], 0xFFFF_C900_0000_0000)
    assert [seen.cpu for seen in scene.processes(*notes).cpus.running] == [None, None, None]
    scene.image.table.symbols["crash_notes"] = 0xFFFF_C900_0000_0000
    assert [seen.cpu for seen in scene.processes(*notes).cpus.running] == [None, None, None]


def test_a_task_in_the_kernel_on_a_cpu_has_its_user_registers_on_its_stack() -> None:
    found = regs_of(scene_of(on_cpu=1), Note("CORE", 1, prstatus(100, IN_KERNEL)))
    assert found.regs["rip"] == CODE + 100
    assert found.source == "kernel stack, running in the kernel on CPU 0"


@pytest.mark.parametrize("notes", [(), (Note("CORE", 1, prstatus(101, LIVE)),)], ids=["no note", "another task's"])
def test_a_task_on_a_cpu_that_has_no_note_has_no_registers(notes: tuple[Note, ...]) -> None:
    """It may have been in user mode, and its stack then has what was when it last entered the kernel."""
    assert one(scene_of(on_cpu=1), *notes) == (
        "it was running on CPU 0, whose registers the dump does not have; those on its kernel stack are older"
    )
    assert regs_of(scene_of(on_cpu=0), *notes).source == "kernel stack"


def qemu(*cpus: tuple[dict[str, int], int]) -> tuple[Note, ...]:
    """Return QEMU's notes: (registers, cr3) of each CPU."""
    first = [Note("CORE", 1, prstatus(i + 1, regs)) for i, (regs, _) in enumerate(cpus)]
    second = [
        Note("QEMU", 0, qemu_note(cr3, regs.get("fs_base", 0), regs.get("gs_base", 0), 0x99)) for regs, cr3 in cpus
    ]
    return (*first, *second)


def test_qemus_notes_are_found_by_the_cpu_of_the_task_not_by_pid() -> None:
    """pr_pid there is the CPU's number plus 1: PID 2 must not get CPU 1's registers."""
    scene = Scene()
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
    scene.group(scene.task(100, on_cpu=1, members={"thread_info.cpu": 1}), mm=mm)
    scene.group(scene.task(1, on_cpu=0), mm=mm)
    notes = qemu((user_regs(0xBB), 0x9000), (LIVE, ROOT))
    found = regs_of(scene, *notes)
    assert found.source == "crash note of CPU 1"
    assert found.regs["rip"] == LIVE["rip"]
    assert (found.regs["fs_base"], found.regs["gs_base"]) == (0x7F00_0000_1000, 0x77)
    processes = scene.processes(*notes)
    ((_, other),) = processes.thread_registers(processes.find(1))
    assert isinstance(other, ThreadRegs)
    assert other.source == "kernel stack"


def test_where_thread_info_is_on_the_stack_it_tells_the_cpu() -> None:
    """As on 32-bit ARM before Linux 5.16."""
    scene = scene_of(on_cpu=1)
    del scene.image.table.offsets["task_struct"]["thread_info.cpu"]
    scene.image.table.offsets["thread_info"] = {"cpu": (20, 4)}
    stack = scene.image.word(scene.leaders[0] + scene.image.offset("task_struct", "stack"))
    scene.image.write(stack + 20, (1).to_bytes(4, "little"))
    notes = qemu((user_regs(0xBB), 0x9000), (LIVE, ROOT))
    found = regs_of(scene, *notes)
    assert (found.source, found.regs["rip"]) == ("crash note of CPU 1", LIVE["rip"])
    scene.image.set("task_struct", scene.leaders[0], stack=0)
    assert scene.processes().find(100) is not None
    assert task_cpu(scene.image.kernel().view("task_struct", scene.leaders[0])) is None


def test_live_bases_of_a_task_in_the_kernel_are_those_that_swapgs_put_aside() -> None:
    scene = scene_of(on_cpu=1, members={"thread_info.cpu": 0, "thread.fsbase": 1, "thread.gsbase": 2, "thread.ds": 5})
    found = regs_of(scene, *qemu((IN_KERNEL, ROOT)))
    assert (found.regs["fs_base"], found.regs["gs_base"]) == (0x7F00_0000_1000, 0x99)
    assert found.regs["ds"] == 5
    assert found.regs["rip"] == CODE + 100


SAVED_FS, LIVE_FS = 0x7F00_0000_2000, 0x7F00_0000_1000


def switching(leaves: int, goes_to: int, current: int, stack: int, hot: bool = False) -> ThreadRegs:
    """Return the registers of PID 100, where CPU 0 was within context_switch().

    Args:
        leaves: which task it switches from: 100, or 200 of another process.
        goes_to: the other, its runqueue's curr.
        current: which it has as current.
        stack: whose stack it has.
        hot: whether the current task is in pcpu_hot.
    """
    scene = Scene()
    image, members = scene.image, {"thread_info.cpu": 0, "thread.fsbase": SAVED_FS}
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
    tasks = {pid: scene.task(pid, on_cpu=1, members=members) for pid in (leaves, goes_to)}
    for task in tasks.values():
        scene.group(task, mm=mm)
    image.table.offsets["rq"] = {"curr": (0, 8)}
    image.table.symbols["runqueues"] = image.words(image.alloc(8), tasks[goes_to])
    image.table.symbols["pcpu_hot" if hot else "current_task"] = image.words(image.alloc(8), tasks[current])
    if hot:
        image.table.offsets["pcpu_hot"] = {"current_task": (0, 8)}
    rsp = image.word(tasks[stack] + image.offset("task_struct", "stack")) + 0x3000
    return regs_of(scene, *qemu(({**IN_KERNEL, "rsp": rsp}, ROOT)))


@pytest.mark.parametrize("hot", [False, True], ids=["current_task", "pcpu_hot"])
@pytest.mark.parametrize(
    ("switch", "fs_base"),
    [
        ((200, 100, 200, 200), SAVED_FS),  # in switch_mm() already, with the registers of the thread it leaves
        ((200, 100, 200, 100), SAVED_FS),  # in __switch_to(), on the next thread's stack
        ((200, 100, 100, 100), LIVE_FS),  # in finish_task_switch()
        ((100, 200, 100, 100), LIVE_FS),
        ((100, 200, 200, 200), SAVED_FS),
        ((100, 200, 100, 200), None),  # before or after they were saved and the next one's loaded
    ],
)
def test_a_cpu_within_a_context_switch_has_the_registers_of_one_thread(
    switch: tuple[int, int, int, int], fs_base: int | None, hot: bool
) -> None:
    found = switching(*switch, hot=hot)
    assert found.regs.get("fs_base") == fs_base
    assert found.regs["rip"] == CODE + 100
    said = None
    if fs_base is None:
        said = "fs_base, gs_base of thread 100 (task100) not known: CPU 0 was switching from or to it"
    assert found.doubt == said
    assert ("fs_base" in found.unknown) == (fs_base is None)


def test_what_a_cpu_had_as_current_cannot_be_read() -> None:
    scene = scene_of(on_cpu=1, members={"thread_info.cpu": 0, "thread.fsbase": LIVE_FS, "thread.gsbase": 2})
    scene.image.table.symbols["current_task"] = 0xFFFF_C900_0000_0000
    found = regs_of(scene, *qemu((IN_KERNEL, ROOT)))
    assert (found.regs["fs_base"], found.unknown) == (LIVE_FS, ("gs_base",))
    assert found.doubt == "gs_base of thread 100 (task100) not known: CPU 0 was switching from or to it"


def test_registers_that_a_context_switch_hides_make_a_core_incomplete() -> None:
    scene = simple(members={})
    leader = scene.leaders[0]
    scene.image.set("task_struct", leader, on_cpu=1)
    scene.image.table.symbols["current_task"] = 0xFFFF_C900_0000_0000
    (warning,) = scene.capture(*qemu((IN_KERNEL, ROOT))).snapshot.warnings
    assert warning == "fs_base, gs_base of thread 100 (task100) not known: CPU 0 was switching from or to it"


EXPORT_ONLY = {**EXPORT, "task_struct": {**EXPORT["task_struct"], "thread.fsbase": (2336, 8)}}


MAY_BE = "the layout does not tell whether it was on a CPU, and "
OLDER = "; registers on its kernel stack may be older"


def export_scene(fsbase: int = 0x7F00_0000_1000, *siblings: int, softirqs: int = 0, **task: Any) -> Scene:
    """A layout without on_cpu and cpu, as VMCOREINFO's export leaves it; siblings by their saved fs_base."""
    scene = Scene(EXPORT_ONLY)
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
    others = [scene.task(101 + i, 100, members={"thread.fsbase": base}) for i, base in enumerate(siblings)]
    scene.group(scene.task(100, members={"thread.fsbase": fsbase}, **task), *others, mm=mm)
    for cpu in range(softirqs):
        scene.group(scene.task(20 + cpu, comm=b"ksoftirqd/%d" % cpu, flags=PF_KTHREAD))
    return scene


def test_without_on_cpu_a_user_mode_cpu_shows_whose_address_space_and_thread_it_runs() -> None:
    found = regs_of(export_scene(), *qemu((user_regs(0xBB), 0x9000), (LIVE, ROOT)))
    assert found.source == "crash note of CPU 1"
    assert found.regs["rip"] == LIVE["rip"]


@pytest.mark.parametrize(
    ("bases", "regs", "cr3"),
    [
        pytest.param((0x7F00_0000_8000,), LIVE, 0x9000, id="another address space"),
        pytest.param((0x7F00_0000_8000, 0x7F00_0000_1000), LIVE, ROOT, id="another thread"),
        pytest.param((0x7F00_0000_1000,), IN_KERNEL, ROOT, id="in the kernel"),
    ],
)
def test_without_on_cpu_no_note_is_taken_that_is_anothers(
    bases: tuple[int, ...], regs: dict[str, int], cr3: int
) -> None:
    processes = export_scene(*bases).processes(*qemu((regs, cr3)))
    found = next(answer for _, answer in processes.thread_registers(processes.find(100)))
    assert isinstance(found, ThreadRegs)
    assert found.source == "kernel stack"
    assert found.regs["rip"] == CODE + 100


def test_without_on_cpu_a_thread_that_a_user_mode_cpu_may_have_run_has_no_registers() -> None:
    """Its thread pointer may have changed since it was saved: wrfsbase needs no system call."""
    notes = qemu((IN_KERNEL, 0x9000), (LIVE, ROOT))
    sentence = f"{MAY_BE}CPU 1 was in user mode, maybe with this thread{OLDER}"
    assert one(export_scene(0x7F00_0000_8000), *notes) == sentence
    assert regs_of(export_scene(0x7F00_0000_8000, __state=1), *notes).source == "kernel stack"
    (left,) = export_scene(0x7F00_0000_8000).capture(*notes).snapshot.threads_left_out
    assert left.reason == sentence


def test_a_thread_pointer_alone_is_of_more_than_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork has its parent's: a note that does not tell whose memory the CPU used is neither taken nor passed over."""
    monkeypatch.setattr(X86_64Cpus, "uses_pgd", Cpus.uses_pgd)
    assert one(export_scene(), *qemu((LIVE, ROOT))) == f"{MAY_BE}CPU 0 was in user mode, maybe with this thread{OLDER}"


@pytest.mark.parametrize(
    ("base", "asleep", "whose"),
    [
        pytest.param(0x7F00_0000_8000, 0, "crash note of CPU 0", id="another's"),
        pytest.param(0x7F00_0000_1000, 1, "crash note of CPU 0", id="the same, asleep"),
        pytest.param(0x7F00_0000_1000, 0, None, id="the same, of a fork"),
    ],
)
def test_a_reserved_thread_pointer_tells_the_thread_if_one_alone_has_it(
    base: int, asleep: int, whose: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(X86_64Cpus, "uses_pgd", Cpus.uses_pgd)
    monkeypatch.setattr(X86_64Registers, "tp_register", "fs_base")
    scene = export_scene()
    other = scene.task(200, members={"thread.fsbase": base}, __state=asleep)
    scene.group(other, mm=scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC)))
    found = one(scene, *qemu((LIVE, ROOT)))
    if whose is None:
        assert found == f"{MAY_BE}CPU 0 was in user mode, maybe with this thread{OLDER}"
    else:
        assert isinstance(found, ThreadRegs)
        assert found.source == whose
    processes = scene.processes(*qemu((LIVE, ROOT)))
    ((_, others),) = processes.thread_registers(processes.find(200))
    assert isinstance(others, str) == (whose is None)


def test_a_reserved_thread_pointer_tells_nothing_where_a_task_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that ran may be on the torn list's other side, or the one that cannot be read."""
    monkeypatch.setattr(X86_64Cpus, "uses_pgd", Cpus.uses_pgd)
    monkeypatch.setattr(X86_64Registers, "tp_register", "fs_base")
    in_doubt = f"{MAY_BE}CPU 0 was in user mode, maybe with this thread{OLDER}"
    torn = export_scene()
    lost = torn.task(200)
    torn.group(lost)
    torn.image.set("task_struct", lost, tasks=0x10)
    assert one(torn, *qemu((LIVE, ROOT))) == in_doubt
    unread = export_scene()
    other = unread.task(200)
    unread.group(other, mm=unread.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC)))
    plain = X86_64Registers.thread_bases

    def bases(arch: X86_64Registers, task: KernelAddr, *more: Any) -> Any:
        if task == other:
            raise MemoryFault(task)
        return plain(arch, task, *more)

    monkeypatch.setattr(X86_64Registers, "thread_bases", bases)
    assert one(unread, *qemu((LIVE, ROOT))) == in_doubt


def test_a_stack_that_is_not_in_the_dump_does_not_lose_the_registers_of_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where its thread pointer is looked for on the stack."""
    monkeypatch.setattr(X86_64Registers, "tp_register", "fs_base")
    monkeypatch.setattr(X86_64Registers, "thread_bases", lambda *_: {})

    def gone(*_: Any) -> None:
        raise MemoryFault(0x1000)

    monkeypatch.setattr(X86_64Registers, "user_regs", gone)
    assert regs_of(export_scene(), Note("CORE", 1, prstatus(100, LIVE))).source == "crash note of a CPU"


def test_without_the_number_of_its_cpu_a_thread_on_one_has_no_registers_if_any_was_in_user_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(X86_64Cpus, "uses_pgd", Cpus.uses_pgd)
    scene = scene_of(on_cpu=1)
    del scene.image.table.offsets["task_struct"]["thread_info.cpu"]
    assert one(scene, *qemu((LIVE, ROOT))) == (
        f"the layout does not tell which CPU it was on, and CPU 0 was in user mode, maybe with this thread{OLDER}"
    )
    assert regs_of(scene, *qemu((IN_KERNEL, ROOT))).source == "kernel stack"


def test_without_on_cpu_and_notes_only_what_was_asleep_has_registers() -> None:
    assert one(export_scene()) == f"{MAY_BE}the dump has no CPU's registers{OLDER}"
    assert regs_of(export_scene(__state=2)).source == "kernel stack"


@pytest.mark.parametrize(
    ("softirqs", "cpus"),
    [pytest.param(1, None, id="all"), pytest.param(2, "2", id="one lacks"), (0, "an unknown number")],
)
def test_without_on_cpu_kdumps_notes_name_what_ran_if_all_cpus_have_one(softirqs: int, cpus: str | None) -> None:
    """A CPU that hung when the kernel crashed has no note."""
    scene = export_scene(softirqs=softirqs)
    assert regs_of(scene, Note("CORE", 1, prstatus(100, LIVE))).source == "crash note of a CPU"
    found = one(scene, Note("CORE", 1, prstatus(101, LIVE)))
    if cpus is None:
        assert isinstance(found, ThreadRegs)
        assert found.source == "kernel stack"
    else:
        assert found == f"{MAY_BE}the dump has registers of 1 CPU, of {cpus}{OLDER}"


def test_bases_that_no_source_has_are_unknown_and_not_zero() -> None:
    scene = Scene(EXPORT)
    scene.group(scene.task(100, __state=1), mm=scene.mm((CODE, CODE + 0x1000, VM_READ)))
    found = regs_of(scene)
    assert set(found.unknown) == {"fs_base", "gs_base", "ds", "es", "fs", "gs"}
    assert not set(found.unknown) & set(found.regs)
    snapshot = scene.capture().snapshot
    assert set(snapshot.threads[0].gregs_unknown) == set(found.unknown)


def test_two_threads_of_which_one_is_on_a_cpu() -> None:
    scene = Scene()
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
    scene.group(scene.task(100, on_cpu=0), scene.task(101, 100, on_cpu=1, members={"thread_info.cpu": 0}), mm=mm)
    first, second = scene.capture(*qemu((LIVE, ROOT))).snapshot.threads
    assert (first.tid, first.gregs_source) == (100, "kernel stack")
    assert (second.tid, second.gregs_source) == (101, "crash note of CPU 0")
    assert registers(first.gregs)["rip"] == CODE + 100
    assert registers(second.gregs)["rip"] == LIVE["rip"]


def test_a_stack_without_user_registers_gives_a_sentence() -> None:
    scene = scene_of(top=bytes(400))
    answer = one(scene)
    assert isinstance(answer, str)
    assert answer.startswith("no user registers are at the top of its kernel stack at 0xffffffff8")


def test_an_exiting_task_says_so() -> None:
    assert one(scene_of(top=bytes(400), flags=PF_EXITING)) == "it is exiting, and its user registers are gone"


def test_a_stack_that_is_not_in_the_dump_gives_a_sentence() -> None:
    scene = simple()
    scene.image.set("task_struct", scene.leaders[0], stack=0xFFFF_C900_0000_0000)
    answer = one(scene)
    assert isinstance(answer, str)
    assert "0xffffc90000000000" in answer


def test_a_thread_that_cannot_be_read_does_not_take_the_others_with_it() -> None:
    scene = Scene()
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
    bad = scene.task(101, 100, top=bytes(400))
    scene.group(scene.task(100), bad, scene.task(102, 100), mm=mm)
    snapshot = scene.capture().snapshot
    assert [thread.tid for thread in snapshot.threads] == [100, 102]
    assert [(left.tid, left.comm) for left in snapshot.threads_left_out] == [(101, b"task101")]


def test_a_compat_task_makes_a_core_of_32_bits() -> None:
    regs = user_regs(1, cs=0x23, rip=0x804_8123, rsp=0xFFD0_0000, rax=0xFFFF_FFFF_0000_0007)
    scene = Scene()
    mm = scene.mm((0x804_8000, 0x804_9000, VM_READ | VM_EXEC), task_size=0xFFFF_E000)
    scene.group(scene.task(100, top=frame(regs)), mm=mm)
    snapshot = scene.capture().snapshot
    assert (snapshot.elf_class, snapshot.e_machine) == (32, 3)
    gregs = snapshot.threads[0].gregs
    assert len(gregs) == 17 * 4
    # user_regs_struct32: eax is the 7th word, eip the 13th, esp the 16th.
    words = [int.from_bytes(gregs[i : i + 4], "little") for i in range(0, 68, 4)]
    assert (words[6], words[12], words[13], words[15]) == (7, 0x804_8123, 0x23, 0xFFD0_0000)


def test_the_image_of_the_test_is_at_the_kernels_place() -> None:
    assert simple().leaders[0] > TEXT
