"""Words of a real guest's structures replaced: the rest is found in other ways, or reported as missing.

The guest is the bundled one of Linux 6.1; ``tests.fuzz.overlay`` puts other bytes over its memory.

Tests kernel/pid.py, kernel/task_scan.py, process/task_finder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.overlay import poked
from tests.fuzz.poke import DUMP
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel import fs, mm, pid, runqueue, sched
from vmcore2core.kernel.maple_tree import MapleTree, MapleType
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.task_scan import TaskScan
from vmcore2core.memory.pagetable import translate
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.process.openfiles import Ends
from vmcore2core.process.snapshot import Processes
from vmcore2core.process.task_finder import FoundBy
from vmcore2core.process.waits import Waits
from vmcore2core.run.story import story
from vmcore2core.session import OpenOptions, Session

GARBAGE = 0xDEAD_0000_0000_0100
STATIC, DYNAMIC = 86, 92


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session([DUMP]) as opened:
        yield opened


@pytest.fixture(scope="module")
def leaders(session: Session) -> dict[int, StructView]:
    """By PID, in the list's order."""
    return {sched.task_pid(leader): leader for leader in session.processes.leaders()}


def with_words(session: Session, words: dict[int, int], size: int = 8) -> Session:
    """Return the dump with other words at kernel addresses."""
    return poked(
        session, {session.kernel.memory.to_phys(at): value.to_bytes(size, "little") for at, value in words.items()}
    )


def with_member(session: Session, view: StructView, name: str, value: int) -> Session:
    found = session.kernel.layout.member(view.struct, name)
    return with_words(session, {view.address + found.offset: value}, min(found.size or 8, 8))


def captured(session: Session, number: int = STATIC) -> ProcessSnapshot:
    return session.processes.capture(session.processes.find(number)).snapshot


def numbers(session: Session) -> list[int]:
    return [sched.task_pid(leader) for leader in session.processes.leaders()]


def test_every_way_leads_to_the_same_tasks(session: Session) -> None:
    processes, kernel = session.processes, session.kernel
    listed = {int(thread.address) for leader in processes.leaders() for thread in processes.threads(leader)}
    assert {int(task.address) for task in pid.for_each_numbered(kernel)} == listed
    idle = int(pid.init_task(kernel).address)
    assert {int(task.address) for task in runqueue.running(kernel)} <= listed | {idle}
    for number, leader in ((sched.task_pid(leader), leader) for leader in processes.leaders()):
        assert pid.find_pid(kernel, number) == leader.pointer("thread_pid")


@pytest.mark.parametrize("at", [1, STATIC, DYNAMIC])
@pytest.mark.parametrize("kind", ["garbage", "cycle", "to itself", "skips"])
def test_a_torn_task_list_loses_no_process(
    session: Session, leaders: dict[int, StructView], at: int, kind: str
) -> None:
    heads = {number: leader.addr_of("tasks") for number, leader in leaders.items()}
    value = {"garbage": GARBAGE, "cycle": heads[1], "to itself": heads[at], "skips": heads[max(heads)]}[kind]
    if value == session.kernel.read_pointer(heads[at]):
        return
    changed = with_words(session, {heads[at]: value})
    assert sorted(numbers(changed)) == sorted(leaders)
    assert f"task_struct.tasks at {heads[at]:#x}" in changed.warnings[0]
    assert "(offset 0x890, from BTF in the dump)" in changed.warnings[0]
    lost = [number for number in leaders if number > at]
    found_by = {
        sched.task_pid(leader): changed.processes.task_finder.found_by(leader) for leader in changed.processes.leaders()
    }
    assert found_by == {number: FoundBy.PID_TABLE if number in lost else FoundBy.TASK_LIST for number in leaders}
    if lost:
        assert changed.warnings[1].startswith(f"not in the task list, but found elsewhere: {min(lost)} (")
    assert captured(changed, DYNAMIC).threads == captured(session, DYNAMIC).threads


def test_with_the_pid_table_torn_too_what_runs_is_still_found(session: Session, leaders: dict[int, StructView]) -> None:
    ns = session.kernel.view("pid_namespace", session.kernel.layout.symbol("init_pid_ns"))
    root = ns.embedded("idr", "idr").addr_of("idr_rt") + 8
    changed = with_words(session, {leaders[1].addr_of("tasks"): GARBAGE, root: GARBAGE + 2})
    assert any("the PID table does not tell all tasks" in warning for warning in changed.warnings) is False
    assert numbers(changed) == [1, 92]  # a thread of 92 was on CPU 1
    assert changed.processes.task_finder.found_by(leaders[92]) is FoundBy.RUNQUEUE
    assert any("the PID table does not tell all tasks" in warning for warning in changed.warnings)


def test_a_scan_finds_every_process_that_nothing_leads_to(session: Session, leaders: dict[int, StructView]) -> None:
    ns = session.kernel.view("pid_namespace", session.kernel.layout.symbol("init_pid_ns"))
    root = ns.embedded("idr", "idr").addr_of("idr_rt") + 8
    changed = with_words(session, {leaders[1].addr_of("tasks"): GARBAGE, root: GARBAGE + 2})
    seen: list[tuple[int, int]] = []
    changed.processes = Processes(
        changed.kernel, (), scan=lambda: TaskScan(changed.kernel).leaders(lambda *done: seen.append(done))
    )
    assert sorted(numbers(changed)) == sorted(leaders)
    assert changed.processes.task_finder.found_by(leaders[STATIC]) is FoundBy.SCAN
    assert seen == sorted(seen)
    assert seen[-1][0] <= seen[-1][1]


def test_a_scan_adds_nothing_to_a_list_that_is_whole(session: Session, leaders: dict[int, StructView]) -> None:
    processes = Processes(session.kernel, (), scan=TaskScan(session.kernel).leaders)
    assert [sched.task_pid(leader) for leader in processes.leaders()] == list(leaders)
    assert processes.warnings == []


def test_a_task_that_was_released_is_not_found(session: Session, leaders: dict[int, StructView]) -> None:
    node = leaders[STATIC].addr_of("thread_node")
    poison = {node: 0xDEAD_0000_0000_0100, node + 8: 0xDEAD_0000_0000_0122}
    changed = with_words(session, poison)
    found = {sched.task_pid(task) for task in TaskScan(changed.kernel).leaders()}
    assert found == set(leaders) - {STATIC}


@pytest.mark.parametrize("value", ["garbage", "itself", "head of another"])
def test_a_torn_thread_list_loses_no_thread(session: Session, leaders: dict[int, StructView], value: str) -> None:
    good = captured(session)
    thread = list(session.processes.threads(leaders[STATIC]))[2]
    node = thread.addr_of("thread_node")
    values = {"garbage": GARBAGE, "itself": node, "head of another": leaders[DYNAMIC].addr_of("thread_node")}
    changed = with_words(session, {node: values[value]})
    found = captured(changed)
    assert {thread.tid for thread in found.threads} == {thread.tid for thread in good.threads}
    assert f"task_struct.thread_node at {node:#x}" in found.warnings[0]
    assert any("is not in its group's list, but found elsewhere" in warning for warning in found.warnings)


def test_what_is_torn_of_others_is_said_of_them_alone(session: Session, leaders: dict[int, StructView]) -> None:
    """The index's story looks at all threads, and a run is of some processes: what others lack is not lost."""
    node = list(session.processes.threads(leaders[STATIC]))[2].addr_of("thread_node")
    changed = with_words(session, {node: GARBAGE})
    assert [one["tid"] for one in story(changed)["blocked"]] == [one["tid"] for one in story(session)["blocked"]]
    with changed.processes.unheard():
        Waits(changed.processes, Ends(changed.processes))
    assert changed.warnings == session.warnings
    assert any("task_struct.thread_node" in warning for warning in captured(changed).warnings)
    assert captured(changed, DYNAMIC).warnings == captured(session, DYNAMIC).warnings


def test_fewer_threads_than_the_group_counts_are_said(session: Session, leaders: dict[int, StructView]) -> None:
    signal = leaders[STATIC].follow("signal", "signal_struct")
    assert signal is not None
    (warning, *_) = captured(with_member(session, signal, "nr_threads", 9)).warnings
    assert "signal_struct.nr_threads" in warning
    assert "9, expected 6" in warning


def owner_of(leader: StructView) -> StructView:
    found = leader.follow("mm", "mm_struct")
    assert found is not None
    return found


def test_a_maple_node_that_leads_back_keeps_what_was_before(session: Session, leaders: dict[int, StructView]) -> None:
    owner = owner_of(leaders[DYNAMIC])
    root = owner.embedded("mm_mt", "maple_tree").pointer("ma_root")
    node = root & ~0xFF
    form = MapleTree(owner.embedded("mm_mt", "maple_tree")).forms[MapleType.ARANGE_64]
    good = captured(session, DYNAMIC)
    changed = captured(with_words(session, {node + form.slot + 8: root & ~2}), DYNAMIC)
    assert any(f"maple_node at {node:#x}: the tree leads back into itself" in w for w in changed.warnings)
    mapped = [(vma.start, vma.end) for vma in changed.vmas]
    assert 0 < len(mapped) < len(good.vmas)
    assert set(mapped) < {(vma.start, vma.end) for vma in good.vmas}


@pytest.mark.parametrize(
    ("name", "value"),
    [("vm_mm", 0xFFFF_8880_0000_0000), ("vm_flags", 0x7), ("vm_flags", 1 << 60), ("vm_start", 0x1000), ("vm_end", 0)],
)
def test_a_vma_that_cannot_be_one_is_said(
    session: Session, leaders: dict[int, StructView], name: str, value: int
) -> None:
    vmas = list(mm.for_each_vma(owner_of(leaders[STATIC])))
    changed = captured(with_member(session, vmas[4], name, value))
    kept = [vma.start for vma in changed.vmas if vma.name != "[vsyscall]"]
    assert [mm.vma_start(v) for v in vmas if v is not vmas[4] or name in ("vm_mm", "vm_flags")] == kept
    assert any("mappings may be missing or wrong: vm_area_struct" in warning for warning in changed.warnings)


def test_a_mapping_that_vanishes_from_the_index_is_missed(session: Session, leaders: dict[int, StructView]) -> None:
    owner = owner_of(leaders[STATIC])
    tree = MapleTree(owner.embedded("mm_mt", "maple_tree"))
    leaf = session.kernel.read_pointer(
        (owner.embedded("mm_mt", "maple_tree").pointer("ma_root") & ~0xFF) + tree.forms[MapleType.ARANGE_64].slot
    )
    slots = (leaf & ~0xFF) + tree.forms[MapleType.LEAF_64].slot
    first = next(at for at in range(slots, slots + 128, 8) if session.kernel.read_pointer(at))
    torn = with_words(session, {first: 0})
    warning, total = (w for w in captured(torn).warnings if "map_count" in w or "total_vm" in w)
    assert "mm_struct.total_vm at" in total or "mm_struct.total_vm at" in warning
    assert any(w.startswith("mappings may be missing or wrong: mm_struct.map_count") for w in (warning, total))
    (warning,) = captured(with_member(torn, owner, "mmap_lock.owner", leaders[DYNAMIC].address)).warnings
    assert warning.startswith(
        f"mappings may be missing or wrong, as the task at {leaders[DYNAMIC].address:#x} was changing them (it holds "
        "mmap_lock): mm_struct.map_count"
    )


@pytest.mark.parametrize(("flags", "writes"), [(0, True), (2, True), (1, False), (3, False)])
def test_who_holds_mmap_lock_for_writing(
    session: Session, leaders: dict[int, StructView], flags: int, writes: bool
) -> None:
    """RWSEM_READER_OWNED, RWSEM_NONSPINNABLE; a reader stays there when it is gone."""
    task, owner = leaders[STATIC].address, owner_of(leaders[STATIC])
    assert mm.mmap_lock_writer(owner) is None
    changed = with_member(session, owner, "mmap_lock.owner", task | flags)
    found = mm.mmap_lock_writer(changed.kernel.view("mm_struct", owner.address))
    assert found == (task if writes else None)
    idle = with_member(session, owner, "mmap_lock.owner", flags)
    assert mm.mmap_lock_writer(idle.kernel.view("mm_struct", owner.address)) is None


def test_a_path_that_leads_back_into_itself_is_not_known(session: Session, leaders: dict[int, StructView]) -> None:
    vma = next(v for v in mm.for_each_vma(owner_of(leaders[DYNAMIC])) if v.pointer("vm_file"))
    file = vma.follow("vm_file", "file")
    assert file is not None
    dentry = session.kernel.view("dentry", file.embedded("f_path", "path").pointer("dentry"))
    parent = session.kernel.view("dentry", dentry.pointer("d_parent"))
    changed = captured(with_member(session, parent, "d_parent", dentry.address), DYNAMIC)
    assert any("dentry.d_parent" in w and "leads back into itself" in w for w in changed.warnings)
    assert next(v for v in changed.vmas if v.start == mm.vma_start(vma)).path is None


@pytest.mark.parametrize("length", [0, 3, 300, 0xFFFF_FFFF])
def test_a_name_of_another_length_is_none(session: Session, leaders: dict[int, StructView], length: int) -> None:
    vma = next(v for v in mm.for_each_vma(owner_of(leaders[DYNAMIC])) if v.pointer("vm_file"))
    file = vma.follow("vm_file", "file")
    assert file is not None
    dentry = session.kernel.view("dentry", file.embedded("f_path", "path").pointer("dentry"))
    at = dentry.embedded("d_name", "qstr").addr_of("hash_len") + 4
    changed = with_words(session, {at: length}, 4)
    with pytest.raises(CorruptStructure, match=r"dentry\.d_name at 0x.* does not end there"):
        fs.dentry_name(changed.kernel.view("dentry", dentry.address))


def test_a_signal_may_be_pending_without_its_siginfo(session: Session, leaders: dict[int, StructView]) -> None:
    """tgkill() where RLIMIT_SIGPENDING is reached: the signal is sent, and none is queued."""
    found = captured(with_member(session, leaders[STATIC], "pending.signal", 1 << 9))
    assert found.warnings == ()
    assert found.threads[0].pr_sigpend == 1 << 9


def test_everything_fits_as_it_is(session: Session) -> None:
    for number in (STATIC, DYNAMIC):
        assert captured(session, number).warnings == ()
    assert session.warnings == []


View = Callable[[StructView], StructView | None]
LEADER: View = lambda leader: leader  # noqa: E731
CHECKED: list[tuple[View, str, int, str]] = [
    (LEADER, "active_mm", GARBAGE, "task_struct.active_mm"),
    (LEADER, "group_leader", GARBAGE, "task_struct.group_leader"),
    (LEADER, "exit_state", 0x40, "expected 0, 0x10, 0x20 or both"),
    (LEADER, "__state", 1 << 30, "which no task can be in"),
    (LEADER, "on_cpu", 2, "expected 0 or 1"),
    (LEADER, "static_prio", 1000, "expected 100 to 140"),
    (LEADER, "utime", 1 << 62, "more than all CPUs had since boot"),
    (LEADER, "blocked", 1 << 8, "SIGKILL and SIGSTOP cannot be blocked"),
    (LEADER, "real_parent", GARBAGE, "is not mapped"),
    (LEADER, "real_parent", 0xFF45_0CB5_449E_8800, "where no task is"),
    (LEADER, "thread.fsbase", 1 << 60, "fs_base is 0x1000000000000000, which is not canonical"),
    (LEADER, "thread.es", 0x8888, "es is 0x8888, a selector beyond the GDT"),
    (LEADER, "thread.io_bitmap", GARBAGE, "floating-point registers cannot be read"),
    (lambda leader: leader.follow("real_cred", "cred"), "uid", 5, "cred.uid"),
    (lambda leader: leader.follow("signal", "signal_struct"), "cstime", 1 << 62, "signal_struct.cstime"),
    (lambda leader: leader.follow("thread_pid", "pid"), "numbers", 5, "task_struct.pid"),
    (owner_of, "arg_start", 1 << 62, "mm_struct.arg_start"),
    (owner_of, "arg_start", 0x1000, "0x1000, which is in no mapping"),
    (owner_of, "arg_end", 0x4E_81D0_5A05_5AC1, "0x4e81d05a055ac1, which is in no mapping"),
    (owner_of, "start_stack", 1 << 62, "mm_struct.start_stack"),
    (owner_of, "flags", 1 << 50, "mm_struct.flags"),
    (owner_of, "mm_users", 0, "mm_struct.mm_users"),
]


@pytest.mark.parametrize(
    ("find", "name", "value", "words"), CHECKED, ids=[f"{i}-{c[1]}" for i, c in enumerate(CHECKED)]
)
def test_what_does_not_fit_marks_the_core(
    session: Session, leaders: dict[int, StructView], find: View, name: str, value: int, words: str
) -> None:
    view = find(leaders[STATIC])
    assert view is not None
    if name == "numbers":
        changed = with_words(session, {view.addr_of("numbers"): value}, 4)
    else:
        changed = with_member(session, view, name, value)
    assert any(words in warning for warning in captured(changed).warnings)


def test_the_page_table_of_another_process_is_said(session: Session, leaders: dict[int, StructView]) -> None:
    other = owner_of(leaders[DYNAMIC])
    changed = captured(with_member(session, owner_of(leaders[STATIC]), "pgd", other.pointer("pgd")))
    assert any(f"page table but {other.address:#x}'s" in warning for warning in changed.warnings)


def test_an_auxiliary_vector_that_is_not_the_stacks_is_said(session: Session, leaders: dict[int, StructView]) -> None:
    at = owner_of(leaders[STATIC]).addr_of("saved_auxv")
    assert session.kernel.uint(at, 8) == 33  # AT_SYSINFO_EHDR
    changed = captured(with_words(session, {at + 8: 0x1234_0000}))
    assert any("mm_struct.saved_auxv" in w and "type 33 is 0x12340000, expected 0x7ff" in w for w in changed.warnings)


BOUNDS = ("arg_start", "arg_end", "env_start", "env_end")


@pytest.mark.parametrize("bit", [1 << 4, 1 << 12, 1 << 20, 1 << 46], ids=hex)
@pytest.mark.parametrize("name", [*BOUNDS, "AT_EXECFN"])
def test_a_bit_of_where_the_strings_are_is_said(
    session: Session, leaders: dict[int, StructView], name: str, bit: int
) -> None:
    owner = owner_of(leaders[STATIC])
    if name == "AT_EXECFN":
        auxv = owner.addr_of("saved_auxv")
        at = next(pair + 8 for pair in range(auxv, auxv + 400, 16) if session.kernel.uint(pair, 8) == 31)
    else:
        at = int(owner.addr_of(name))
    changed = captured(with_words(session, {at: session.kernel.uint(at, 8) ^ bit}))
    assert any(f"mm_struct.{bound} at" in warning for bound in BOUNDS for warning in changed.warnings)


def test_arguments_that_the_process_moved_are_none_to_complain_of(
    session: Session, leaders: dict[int, StructView]
) -> None:
    """As systemd does with PR_SET_MM_ARG_START and _END."""
    owner = owner_of(leaders[STATIC])
    heap = owner.ulong("start_brk")
    words = {int(owner.addr_of("arg_start")): heap, int(owner.addr_of("arg_end")): heap + 8}
    assert captured(with_words(session, words)).warnings == ()


def test_pointers_of_argv_are_the_process_s_own(session: Session, leaders: dict[int, StructView]) -> None:
    """As of a program whose ld.so was run as a command, and of one that took another name."""
    owner = owner_of(leaders[STATIC])
    argv = owner.ulong("start_stack") + 8
    root = session.kernel.memory.to_phys(owner.pointer("pgd"))
    page, _ = translate(session.kernel.memory.physical, session.kernel.user_page_table(owner), root, argv)
    for pointer in (owner.ulong("arg_start") + 5, owner.ulong("env_start") + 1, owner.ulong("start_brk")):
        changed = captured(poked(session, {page + argv % 4096: pointer.to_bytes(8, "little")}))
        assert not any("arg_start" in warning for warning in changed.warnings)


def test_a_mapping_of_another_place_in_its_file_is_said(session: Session, leaders: dict[int, StructView]) -> None:
    """Of programs: only what no page is mapped of cannot be told."""
    said = 0
    for vma in mm.for_each_vma(owner_of(leaders[DYNAMIC])):
        if not vma.pointer("vm_file"):
            continue
        pgoff = vma.ulong("vm_pgoff")
        changed = captured(with_member(session, vma, "vm_pgoff", pgoff + 0x40), DYNAMIC)
        (*others,) = (w for w in changed.warnings if "as the page at" in w)
        said += any(
            f"vm_pgoff at {vma.addr_of('vm_pgoff'):#x}: {pgoff + 0x40:#x}, expected {pgoff:#x}" in w for w in others
        )
    assert said >= 10


def test_pages_of_its_own_are_where_the_anonymous_offset_says(
    session: Session, leaders: dict[int, StructView], tmp_path: Path
) -> None:
    """Since Linux 7.3, which has that offset beside the file's: here, in a word that this guest has as zeros."""
    at = session.kernel.layout.member("vm_area_struct", "vm_userfaultfd_ctx").offset
    names = {"__vm_anon_pgoff_lo": at, "__vm_anon_pgoff_hi": at + 4}
    text = tmp_path / "layout.txt"
    text.write_text("".join(f"OFFSET(vm_area_struct.{name})={offset}\n" for name, offset in names.items()))
    vmas = [vma for vma in mm.for_each_vma(owner_of(leaders[DYNAMIC])) if vma.pointer("vm_file")]
    with Session([DUMP], OpenOptions(vmcoreinfo=text)) as opened:

        def warnings(anonymous: int, of_file: int) -> list[str]:
            """Return what is said with other offsets by so much."""
            words = {vma.address + at: vma.ulong("vm_pgoff") + anonymous for vma in vmas}
            words |= {int(vma.addr_of("vm_pgoff")): vma.ulong("vm_pgoff") + of_file for vma in vmas}
            return [w for w in captured(with_words(opened, words), DYNAMIC).warnings if "as the page at" in w]

        assert not warnings(0, 0)
        far = 0x7F_0000_0000
        own, of_files = warnings(far, 0), warnings(0, 0x40)
    assert len(own) >= 5
    assert all("vm_area_struct.__vm_anon_pgoff_lo at 0x" in warning for warning in own)
    assert all(f": {far + int(w.split('expected ')[1].split()[0], 16):#x}, expected" in w for w in own)
    assert len(of_files) >= 5
    assert all("vm_area_struct.vm_pgoff at 0x" in warning for warning in of_files)


@pytest.mark.parametrize("step", [-64, 4096])
def test_a_page_cache_that_is_no_file_s_is_said(session: Session, leaders: dict[int, StructView], step: int) -> None:
    """Of every file of the process, as those that have all their pages mapped are not looked up."""
    words = {}
    for vma in mm.for_each_vma(owner_of(leaders[DYNAMIC])):
        file = vma.follow("vm_file", "file")
        if file is not None:
            words[int(file.addr_of("f_mapping"))] = file.pointer("f_mapping") + step
    changed = captured(with_words(session, words), DYNAMIC)
    assert any("cannot be read: address_space.host at" in w for w in changed.warnings)


@pytest.mark.parametrize(("name", "bit"), [("max_size", 1 << 4), ("max_features", 1), ("max_features", 2)])
def test_what_no_processor_saves_is_said(session: Session, name: str, bit: int) -> None:
    layout = session.kernel.layout
    at = layout.symbol("fpu_user_cfg") + layout.member("fpu_state_config", name).offset
    changed = captured(with_words(session, {at: session.kernel.uint(at, 4) ^ bit}, 4))
    assert any("XSAVE" in warning or "xstate_fx_sw_bytes" in warning for warning in changed.warnings)


def test_components_that_the_notes_have_and_processes_lack_are_said(session: Session) -> None:
    at = session.kernel.layout.symbol("xstate_fx_sw_bytes")
    changed = captured(with_words(session, {at: session.kernel.uint(at, 8) ^ 1 << 6}))
    assert any("xstate_fx_sw_bytes has components 0x25f, expected 0x21f" in warning for warning in changed.warnings)
