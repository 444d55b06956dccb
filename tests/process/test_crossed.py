"""Words of a real guest's structures exchanged for another structure's valid words: other records show the error.

Tests process/consistency.py, process/pageindex.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from tests.fuzz.overlay import poked
from tests.fuzz.poke import DUMP
from tests.process.test_torn import DYNAMIC, STATIC, captured, owner_of, with_member, with_words
from vmcore2core.kernel import mm, sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pagetable import Ranges, walk
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.process.snapshot import Processes
from vmcore2core.session import Session


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session([DUMP]) as opened:
        yield opened


def vmas_of(session: Session, number: int = DYNAMIC) -> list[StructView]:
    """Return the mappings of a process."""
    return list(mm.for_each_vma(owner_of(session.processes.find(number))))


def entries(session: Session, vma: StructView, number: int = DYNAMIC) -> list[tuple[int, int]]:
    """Return address and last-level entry of each page that is mapped; the entry's own place is not told."""
    kernel, owner = session.kernel, owner_of(session.processes.find(number))
    wanted = Ranges(np.array([mm.vma_start(vma)], np.uint64), np.array([mm.vma_end(vma)], np.uint64))
    root = kernel.memory.to_phys(owner.pointer("pgd"))
    batches = walk(kernel.memory.physical, kernel.user_page_table(owner), root, wanted)
    return [pair for batch in batches for pair in zip(batch.vaddr.tolist(), batch.entry.tolist(), strict=True)]


def swapped_entries(session: Session, first: int, second: int) -> Session:
    """Return the dump with two entries of last-level tables exchanged, wherever they are."""
    pokes = {}
    for base, pages in session.kernel.memory.physical.scan():
        words = pages.reshape(-1).view(np.uint64)
        for old, new in ((first, second), (second, first)):
            for at in np.flatnonzero(words == old).tolist():
                pokes[int(base) + 8 * at] = new.to_bytes(8, "little")
    assert len(pokes) == 2
    return poked(session, pokes)


def test_an_anonymous_page_of_another_place_is_said(session: Session) -> None:
    vma = next(v for v in vmas_of(session) if not v.pointer("vm_file") and len(entries(session, v)) > 8)
    (_, first), *_, (_, last) = (pair for pair in entries(session, vma) if pair[1] & 0x42 == 0x42)
    changed = captured(swapped_entries(session, first, last), DYNAMIC)
    assert [w for w in changed.warnings if f"vm_area_struct.vm_pgoff at {vma.addr_of('vm_pgoff'):#x}" in w]


def test_another_file_s_pages_are_said(session: Session) -> None:
    files = [v for v in vmas_of(session) if v.pointer("vm_file") and entries(session, v)]
    said = 0
    for vma, other in zip(files[::3], files[2::3], strict=False):
        if vma.pointer("vm_file") != other.pointer("vm_file"):
            changed = captured(with_member(session, vma, "vm_file", other.pointer("vm_file")), DYNAMIC)
            said += any(f"vm_area_struct.vm_file at {vma.addr_of('vm_file'):#x}" in w for w in changed.warnings)
    assert said >= 3


def test_pages_whose_structures_are_elsewhere_are_said(session: Session) -> None:
    """vmemmap_base, off by the 64 structures that are in a page."""
    base = session.kernel.layout.symbol("vmemmap_base")
    changed = captured(with_words(session, {base: session.kernel.uint(base, 8) + 4096}), DYNAMIC)
    assert len([w for w in changed.warnings if "as the page at" in w]) >= 10


def test_cached_pages_of_another_place_are_not_taken(session: Session) -> None:
    """Two slots of a file's page cache that nobody has mapped."""
    kernel, slots = session.kernel, session.kernel.layout.member("xa_node", "slots").offset
    for vma in vmas_of(session):
        file = vma.follow("vm_file", "file")
        if file is None or len(entries(session, vma)) > (mm.vma_end(vma) - mm.vma_start(vma) >> 12) - 2:
            continue
        head = kernel.view("address_space", file.pointer("f_mapping")).embedded("i_pages", "xarray").pointer("xa_head")
        pages = {at: kernel.uint(at, 8) for at in range(head - 2 + slots, head - 2 + slots + 512, 8)}
        (one, first), (two, second), *_ = (pair for pair in pages.items() if pair[1])
        changed = captured(with_words(session, {one: second, two: first}), DYNAMIC)
        if any("address_space.i_pages at" in w and "is page" in w for w in changed.warnings):
            return
    pytest.fail("no file's page cache is looked at")


def words_of(view: StructView, **members: int) -> dict[int, int]:
    """Return kernel addresses of members to what is to be there."""
    return {int(view.addr_of(name)): value for name, value in members.items()}


def registers(snapshot: ProcessSnapshot) -> dict[int, bytes]:
    return {thread.tid: thread.gregs for thread in snapshot.threads}


def threads_of(session: Session, number: int = DYNAMIC) -> list[StructView]:
    """Return the threads that were off the CPU."""
    leader = session.processes.find(number)
    return [task for task in session.processes.threads(leader) if not sched.task_on_cpu(task)]


def test_threads_with_each_other_s_stacks_keep_their_registers(session: Session) -> None:
    first, second, *_ = threads_of(session)
    stacks = first.pointer("stack"), second.pointer("stack")
    words = words_of(first, stack=stacks[1]) | words_of(second, stack=stacks[0])
    changed = captured(with_words(session, words), DYNAMIC)
    assert registers(changed) == registers(captured(session, DYNAMIC))
    said = [w for w in changed.warnings if "task_struct.stack at" in w]
    assert [f"{stacks[1]:#x}, expected {stacks[0]:#x} as" in said[0], f"expected {stacks[1]:#x} as" in said[1]] == [
        True
    ] * 2


def test_a_thread_whose_stack_nothing_tells_is_left_out(session: Session) -> None:
    first, second, *_ = threads_of(session)
    words = words_of(first, stack=second.pointer("stack"), stack_vm_area=0)
    (left,) = captured(with_words(session, words), DYNAMIC).threads_left_out
    assert left.tid == sched.task_pid(first)
    assert f"task_struct.stack at {first.addr_of('stack'):#x}: {second.pointer('stack'):#x}, but" in left.reason


def test_a_saved_stack_pointer_alone_proves_nothing(session: Session) -> None:
    first, second, *_ = threads_of(session)
    saved = session.kernel.layout.member("task_struct", "thread.sp").offset
    changed = with_words(session, {first.address + saved: session.kernel.uint(second.address + saved, 8)})
    assert captured(changed, DYNAMIC) == captured(session, DYNAMIC)


@pytest.mark.parametrize("leader", [True, False])
def test_another_task_s_parent_is_said(session: Session, leader: bool) -> None:
    tasks = list(session.processes.threads(session.processes.find(STATIC)))
    task = tasks[0 if leader else -1]
    other = session.processes.find(DYNAMIC).address
    changed = captured(with_member(session, task, "real_parent", other), STATIC)
    assert any(
        f"task_struct.real_parent at {task.addr_of('real_parent'):#x}: {other:#x}" in w for w in changed.warnings
    )


def test_the_children_of_a_parent_that_exits_are_given_away_one_by_one(session: Session) -> None:
    task, other = session.processes.find(STATIC), session.processes.find(DYNAMIC)
    words = words_of(task, real_parent=other.address)
    exiting = with_member(with_words(session, words), other, "flags", sched.task_flags(other) | sched.PF_EXITING)
    assert not any("task_struct.real_parent" in w for w in captured(exiting, STATIC).warnings)


def test_pages_that_the_page_table_lost_are_said(session: Session) -> None:
    """With the table of the whole stack gone, whose pages would read as never touched."""
    kernel, owner = session.kernel, owner_of(session.processes.find(DYNAMIC))
    spec, stack = kernel.user_page_table(owner), owner.ulong("start_stack")
    entry = owner.pointer("pgd") + 8 * (stack >> spec.levels[0].shift & (1 << spec.levels[0].bits) - 1)
    changed = captured(with_words(session, {entry: 0}), DYNAMIC)
    assert any("mm_struct.rss_stat at" in w and "but the page tables have" in w for w in changed.warnings)


@pytest.mark.parametrize("name", ["total_vm", "exec_vm", "data_vm", "stack_vm"])
def test_a_count_of_pages_that_the_mappings_do_not_have_is_said(session: Session, name: str) -> None:
    owner = owner_of(session.processes.find(STATIC))
    pages = owner.ulong(name)
    wrong = with_member(session, owner, name, pages + 1)
    (warning,) = captured(wrong).warnings
    assert warning.startswith(f"mm_struct.{name} at {owner.addr_of(name):#x}: {pages + 1} pages, expected {pages} as")
    holder = session.processes.find(DYNAMIC).address
    assert captured(with_member(wrong, owner, "mmap_lock.owner", holder)).warnings == ()


@pytest.mark.parametrize("more", [-4096, 4096, 3 * 4096])
def test_page_tables_that_are_not_those_counted_are_said(session: Session, more: int) -> None:
    """As where an upper entry leads to another process's tables; the CPUs were idle or in user mode."""
    owner = owner_of(session.processes.find(STATIC))
    counted = owner.ulong("pgtables_bytes")
    wrong = with_member(session, owner, "pgtables_bytes", counted + more)
    (warning,) = captured(wrong).warnings
    assert f"mm_struct.pgtables_bytes at {owner.addr_of('pgtables_bytes'):#x}: {counted + more:#x} bytes" in warning
    assert f"expected {counted:#x} as the page tables have" in warning


@pytest.mark.parametrize("name", ["context.ldt", "mmap_lock.count"])
def test_page_tables_are_not_counted_where_others_may_be(session: Session, name: str) -> None:
    """Those of an LDT, and those of mappings that munmap() has taken out of the tree already."""
    owner = owner_of(session.processes.find(STATIC))
    wrong = with_member(session, owner, "pgtables_bytes", owner.ulong("pgtables_bytes") + 4096)
    assert captured(with_member(wrong, owner, name, 0x100)).warnings == ()


def test_a_machine_that_went_on_while_it_was_read_says_nothing_by_its_counters(session: Session) -> None:
    owner = owner_of(session.processes.find(STATIC))
    wrong = with_member(session, owner, "pgtables_bytes", owner.ulong("pgtables_bytes") + 4096)
    wrong.processes = Processes(wrong.kernel, ())
    assert not any("pgtables_bytes" in warning for warning in captured(wrong).warnings)


def test_swapped_pages_that_the_page_tables_do_not_have_are_said(session: Session) -> None:
    owner = owner_of(session.processes.find(STATIC))
    at = owner.addr_of("rss_stat.count") + 8 * mm.MM_SWAPENTS
    (warning,) = captured(with_words(session, {at: 10_000})).warnings
    assert "mm_struct.rss_stat at" in warning
    assert "10000 swapped pages, but the page tables have 0" in warning


def test_flags_that_memory_of_its_own_cannot_have_are_said(session: Session) -> None:
    vma = next(v for v in vmas_of(session) if not v.pointer("vm_file") and not v.pointer("vm_ops"))
    for flag in (mm.VM_IO, mm.VM_PFNMAP, mm.VM_HUGETLB):
        changed = captured(with_member(session, vma, "vm_flags", vma.ulong("vm_flags") | flag), DYNAMIC)
        assert any("vm_area_struct.vm_flags at" in w and "no anonymous mapping can" in w for w in changed.warnings)


def test_access_that_the_protection_does_not_give_is_said(session: Session) -> None:
    vma = next(v for v in vmas_of(session) if not v.ulong("vm_flags") & mm.VM_ACCESS_FLAGS)
    changed = captured(with_member(session, vma, "vm_flags", vma.ulong("vm_flags") | mm.VM_READ), DYNAMIC)
    assert any("vm_area_struct.vm_flags at" in w and "but vm_page_prot is 0x" in w for w in changed.warnings)


def flags_said(session: Session, vma: StructView, flags: int, sentence: str) -> bool:
    """Tell whether other flags of a mapping are said so."""
    said = captured(with_member(session, vma, "vm_flags", flags), DYNAMIC).warnings
    return any(f"vm_flags at {vma.addr_of('vm_flags'):#x}: {flags:#x}" in w and sentence in w for w in said)


def test_the_vdso_s_flags_that_are_a_file_s_are_said(session: Session) -> None:
    vma = next(v for v in vmas_of(session) if mm.special_mapping_name(v) == "[vdso]")
    flags = vma.ulong("vm_flags") & ~mm.VM_DONTEXPAND
    assert flags_said(session, vma, flags, "which no special mapping can have")


def test_program_text_that_the_protection_does_not_let_run_is_said(session: Session) -> None:
    vma = next(v for v in vmas_of(session) if v.pointer("vm_file") and not v.ulong("vm_flags") & mm.VM_EXEC)
    assert flags_said(session, vma, vma.ulong("vm_flags") | mm.VM_EXEC, "but vm_page_prot is 0x")


@pytest.mark.parametrize("flag", [mm.VM_WRITE, mm.VM_SHARED])
def test_writing_that_the_protection_lets_and_the_flags_do_not_is_said(session: Session, flag: int) -> None:
    shared = mm.VM_SHARED | mm.VM_WRITE
    vma = next(v for v in vmas_of(session) if v.pointer("vm_file") and v.ulong("vm_flags") & shared == shared)
    assert flags_said(session, vma, vma.ulong("vm_flags") & ~flag, "but vm_page_prot is 0x")
    prot = with_member(session, vma, "vm_page_prot", vma.ulong("vm_page_prot") & ~session.kernel.arch.paging.pte_write)
    assert captured(prot, DYNAMIC).warnings == ()


def test_memory_of_devices_has_no_page_of_its_file(session: Session) -> None:
    vma = next(
        v for v in vmas_of(session) if v.pointer("vm_file") and not v.pointer("anon_vma") and entries(session, v)
    )
    assert flags_said(session, vma, vma.ulong("vm_flags") | mm.VM_PFNMAP, "without a page of its file, but that at 0x")


@pytest.mark.parametrize(("cleared", "set_"), [(mm.VM_MAYWRITE | mm.VM_WRITE, 0), (0, mm.VM_SHARED | mm.VM_MAYSHARE)])
def test_only_what_may_be_copied_has_pages_of_its_own(session: Session, cleared: int, set_: int) -> None:
    vma = next(v for v in vmas_of(session) if v.pointer("vm_file") and v.pointer("anon_vma") and entries(session, v))
    flags = vma.ulong("vm_flags") & ~cleared | set_
    assert flags_said(session, vma, flags, "without a page of its own, but that at 0x")


def test_a_file_that_does_not_know_the_mapping_is_said(session: Session) -> None:
    """Even where no page is mapped, and of memory that has no file."""
    file = next(v.pointer("vm_file") for v in vmas_of(session) if v.pointer("vm_file"))
    for vma in vmas_of(session)[::5]:
        if vma.pointer("vm_file") != file:
            changed = captured(with_member(session, vma, "vm_file", file), DYNAMIC)
            assert any(f"vm_area_struct.vm_file at {vma.addr_of('vm_file'):#x}" in w for w in changed.warnings)


@pytest.mark.parametrize("name", ["path.dentry", "path.mnt", "file.f_inode", "file.f_mapping"])
def test_a_file_s_pointer_that_is_another_s_is_said(session: Session, name: str) -> None:
    files = {v.pointer("vm_file"): v for v in vmas_of(session) if v.pointer("vm_file")}
    one, other = (session.kernel.view("file", address) for address in list(files)[:2])
    if name == "path.mnt":
        other = next(f for f in map(partial(session.kernel.view, "file"), files) if mount_of(f) != mount_of(one))
    struct, _, member = name.partition(".")
    first, second = (f.embedded("f_path", "path") if struct == "path" else f for f in (one, other))
    changed = captured(with_member(session, first, member, second.pointer(member)), DYNAMIC)
    expected = "f_inode is" if name == "file.f_inode" else f"{name} at {first.addr_of(member):#x}"
    assert any(expected in w for w in changed.warnings)


def mount_of(file: StructView) -> int:
    return file.embedded("f_path", "path").pointer("mnt")


def test_a_directory_that_is_another_s_is_said(session: Session) -> None:
    file = next(f for v in vmas_of(session) if (f := v.follow("vm_file", "file")) is not None)
    dentry = session.kernel.view("dentry", file.embedded("f_path", "path").pointer("dentry"))
    above = session.kernel.view("dentry", dentry.pointer("d_parent")).pointer("d_parent")
    changed = captured(with_member(session, dentry, "d_parent", above), DYNAMIC)
    assert any(
        f"dentry.d_parent at {dentry.addr_of('d_parent'):#x}: {above:#x}, expected" in w for w in changed.warnings
    )


def test_operations_of_a_name_that_are_none_are_said(session: Session) -> None:
    """d_op leads to where d_dname would be the beginning of a mapping."""
    vma = next(v for v in vmas_of(session) if v.pointer("vm_file"))
    file = vma.follow("vm_file", "file")
    assert file is not None
    dentry = file.embedded("f_path", "path").follow("dentry", "dentry")
    assert dentry is not None
    d_dname = session.kernel.layout.member("dentry_operations", "d_dname").offset
    changed = captured(with_member(session, dentry, "d_op", vma.addr_of("vm_start") - d_dname), DYNAMIC)
    assert [w for w in changed.warnings if f"{mm.vma_start(vma):#x}" in w]
