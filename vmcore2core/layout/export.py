"""The layout that conversion needs, written as VMCOREINFO text: one file next to a dump instead of debug information.

The keys are the kernel's own where it exports them (the task and VMA export), and in the same grammar where it does
not; ``SIZE(struct.member)`` tells the size of a member where that matters, and ``KERNELOFFSET`` to which KASLR offset
the symbols belong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vmcore2core.interfaces import Layout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo

# struct -> members; those that this kernel has are written.
MEMBERS: dict[str, str] = {
    "task_struct": (
        "tasks thread_node pid tgid exit_state __state state flags comm stack signal mm fs real_parent real_cred "
        "on_cpu thread_info.cpu cpu static_prio pending.signal blocked utime stime thread_pid cgroups "
        "active_mm group_leader pid_links rss_stat.count"
    ),
    "signal_struct": "thread_head nr_threads pids utime stime cutime cstime",
    "pid": "numbers level tasks",
    "pid_namespace": "idr",
    "idr": "idr_rt",
    "cred": "uid gid user",
    "user_struct": "uid",
    "fs_struct": "root",
    "mm_struct": (
        "mm_mt mmap pgd start_brk brk start_stack arg_start arg_end env_start env_end saved_auxv task_size flags "
        "exe_file map_count mm_users mmap_lock.owner mmap_sem.owner mmap_lock.count mmap_sem.count pgtables_bytes "
        "rss_stat rss_stat.count"
    ),
    "percpu_counter": "count counters",
    "maple_tree": "ma_root ma_flags",
    "maple_node": "slot parent ma64 mr64",
    "maple_range_64": "pivot slot",
    "maple_metadata": "end gap",
    "maple_arange_64": "pivot slot gap meta",
    "vm_area_struct": (
        "vm_start vm_end vm_flags vm_file vm_mm vm_pgoff vm_next anon_vma anon_vma_chain vm_ops vm_private_data "
        "anon_name __vm_anon_pgoff_lo __vm_anon_pgoff_hi"
    ),
    "anon_vma_name": "name",
    "vm_special_mapping": "name pages fault",
    "file": "f_path f_mapping f_inode f_mode",
    "backing_file": "user_path",
    "path": "mnt dentry",
    "dentry": "d_name d_parent d_hash d_inode d_children d_sib d_subdirs d_child d_op d_sb d_fsdata",
    "dentry_operations": "d_dname",
    "qstr": "hash_len name",
    "mount": "mnt mnt_parent mnt_mountpoint",
    "vfsmount": "mnt_root",
    "dma_buf": "name",
    "inode": "i_size i_ino i_sb i_nlink i_mode i_flags i_blkbits i_mapping i_data i_mtime __i_mtime i_mtime_sec",
    "super_block": "s_dev s_magic",
    "address_space": "host i_pages a_ops nrpages",
    "xarray": "xa_head",
    "xa_node": "shift slots offset count parent array",
    "page": "mapping index __folio_index pt_mm",
    "folio": "index",
    "ptdesc": "pt_mm",
    "css_set": "dfl_cgrp subsys",
    "cgroup_subsys_state": "cgroup",
    "cgroup": "kn root",
    "kernfs_node": "name __parent parent",
}
SIZES = (
    "task_struct signal_struct mm_struct maple_tree maple_node vm_area_struct file path dentry qstr mount inode "
    "address_space xarray page pt_regs cred fs_struct thread_union percpu_counter"
)
SYMBOLS = (
    "init_task init_uts_ns swapper_pg_dir _stext shmem_aops ram_aops hugetlbfs_aops vmemmap_base gate_vma "
    "vsyscall_mode init_pid_ns __per_cpu_offset nr_cpu_ids"
)
NUMBERS = "THREAD_SIZE PIDTYPE_PGID PIDTYPE_SID FSNOTIFY_EVENT_FILE_RANGE"


def export_layout(layout: Layout, symbols: Layout, vmcoreinfo: VmcoreInfo, more: Iterable[str] = ()) -> Iterator[str]:
    """Yield lines of VMCOREINFO text, without newlines.

    Args:
        layout: answers for structures and constants.
        symbols: answers for symbols, which BTF does not have.
        vmcoreinfo: of the dump or vmlinux; tells which kernel it is.
        more: keys that the architecture reads: "OFFSET(task_struct.thread.fsbase)", "SYMBOL(init_fpstate)".
    """
    for key in ("OSRELEASE", "BUILD-ID", "PAGESIZE"):
        value = vmcoreinfo.string(key)
        if value is not None:
            yield f"{key}={value}"
    yield f"KERNELOFFSET={vmcoreinfo.kernel_offset or 0:x}"
    keys = [f"SYMBOL({name})" for name in SYMBOLS.split()]
    keys += [f"OFFSET({struct}.{member})" for struct, members in MEMBERS.items() for member in members.split()]
    keys += [f"SIZE({struct})" for struct in SIZES.split()]
    keys += [f"NUMBER({name})" for name in NUMBERS.split()]
    for key in dict.fromkeys((*keys, *more)):
        yield from _lines(key, layout, symbols)


def _lines(key: str, layout: Layout, symbols: Layout) -> Iterator[str]:
    kind, _, name = key.removesuffix(")").partition("(")
    if kind == "OFFSET":
        struct, _, member = name.partition(".")
        found = layout.find_member(struct, member)
        if found is not None:
            yield f"{key}={found.offset}"
            if found.size is not None:
                yield f"SIZE({name})={found.size}"
        return
    symbol = symbols.find_symbol(name) if kind == "SYMBOL" else None
    number = layout.find_size(name) if kind == "SIZE" else layout.find_constant(name) if kind == "NUMBER" else None
    if symbol is not None:
        yield f"{key}={symbol:x}"
    elif number is not None:
        yield f"{key}={number}"
