"""Members that VMCOREINFO's task and VMA export leaves out, inferred from facts that must hold.

A member is inferred only if no other source knows it. It is checked on the dump's own processes before it is used, and
reported as inferred. If the check fails, the member stays unknown.

References: include/linux/mm_types.h (vm_area_struct), include/linux/dcache.h, include/linux/path.h, fs/mount.h,
include/linux/fs.h (address_space), include/linux/xarray.h, arch/x86/include/asm/processor.h, Linux 4.20 to 7.2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import numpy as np

from vmcore2core.addresses import KernelAddr, UserAddr
from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.interfaces import Member
from vmcore2core.kernel import mm, pid, sched
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.layout.base import LayoutSource
from vmcore2core.memory.pagetable import translate
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.overrides import override

log = logging.getLogger(__name__)

NAME = "inferred"
SAMPLE_PROCESSES = 16
SAMPLE_VMAS = 256
SAMPLE_TASKS = 4096
NR_CPUS_MAX = 8192
PGOFF_MAX = 1 << 44  # MAX_LFS_FILESIZE in pages
DENTRY_DEPTH_MAX = 64
ADDRESS_SPACE_MAX = 192  # least size of struct address_space


class InferredSource(LayoutSource):
    """Inferred and checked answers; each group of members is tried once, at the first question."""

    name = NAME

    def __init__(self, kernel: Kernel) -> None:
        self._sample = _Sample(kernel)
        self._found: dict[tuple[str, str], int] = {}
        self._pending: dict[tuple[str, str], Callable[[], dict[tuple[str, str], int]]] = {}
        for members, infer in (
            ((("vm_area_struct", "vm_pgoff"),), self._sample.vm_pgoff),
            ((("dentry", "d_hash"),), self._sample.d_hash),
            (_MOUNT, self._sample.mounts),
            (_SPECIAL, self._sample.special_mapping),
            (_PAGE_CACHE, self._sample.page_cache),
            ((("address_space", "a_ops"),), self._sample.a_ops),
            (tuple(("task_struct", f"thread.{m}") for m in kernel.arch.registers.thread_members), self._sample.thread),
            ((_ON_CPU,), self._sample.on_cpu),
            (kernel.arch.inference.members if kernel.arch.inference is not None else (), self._sample.of_arch),
        ):
            for member in members:
                self._pending[member] = infer

    @override
    def member(self, struct: str, path: str) -> Member | None:
        infer = self._pending.pop((struct, path), None)
        if infer is not None and (struct, path) not in self._found:
            # The inference's own questions must go to other sources.
            self._pending = {key: other for key, other in self._pending.items() if other != infer}
            try:
                answer = infer()
            except (MemoryFault, CorruptStructure, LayoutUnknown) as error:
                log.info("%s.%s cannot be inferred: %s", struct, path, error)
                answer = {}
            self._found |= answer
        offset = self._found.get((struct, path))
        return None if offset is None else Member(offset, NAME, _SIZES.get((struct, path)))


_MOUNT = (
    ("path", "mnt"),
    ("vfsmount", "mnt_root"),
    ("mount", "mnt"),
    ("mount", "mnt_parent"),
    ("mount", "mnt_mountpoint"),
)
_ON_CPU = ("task_struct", "on_cpu")
_SIZES = {_ON_CPU: 1}
_SPECIAL = (("vm_area_struct", "vm_private_data"), ("vm_special_mapping", "name"))
_PAGE_CACHE = (
    ("file", "f_mapping"),
    ("address_space", "i_pages"),
    ("xarray", "xa_head"),
    ("xa_node", "shift"),
    ("xa_node", "slots"),
)


class _Sample:
    """Some processes of the dump, to check guesses on."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.word = kernel.arch.pointer_size

    def _leaders(self) -> Iterator[tuple[StructView, StructView]]:
        """Yield leaders with their mm."""
        with_mm = (
            (leader, found)
            for leader in pid.for_each_process(self.kernel)
            if not sched.is_kthread(leader) and (found := leader.follow("mm", "mm_struct")) is not None
        )
        return islice(with_mm, SAMPLE_PROCESSES)

    def _file_vmas(self) -> Iterator[tuple[StructView, StructView, StructView]]:
        """Yield (mm, VMA, struct file) of mapped files."""
        for _, owner in self._leaders():
            for vma in islice(mm.for_each_vma(owner), SAMPLE_VMAS):
                file = vma.follow("vm_file", "file")
                if file is not None:
                    yield owner, vma, file

    def _dentries(self) -> Iterator[tuple[StructView, KernelAddr]]:
        """Yield the dentry of each mapped file, and where its ``struct path`` is."""
        for _, _, file in self._file_vmas():
            path = file.embedded("f_path", "path")
            yield self.kernel.view("dentry", path.pointer("dentry")), path.address

    def vm_pgoff(self) -> dict[tuple[str, str], int]:
        """vm_pgoff lies directly before vm_file; adjacent mappings of one file must continue each other."""
        offset = self.kernel.layout.member("vm_area_struct", "vm_file").offset - self.word
        page = self.kernel.memory.kernel_map.spec.page_size
        continued = 0
        seen = [
            (owner.address, mm.vma_start(vma), mm.vma_end(vma), file.address, self._word(vma.address + offset))
            for owner, vma, file in self._file_vmas()
        ]
        for before, after in pairwise(seen):
            if before[0] == after[0] and before[2] == after[1] and before[3] == after[3]:
                continued += after[4] == before[4] + (before[2] - before[1]) // page
        if not continued or any(pgoff >= PGOFF_MAX for *_, pgoff in seen):
            return {}
        return {("vm_area_struct", "vm_pgoff"): offset}

    def d_hash(self) -> dict[tuple[str, str], int]:
        """d_hash lies directly before d_parent; the pointer that pprev names must point back to it."""
        offset = self.kernel.layout.member("dentry", "d_parent").offset - 2 * self.word
        hashed = 0
        for dentry, _ in self._dentries():
            pprev = self._word(dentry.address + offset + self.word)
            if pprev:
                # Bit 0 of the bucket's first pointer is its lock (include/linux/list_bl.h).
                if self._word(pprev) & ~1 != dentry.address + offset:
                    return {}
                hashed += 1
        return {("dentry", "d_hash"): offset} if hashed else {}

    def mounts(self) -> dict[tuple[str, str], int]:
        """``struct path`` is {mnt, dentry}; ``struct mount`` begins {mnt_hash, mnt_parent, mnt_mountpoint, mnt}."""
        mnt = self.kernel.layout.member("path", "dentry").offset - self.word
        if mnt < 0:
            return {}
        parent, mountpoint, vfsmount = 2 * self.word, 3 * self.word, 4 * self.word
        checked = 0
        for dentry, path in self._dentries():
            above = self._above(dentry)
            if not above:
                continue  # a file without a name: its mount is internal
            # vfsmount.mnt_root comes first; d_parent leads there, and beyond where a part of a file system is mounted.
            mount = self._word(path + mnt) - vfsmount
            if self._word(mount + vfsmount) not in {dentry.address, *above}:
                return {}
            for _ in range(DENTRY_DEPTH_MAX):
                upper = self._word(mount + parent)
                if upper == mount:
                    break
                self.kernel.view("dentry", self._word(mount + mountpoint)).pointer("d_parent")
                mount = upper
            else:
                return {}
            checked += 1
        if not checked:
            return {}
        return dict(zip(_MOUNT, (mnt, 0, vfsmount, parent, mountpoint), strict=True))

    def _above(self, dentry: StructView) -> list[int]:
        """Return the folders that a dentry is in, to the root of its file system."""
        found: list[int] = []
        while len(found) < DENTRY_DEPTH_MAX:
            parent = dentry.pointer("d_parent")
            if parent == dentry.address:
                break
            found.append(parent)
            dentry = self.kernel.view("dentry", parent)
        return found

    def special_mapping(self) -> dict[tuple[str, str], int]:
        """vm_private_data of the vDSO points to a struct that begins with a pointer to the text "[vdso]"."""
        size = self.kernel.layout.size("vm_area_struct")
        candidates: set[int] | None = None
        for _, owner in self._leaders():
            for vma in islice(mm.for_each_vma(owner), SAMPLE_VMAS):
                if vma.pointer("vm_file"):
                    continue
                here = {
                    i * self.word
                    for i, word in enumerate(self._words(vma.address, size // self.word))
                    if self._is_vdso(word)
                }
                if here:
                    candidates = here if candidates is None else candidates & here
        if not candidates or len(candidates) != 1:
            return {}
        return dict(zip(_SPECIAL, (candidates.pop(), 0), strict=True))

    def _is_vdso(self, pointer: int) -> bool:
        try:
            return pointer % self.word == 0 and self.kernel.read_string(self._word(pointer), 8) == b"[vdso]"
        except MemoryFault:
            return False

    def page_cache(self) -> dict[tuple[str, str], int]:
        """``file.f_mapping`` is the pointer that ``page.mapping`` of the file's mapped pages has, too.

        In it, ``host`` comes first and then ``i_pages`` {xa_lock, xa_flags, xa_head}; a node begins with its shift and
        has its slots behind {count, parent, array, private_list}. A mapped page must be found through them.
        """
        layout = self.kernel.layout
        vmemmap, sizeof_page = (
            self.kernel.arch.paging.vmemmap(self.kernel),
            layout.size("page"),
        )
        if vmemmap is None:
            raise LayoutUnknown("SYMBOL(vmemmap)")
        mapping_offset, file_size = layout.member("page", "mapping").offset, layout.size("file")
        candidates: set[int] | None = None
        i_pages, xa_head, slots = self.word, 8, 8 + 4 * self.word
        found = 0
        for owner, vma, file in self._file_vmas():
            root, spec = self.kernel.memory.to_phys(owner.pointer("pgd")), self.kernel.user_page_table(owner)
            start, pgoff = mm.vma_start(vma), vma.ulong("vm_pgoff")
            try:
                paddr, _ = translate(self.kernel.memory.physical, spec, root, start)
            except MemoryFault:
                continue
            page = vmemmap + paddr // spec.page_size * sizeof_page
            mapping = self._word(page + mapping_offset)
            if not mapping or mapping & 3:
                continue  # anonymous: a private copy
            words = self._words(file.address, file_size // self.word)
            here = {i * self.word for i, value in enumerate(words) if value == mapping}
            candidates = here if candidates is None else candidates & here
            found += self._in_xarray(mapping + i_pages + xa_head, slots, pgoff, page)
        if not found or not candidates:
            return {}
        # f_inode->i_mapping would be in another structure. If several words of the file agree, any of them will do.
        return dict(zip(_PAGE_CACHE, (min(candidates), i_pages, xa_head, 0, slots), strict=True))

    def a_ops(self) -> dict[tuple[str, str], int]:
        """At a_ops, shared memory has shmem_aops, and every file has an address in the kernel or a module."""
        shmem_aops = self.kernel.layout.symbol("shmem_aops")
        candidates: set[int] | None = None
        told = False
        for _, _, file in self._file_vmas():
            mapping = file.pointer("f_mapping")
            words = self._words(mapping, ADDRESS_SPACE_MAX // self.word)
            if shmem_aops in words:
                here = {i * self.word for i, value in enumerate(words) if value == shmem_aops}
                told = True
            else:
                here = {i * self.word for i, value in enumerate(words) if value >> 31 == shmem_aops >> 31}
            candidates = here if candidates is None else candidates & here
        return {("address_space", "a_ops"): candidates.pop()} if told and candidates and len(candidates) == 1 else {}

    def _in_xarray(self, head: int, slots: int, index: int, page: int) -> bool:
        entry = self._word(head)
        shift = 64
        while entry & 3 == 2 and entry > 4096 and shift:
            node = entry - 2
            below = self.kernel.uint(node, 1)
            if below >= shift:
                return False
            shift = below
            entry = self._word(node + slots + (index >> shift & 63) * self.word)
        return entry == page

    def thread(self) -> dict[tuple[str, str], int]:
        """The thread pointer is the word of task_struct whose value is a TCB of that thread in every process.

        The other bases stand around it in ``thread_struct``.
        """
        kernel, arch = self.kernel, self.kernel.arch
        size = kernel.layout.size("task_struct")
        candidates: set[int] | None = None
        for leader, owner in self._leaders():
            vmas = tuple(
                Region(UserAddr(mm.vma_start(v)), UserAddr(mm.vma_end(v))) for v in islice(mm.for_each_vma(owner), 4096)
            )
            root = kernel.memory.to_phys(owner.pointer("pgd"))
            user = UserMemory(kernel.memory.physical, kernel.user_page_table(owner), root, vmas)
            for task in pid.for_each_thread(leader):
                words = self._words(task.address, size // self.word)
                here = {
                    i * self.word for i, value in enumerate(words) if arch.registers.is_thread_pointer(value, user.read)
                }
                if here:  # a process without a TCB is no evidence
                    candidates = here if candidates is None else candidates & here
        if not candidates or len(candidates) != 1:
            return {}
        base = candidates.pop()
        return {
            ("task_struct", f"thread.{name}"): base + delta for name, delta in arch.registers.thread_members.items()
        }

    def on_cpu(self) -> dict[tuple[str, str], int]:
        """on_cpu is a byte that is 1 in the CPUs' current tasks, and 0 in all others.

        If several bytes fit, any of them gives the same answers.
        """
        current = set(self._current_tasks())
        size = self.kernel.layout.size("task_struct")
        candidates = np.ones(size, np.bool_)
        seen = 0
        others = (t.address for leader in pid.for_each_process(self.kernel) for t in pid.for_each_thread(leader))
        for address in {*current, *islice(others, SAMPLE_TASKS)}:
            task = np.frombuffer(self.kernel.memory.read(address, size), np.uint8)
            candidates &= task == (address in current)
            seen += address not in current
        found = np.flatnonzero(candidates)
        return {_ON_CPU: int(found[0])} if current and seen and len(found) else {}

    def _current_tasks(self) -> Iterator[int]:
        """Yield each CPU's current task; per-CPU symbols are addresses in the image since Linux 6.15."""
        layout, kernel = self.kernel.layout, self.kernel
        variable, offsets = layout.symbol("current_task"), layout.symbol("__per_cpu_offset")
        count = kernel.uint(layout.symbol("nr_cpu_ids"), 4)
        if not 0 < count <= NR_CPUS_MAX:
            raise CorruptStructure(f"{count} CPUs, expected at most {NR_CPUS_MAX}", variable, "nr_cpu_ids")
        for cpu in range(count):
            at = (variable + self._word(offsets + cpu * self.word)) % (1 << 8 * self.word)
            task = kernel.view("task_struct", self._word(at))
            number, comm = sched.task_pid(task), sched.task_comm(task)
            if number == 0 and comm != b"swapper/%d" % cpu:
                raise CorruptStructure(f"task 0 is {comm!r}, expected swapper/{cpu}", task.address, "current_task")
            yield task.address

    def of_arch(self) -> dict[tuple[str, str], int]:
        """Members that only the architecture can infer, from threads that are off the CPU."""
        threads = (thread for leader, _ in self._leaders() for thread in pid.for_each_thread(leader))
        tasks = [thread.address for thread in islice(threads, SAMPLE_TASKS) if sched.task_on_cpu(thread) is False]
        inference = self.kernel.arch.inference
        return {} if inference is None else dict(inference.infer(tasks, self.kernel))

    def _word(self, address: int) -> int:
        return self.kernel.uint(address, self.word)

    def _words(self, address: int, count: int) -> list[int]:
        raw, order = self.kernel.memory.read(address, count * self.word), self.kernel.arch.byte_order
        return [int.from_bytes(raw[i : i + self.word], order) for i in range(0, len(raw), self.word)]
