"""``struct mm_struct``: VMAs in order, argument area, saved auxiliary vector.

References: include/linux/mm_types.h, include/linux/mm.h: for_each_vma(), vma_is_initial_heap(), get_mm_rss_sum();
fs/proc/task_mmu.c: get_vma_name().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel import fs
from vmcore2core.kernel.maple_tree import MapleTree
from vmcore2core.kernel.percpu import percpu_counter_sum
from vmcore2core.kernel.struct import StructView, chain
from vmcore2core.kernel.tasks import NR_MM_COUNTERS, Tasks

# include/linux/mm.h; these bits have not changed since Linux 2.6.
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
VM_MAYWRITE, VM_MAYSHARE = 0x20, 0x80
VM_ACCESS_FLAGS, VM_MAY_SHIFT = 0x7, 4
VM_FLAGS_BITS = 56  # Linux 7.2 uses 43
VM_PFNMAP = 0x400
VM_IO = 0x4000
VM_HUGETLB = 0x40_0000
VM_DONTEXPAND = 0x4_0000
VM_DONTDUMP = 0x0400_0000
VM_MIXEDMAP = 0x1000_0000
NOT_ANONYMOUS = VM_SHARED | VM_PFNMAP | VM_IO | VM_HUGETLB | VM_MIXEDMAP
MAX_VMAS = 1 << 20
RWSEM_READER_OWNED, RWSEM_OWNER_FLAGS_MASK = 0x1, 0x3
PAGE_SIZE_MIN = 4096
SPECIAL_OPERATIONS = ("special_mapping_vmops", "legacy_special_mapping_vmops")
SAVED_AUXV_MAX = 4096  # Linux 7.2: 2 * (AT_VECTOR_SIZE_ARCH + 22 + 1) words
ANON_VMA_NAME_MAX_LEN = 80
AT_NULL = 0
MM_SWAPENTS = 2
RSS_COUNTERS = (0, 1, 3)  # MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES
MMF_DUMP_FILTER_SHIFT, MMF_DUMP_FILTER_MASK = 2, 0x1FF


def vma_start(vma: StructView) -> int:
    """Return ``vma->vm_start``."""
    return vma.ulong("vm_start")


def vma_end(vma: StructView) -> int:
    """Return ``vma->vm_end``, exclusive."""
    return vma.ulong("vm_end")


def for_each_vma(mm: StructView, problems: list[CorruptStructure] | None = None) -> Iterator[StructView]:
    """Yield each ``struct vm_area_struct`` of ``mm`` in address order.

    Args:
        mm: ``struct mm_struct``.
        problems: takes the errors of VMAs that do not fit the others and are left out, and of odd VMAs; with it, the
            walk goes on as far as the index can be read. Without it, the first VMA that does not fit ends the walk.

    Raises:
        CorruptStructure: after the good ones: a broken index, or a VMA that does not fit.
    """
    end_before = count = 0
    for indexed, vma in each_vma(mm):
        count += 1
        try:
            check_range(mm, vma, end_before, indexed)
            if problems is not None:
                problems += oddities(mm, vma)
        except CorruptStructure as error:
            if problems is None or indexed is None:
                raise
            problems.append(error)
            continue
        end_before = vma_end(vma)
        yield vma
    if problems is not None:
        problems += miscounted(mm, count)


def miscounted(mm: StructView, count: int) -> Iterator[CorruptStructure]:
    """Yield an error if ``mm->map_count`` is not ``count``."""
    expected = mm.find_uint("map_count", 4)
    if expected not in (None, count):
        yield mm.corrupt("map_count", f"{expected} mappings, expected {count} as there are")


def mmap_lock_writer(mm: StructView) -> int | None:
    """Return the ``struct task_struct *`` that holds ``mm->mmap_lock`` for writing, or None.

    kernel/locking/rwsem.c: rwsem_set_owner(); the lowest bits of the owner are flags, and the first one marks a reader.
    With PREEMPT_RT, there is no owner. Before Linux kernel commit da1c55f1b272 ("mmap locking API: rename
    mmap_sem to mmap_lock") (in v5.8), it is mmap_sem.

    Args:
        mm: ``struct mm_struct``.

    Raises:
        MemoryFault: it cannot be read.
    """
    word = mm.kernel.arch.pointer_size
    found = mm.find_uint("mmap_lock.owner", word)
    owner = mm.find_uint("mmap_sem.owner", word) if found is None else found
    if owner is None or owner & RWSEM_READER_OWNED:
        return None
    return (owner & ~RWSEM_OWNER_FLAGS_MASK) or None


def has_no_writer(mm: StructView) -> bool:
    """Tell whether it is known that no task is changing the mappings of an mm.

    With PREEMPT_RT, it is never known.
    """
    known = mm.has("mmap_lock.owner") or mm.has("mmap_sem.owner")
    return known and mmap_lock_writer(mm) is None


def is_unlocked(mm: StructView) -> bool:
    """Tell whether it is known that no task holds ``mm->mmap_lock``, not even for reading.

    A reader may unmap pages of mappings that are no longer in the tree: munmap() (mmap_write_downgrade()) and the OOM
    killer do.

    Args:
        mm: ``struct mm_struct``.
    """
    word = mm.kernel.arch.pointer_size
    found = mm.find_uint("mmap_lock.count", word)
    return (mm.find_uint("mmap_sem.count", word) if found is None else found) == 0


def check_range(mm: StructView, vma: StructView, end_before: int, indexed: tuple[int, int] | None) -> None:
    """Check that a VMA has whole pages behind the one before, and the range that the index gives it.

    Raises:
        CorruptStructure: it is not.
    """
    try:
        start, end = vma_start(vma), vma_end(vma)
    except MemoryFault as fault:
        raise CorruptStructure(str(fault), vma.address, "vm_area_struct") from None
    if not end_before <= start < end <= mm.kernel.arch.user_end or (start | end) % PAGE_SIZE_MIN:
        raise CorruptStructure(
            f"VMA {start:#x}-{end:#x}, expected whole pages from {end_before:#x} up to {mm.kernel.arch.user_end:#x}",
            vma.address,
            "vm_area_struct",
        )
    if indexed is not None and indexed != (start, end):
        raise CorruptStructure(
            f"VMA {start:#x}-{end:#x}, expected {indexed[0]:#x}-{indexed[1]:#x} as mm_struct.mm_mt has it",
            vma.address,
            "vm_area_struct",
        )


def oddities(mm: StructView, vma: StructView) -> Iterator[CorruptStructure]:
    """Yield the impossible values of a mapping.

    Raises:
        MemoryFault: it, or what it points to, cannot be read.
    """
    if vma.has("vm_mm") and vma.pointer("vm_mm") != mm.address:
        yield vma.corrupt("vm_mm", f"{vma.pointer('vm_mm'):#x}, expected {mm.address:#x}")
    yield from _anon_vma_oddities(vma)
    flags = vma.ulong("vm_flags")
    # mprotect_fixup() and mmap() never give a mapping an access that its VM_MAY* flags do not allow.
    granted, allowed = flags & VM_ACCESS_FLAGS, flags >> VM_MAY_SHIFT & VM_ACCESS_FLAGS
    both = VM_PFNMAP | VM_MIXEDMAP
    shared = flags & VM_SHARED and not flags & VM_MAYSHARE
    if granted & ~allowed or flags >> VM_FLAGS_BITS or flags & both == both or shared:
        yield vma.corrupt("vm_flags", f"{flags:#x}, which no mapping can have")
    elif flags & NOT_ANONYMOUS and vma.has("vm_ops") and not vma.pointer("vm_ops") and not vma.pointer("vm_file"):
        yield vma.corrupt("vm_flags", f"{flags:#x}, which no anonymous mapping can have")
    elif _is_special(vma) and not flags & VM_DONTEXPAND:
        yield vma.corrupt("vm_flags", f"{flags:#x}, which no special mapping can have")
    elif _lost_file(vma):
        yield vma.corrupt("vm_file", f"NULL, but vm_ops is {vma.pointer('vm_ops'):#x}, a file's or a driver's")
    elif _contradicts_prot(mm, vma, flags):
        yield vma.corrupt("vm_flags", f"{flags:#x}, but vm_page_prot is {vma.ulong('vm_page_prot'):#x}")


def _lost_file(vma: StructView) -> bool:
    """Tell whether a mapping without a file has operations: only special mappings have any, so its file was lost."""
    special = vma.kernel.layout.find_symbol("special_mapping_vmops")
    if special is None or not vma.has("vm_ops") or vma.pointer("vm_file"):
        return False
    if vma.pointer("vm_ops") == special:
        return vma.has("vm_private_data") and not vma.pointer("vm_private_data")
    return bool(vma.pointer("vm_ops")) and not _is_special(vma)


def _is_special(vma: StructView) -> bool:
    """Tell whether __install_special_mapping() made a mapping."""
    find = vma.kernel.layout.find_symbol
    return vma.has("vm_ops") and vma.pointer("vm_ops") in [find(name) for name in SPECIAL_OPERATIONS]


def _contradicts_prot(mm: StructView, vma: StructView, flags: int) -> bool:
    """Tell whether vm_page_prot and vm_flags disagree on access (protection_map[])."""
    valid, noexec = mm.kernel.arch.paging.prot_valid, mm.kernel.arch.paging.prot_noexec
    if not valid or not vma.has("vm_page_prot"):
        return False
    prot, access = vma.ulong("vm_page_prot"), flags & VM_ACCESS_FLAGS
    if flags & NOT_ANONYMOUS & ~VM_SHARED:
        differs = bool(access) and not prot & valid
    else:
        differs = bool(prot & valid) != bool(access)
        forbids = flags & VM_EXEC and prot & noexec
        # Only shared memory is writable without a page fault; shadow stacks have their own rules.
        writable = prot & mm.kernel.arch.paging.pte_write and not flags & mm.kernel.arch.paging.vm_shadow_stack
        differs |= bool(forbids or (writable and ~flags & (VM_SHARED | VM_WRITE))) and _is_no_driver_s(vma)
    return differs and has_no_writer(mm)


def _is_no_driver_s(vma: StructView) -> bool:
    """Tell whether a mapping is known not to belong to a driver: drivers change vm_page_prot."""
    file = vma.follow("vm_file", "file")
    return fs.is_regular(file) if file is not None else vma.has("vm_ops") and not vma.pointer("vm_ops")


def _anon_vma_oddities(vma: StructView) -> Iterator[CorruptStructure]:
    """Yield what is odd about ``vma->anon_vma``: a VMA has one if it is linked to any (anon_vma_clone())."""
    if not vma.has("anon_vma"):
        return
    kernel, at = vma.kernel, vma.pointer("anon_vma")
    try:
        linked = None
        if vma.has("anon_vma_chain"):
            head = vma.addr_of("anon_vma_chain")
            linked = kernel.read_pointer(head) != head
        if linked not in (None, bool(at)):
            yield vma.corrupt("anon_vma", f"{at:#x}, but anon_vma_chain is {'not ' if linked else ''}empty")
        elif at:
            kernel.memory.to_phys(at)
    except MemoryFault as fault:
        yield vma.corrupt("anon_vma", f"{at:#x}: {fault}")


def each_vma(mm: StructView) -> Iterator[tuple[tuple[int, int] | None, StructView]]:
    """Yield each VMA, unchecked, and its range in the index, or None if the index is a list.

    Raises:
        CorruptStructure: after the good ones: the index is broken.
    """
    # Since Linux kernel commit 763ecb035029 ("mm: remove the vma linked list") (in v6.1), VMAs are in a maple tree.
    # Before that, they are a list through vm_next.
    if mm.has("mm_mt"):
        for first, last, address in MapleTree(mm.embedded("mm_mt", "maple_tree")).ranges():
            yield (first, last + 1), mm.kernel.view("vm_area_struct", address)
        return
    try:
        for vma in chain(mm.follow("mmap", "vm_area_struct"), "vm_next", "vm_area_struct", MAX_VMAS):
            yield None, vma
    except MemoryFault as fault:
        raise CorruptStructure(str(fault), mm.address, "mm_struct.mmap") from None


def vma_permissions(vm_flags: int) -> str:
    """Return "rwxp" as /proc/PID/maps shows it (fs/proc/task_mmu.c: show_vma_header_prefix())."""
    letters = ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
    permissions = "".join(letter if vm_flags & bit else "-" for bit, letter in letters)
    return permissions + ("s" if vm_flags & VM_MAYSHARE else "p")


def saved_auxv(mm: StructView, word: int) -> bytes | None:
    """Return ``mm->saved_auxv`` up to and with AT_NULL, as fill_auxv_note() does; None if it is not known.

    Args:
        mm: ``struct mm_struct``.
        word: bytes of a word of the process: a compat process has 32-bit pairs in the same place.
    """
    member = mm.kernel.layout.find_member("mm_struct", "saved_auxv")
    if member is None or not member.size or member.size > SAVED_AUXV_MAX:
        return None
    raw = mm.bytes_of("saved_auxv", member.size)
    for at in range(0, len(raw) - 2 * word + 1, 2 * word):
        if int.from_bytes(raw[at : at + word], mm.kernel.arch.byte_order) == AT_NULL:
            return raw[: at + 2 * word]
    return None


def mm_flags(mm: StructView) -> int | None:
    """Return ``mm->flags`` (MMF_*), or None if the layout does not know it."""
    return mm.find_uint("flags", mm.kernel.arch.pointer_size)


def coredump_filter(mm: StructView) -> int | None:
    """Return the value of /proc/PID/coredump_filter; None if the layout does not know ``mm->flags``.

    proc_coredump_filter_read() in fs/proc/base.c; MMF_DUMP_FILTER_SHIFT and _MASK in include/linux/mm_types.h.
    """
    flags = mm_flags(mm)
    return None if flags is None else flags >> MMF_DUMP_FILTER_SHIFT & MMF_DUMP_FILTER_MASK


def get_mm_rss(mm: StructView, threads: Iterable[StructView] | Tasks) -> int | None:
    """Return how many pages of memory the kernel counts for an mm (VmRSS), or None if the layout does not tell.

    Args:
        mm: ``struct mm_struct``.
        threads: ``struct task_struct`` of each thread that has it.

    Raises:
        MemoryFault: they cannot be read.
    """
    counters = mm_counters(mm, threads)
    return None if counters is None else sum(counters[i] for i in RSS_COUNTERS)


def mm_counters(mm: StructView, threads: Iterable[StructView] | Tasks) -> list[int] | None:
    """Return the pages that the kernel counts for an mm, by MM_FILEPAGES and so on; None if that is not known.

    They are exact. /proc/PID/status has the same numbers since Linux 6.17; before, without what CPUs or threads had not
    yet added.

    Args:
        mm: ``struct mm_struct``.
        threads: ``struct task_struct`` of each thread that has it.

    Raises:
        MemoryFault: they cannot be read.
    """
    layout = mm.kernel.layout
    found, size = layout.find_member("mm_struct", "rss_stat"), layout.find_size("percpu_counter")
    # Since Linux kernel commit f1a7941243c1 ("mm: convert mm's rss stats into percpu_counter") (in v6.2).
    if found is not None and size and found.size == NR_MM_COUNTERS * size:
        start = mm.address + found.offset
        counters = (mm.kernel.view("percpu_counter", start + i * size) for i in range(NR_MM_COUNTERS))
        return [max(percpu_counter_sum(counter), 0) for counter in counters]
    if not mm.has("rss_stat.count"):
        return None
    counts = _longs(mm, "rss_stat.count", mm.kernel.arch.pointer_size)
    if layout.find_member("task_struct", "rss_stat.count") is not None:  # SPLIT_RSS_COUNTING
        parts = [counts, *_of_threads(mm, threads)]
        counts = [sum(column) for column in zip(*parts, strict=True)]
    return [max(count, 0) for count in counts]


def _of_threads(mm: StructView, threads: Iterable[StructView] | Tasks) -> Iterator[list[int]]:
    """Yield the counts of the threads that have an mm, or sums of them."""
    if isinstance(threads, Tasks) and threads.column("rss_stat.count", 4 * NR_MM_COUNTERS)[1].all():
        yield threads.rss_counts(mm.address)
        return
    for thread in threads.views if isinstance(threads, Tasks) else threads:
        if thread.pointer("mm") == mm.address:
            yield _longs(thread, "rss_stat.count", 4)


def _longs(view: StructView, name: str, size: int) -> list[int]:
    """Return a member's ``NR_MM_COUNTERS`` signed numbers."""
    raw, order = view.bytes_of(name, NR_MM_COUNTERS * size), view.kernel.arch.byte_order
    return [int.from_bytes(raw[at : at + size], order, signed=True) for at in range(0, len(raw), size)]


def vma_name(mm: StructView, vma: StructView) -> str:
    """Return the name in brackets that /proc/PID/maps shows for a VMA without a file, or "".

    As get_vma_name() in fs/proc/task_mmu.c: a special mapping's own name, then heap and stack, then what
    prctl(PR_SET_VMA_ANON_NAME) gave.
    """
    special = special_mapping_name(vma)
    if special:
        return special
    start, end = vma_start(vma), vma_end(vma)
    word = mm.kernel.arch.pointer_size
    start_brk, brk, stack = (mm.find_uint(name, word) for name in ("start_brk", "brk", "start_stack"))
    if start_brk is not None and brk is not None and start < brk and end > start_brk:
        return "[heap]"
    if stack is not None and start <= stack <= end:
        return "[stack]"
    anon_name = (
        vma.pointer("anon_name")
        if vma.has("anon_name") and vma.kernel.layout.find_member("anon_vma_name", "name")
        else 0
    )
    if not anon_name:
        return ""
    text = vma.kernel.read_string(vma.kernel.view("anon_vma_name", anon_name).addr_of("name"), ANON_VMA_NAME_MAX_LEN)
    return f"[anon:{text.decode('ascii', 'replace')}]"


def special_mapping_name(vma: StructView) -> str:
    """Return the name of a special mapping (struct vm_special_mapping in include/linux/mm_types.h), or "".

    Only text in brackets is taken: if the layout does not know vm_ops, private data may be anything.
    """
    if not vma.has("vm_private_data") or (vma.has("vm_ops") and not vma.pointer("vm_ops")):
        return ""
    private = vma.pointer("vm_private_data")
    found = vma.kernel.layout.find_member("vm_special_mapping", "name")
    if not private or found is None:
        return ""
    try:
        text = vma.kernel.read_string(vma.kernel.read_pointer(private + found.offset), 32)
    except MemoryFault:
        return ""
    return text.decode() if text[:1] == b"[" and text[-1:] == b"]" and text.isascii() else ""
