"""The list of all members, sizes, symbols and numbers that the layout is asked for.

What only one machine's code asks is in its ``Arch.layout_keys``. A test fails if code asks for another name, and if no
code asks for a name that is listed (``tests/layout/test_asked.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.arch.spec import keys_of

# Members by structure. No core can be written without those that end in "!"; "|" separates the names of different
# kernels. The maple tree's are needed by kernels that have it, vm_next by the others.
MEMBERS = {
    "task_struct": (
        "tasks! pid! tgid! comm! flags! __state|state! exit_state! stack! mm! signal! thread_node! fs real_parent "
        "real_cred on_cpu thread_info.cpu cpu static_prio pending.signal blocked utime stime thread_pid cgroups "
        "active_mm group_leader pid_links rss_stat.count blocker children files real_start_time "
        "sched_info.last_arrival se.exec_start se.sum_exec_runtime sibling stack_vm_area start_boottime "
        "vfork_done"
    ),
    "signal_struct": "thread_head! nr_threads pids utime stime cutime cstime sum_sched_runtime",
    "mm_struct": (
        "pgd! mm_mt|mmap! start_brk brk start_stack arg_start arg_end env_start env_end saved_auxv task_size "
        "flags exe_file map_count mm_users mmap_lock.owner mmap_sem.owner mmap_lock.count mmap_sem.count "
        "pgtables_bytes rss_stat rss_stat.count context.ldt data_vm exec_vm stack_vm total_vm"
    ),
    "vm_area_struct": (
        "vm_start! vm_end! vm_flags! vm_file! vm_mm vm_pgoff vm_next! anon_vma anon_vma_chain vm_ops "
        "vm_private_data anon_name __vm_anon_pgoff_lo __vm_anon_pgoff_hi shared.rb shared.rb_subtree_last "
        "vm_page_prot"
    ),
    "file": "f_path! f_mapping f_inode f_mode f_flags f_pos private_data",
    "path": "dentry! mnt",
    "dentry": (
        "d_name! d_parent! d_hash d_inode d_children d_sib d_subdirs d_child d_op d_sb d_fsdata d_iname d_shortname"
    ),
    "qstr": "name! hash_len!",
    "maple_tree": "ma_root!",
    "maple_range_64": "pivot! slot!",
    "maple_arange_64": "pivot! slot! meta!",
    "maple_metadata": "end!",
    "address_space": "host i_pages a_ops nrpages i_mmap i_mmap_rwsem.owner",
    "anon_vma": "root",
    "anon_vma_name": "name",
    "backing_file": "user_path",
    "block_device": "bd_disk",
    "btf": "base_btf data data_size name",
    "btf_module": "btf list",
    "cgroup": "kn root",
    "cgroup_subsys_state": "cgroup",
    "cred": "uid gid user egid euid",
    "css_set": "dfl_cgrp subsys",
    "dentry_operations": "d_dname",
    "dma_buf": "name",
    "epitem": "event.data event.events ffd.fd ffd.file rbn",
    "eventfd_ctx": "count flags id",
    "eventpoll": "rbr",
    "fdtable": "close_on_exec fd max_fds open_fds",
    "file_lock": "fl_blocked_member fl_blocked_requests fl_file fl_list fl_pid",
    "file_lock_context": "flc_flock flc_posix",
    "file_lock_core": "flc_blocked_member flc_blocked_requests flc_file flc_list flc_pid",
    "files_struct": "fdt",
    "folio": "index",
    "fs_struct": "root pwd",
    "fsnotify_group": "marks_list",
    "fsnotify_mark": "g_list mask",
    "gendisk": "disk_name private_data",
    "idr": "idr_rt",
    "inode": (
        "i_size i_ino i_sb i_nlink i_mode i_flags i_blkbits i_mapping i_data i_mtime __i_mtime i_mtime_sec "
        "i_flctx i_private"
    ),
    "inotify_inode_mark": "fsn_mark wd",
    "io_ring_ctx": "cached_cq_tail cached_sq_head cq_entries rings sq_entries",
    "io_rings": "cq.head cq.tail sq.head sq.tail",
    "kernfs_node": "name __parent parent",
    "maple_node": "parent mr64",
    "mod_kallsyms": "num_symtab strtab symtab",
    "module": "core_layout.base core_layout.text_size kallsyms list mem name",
    "module_memory": "base size",
    "mount": "mnt mnt_parent mnt_mountpoint mnt_child mnt_id mnt_mounts mnt_mp",
    "mountpoint": "m_dentry",
    "mutex": "owner",
    "net": "ns.inum",
    "netlink_sock": "dst_portid portid",
    "page": "mapping index __folio_index pt_mm compound_head compound_info flags freelist private",
    "pcpu_hot": "current_task",
    "percpu_counter": "count counters",
    "pid": "numbers level tasks",
    "pid_namespace": "idr",
    "pipe_buffer": "len",
    "pipe_inode_info": "bufs head readers ring_size tail writers",
    "prb_data_blk_lpos": "begin next",
    "prb_data_ring": "data size_bits",
    "prb_desc": "state_var text_blk_lpos",
    "prb_desc_ring": "count_bits descs head_id infos tail_id",
    "printk_info": "caller_id text_len ts_nsec",
    "printk_log": "dict_len len text_len ts_nsec",
    "printk_ringbuffer": "desc_ring text_data_ring",
    "ptdesc": "pt_mm",
    "rb_node": "__rb_parent_color rb_left rb_right",
    "rb_root": "rb_node",
    "resource": "child end flags sibling start",
    "rq": "clock cpu curr",
    "rw_semaphore": "owner",
    "signalfd_ctx": "sigmask",
    "size_class": "objs_per_zspage pages_per_zspage size",
    "sk_buff": "len prev",
    "sock": (
        "__sk_common.skc_daddr __sk_common.skc_dport __sk_common.skc_family __sk_common.skc_flags "
        "__sk_common.skc_net.net __sk_common.skc_num __sk_common.skc_rcv_saddr __sk_common.skc_state "
        "__sk_common.skc_v6_daddr __sk_common.skc_v6_rcv_saddr sk_ack_backlog sk_backlog.rmem_alloc "
        "sk_max_ack_backlog sk_protocol sk_receive_queue sk_receive_queue.qlen sk_wmem_alloc"
    ),
    "socket": "sk type",
    "super_block": "s_dev s_magic",
    "swap_cluster_info": "table zero_bitmap",
    "swap_info_struct": "bdev cluster_info flags max swap_file zeromap",
    "syscall_metadata": "args name nb_args syscall_nr types",
    "tcp_sock": "copied_seq rcv_nxt snd_una write_seq",
    "thread_info": "cpu",
    "timekeeper": "offs_boot wall_to_monotonic xtime_sec",
    "timerfd_ctx": "clockid settime_flags t.tmr.node.expires ticks tintv",
    "timespec64": "tv_nsec tv_sec",
    "tk_data": "timekeeper",
    "unix_address": "len name",
    "unix_sock": "addr peer",
    "user_struct": "uid",
    "vfsmount": "mnt_root mnt_sb",
    "vm_special_mapping": "name pages fault",
    "vm_struct": "addr",
    "xa_node": "shift slots offset count parent array",
    "xarray": "xa_head",
    "zcomp_params": "dict",
    "zpdesc": "next",
    "zpool": "driver evictable",
    "zpool_driver": "type",
    "zram": "comp_algs compressor disk disksize mem_pool params table",
    "zram_table_entry": "attr.flags flags handle",
    "zs_pool": "size_class",
    "zspage": "class magic",
    "zswap_entry": "handle length offset pool rbnode swpentry value",
    "zswap_pool": "tfm_name zpool zpools zs_pool",
    "zswap_tree": "rbroot",
}
SIZES = "pt_regs swap_table thread_union"
"""Structures whose size alone is asked for; the sizes of those above are asked for, too."""
SYMBOLS = (
    "__per_cpu_offset __start_BTF __stop_BTF _einittext _etext _sinittext _start _stext btf_modules btf_vmlinux_init "
    "compat_sys_call_table crash_notes crashk_res current_task elfcorehdr_addr hugetlbfs_aops "
    "ia32_sys_call_table init_pid_ns init_task init_uts_ns iomem_resource legacy_special_mapping_vmops log_buf "
    "log_buf_len log_first_idx log_next_idx make_device_exclusive make_device_exclusive_range memory_failure "
    "migrate_pages modules mte_pages nr_cpu_ids nr_swapfiles nr_swapper_spaces nr_zswap_trees panic_cpu pcpu_hot prb "
    "ram_aops runqueues shadow_timekeeper shmem_aops special_mapping_vmops start_kernel swap_info swapper_pg_dir "
    "swapper_spaces sys_call_table syscalls_metadata timekeeper_data tk_core zswap_trees"
)
NUMBERS = (
    "FSNOTIFY_EVENT_FILE_RANGE MAX_PHYSMEM_BITS PG_anon_exclusive PG_uptodate PIDTYPE_PGID PIDTYPE_SID SOCK_DONE "
    "THREAD_SIZE ZRAM_COMP_PRIORITY_BIT1 ZRAM_HUGE ZRAM_LOCK ZRAM_SAME ZRAM_WB"
)
UNITS = (
    "init/init_task.c",
    "kernel/fork.c",
    "fs/namespace.c",
    "lib/maple_tree.c",
    "lib/xarray.c",
    "mm/mmap.c",
)
"""Kernel source files whose DWARF has the types that conversion needs; each machine adds its ``type_units``. They are
asked in this order: GCC leaves unused types out of a unit, so one unit is not enough."""


def members() -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Yield each structure with a member, by all of its names, and whether a core needs it."""
    for struct, listed in MEMBERS.items():
        for member in listed.split():
            yield struct, tuple(member.removesuffix("!").split("|")), member.endswith("!")


def keys() -> tuple[str, ...]:
    """Return the list as VMCOREINFO keys: "OFFSET(task_struct.mm)", "SIZE(page)", "SYMBOL(init_task)"."""
    plain = {struct: listed.replace("!", "").replace("|", " ") for struct, listed in MEMBERS.items()}
    return keys_of(plain, sizes=SIZES, symbols=SYMBOLS, numbers=NUMBERS)
