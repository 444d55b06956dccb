"""Members and symbols that every core needs, asked for at once, so that one sentence names all missing ones."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmcore2core.errors import LayoutUnknown
from vmcore2core.interfaces import Layout
from vmcore2core.layout.resolver import KernelLayout

# In VMCOREINFO's grammar; "|" separates names of different kernel versions.
ALWAYS = (
    "SYMBOL(init_task) OFFSET(task_struct.tasks) OFFSET(task_struct.pid) OFFSET(task_struct.tgid) "
    "OFFSET(task_struct.comm) OFFSET(task_struct.flags) OFFSET(task_struct.__state|state) "
    "OFFSET(task_struct.exit_state) OFFSET(task_struct.stack) OFFSET(task_struct.mm) OFFSET(task_struct.signal) "
    "OFFSET(task_struct.thread_node) OFFSET(signal_struct.thread_head) OFFSET(mm_struct.pgd) "
    "OFFSET(mm_struct.mm_mt|mmap) OFFSET(vm_area_struct.vm_start) OFFSET(vm_area_struct.vm_end) "
    "OFFSET(vm_area_struct.vm_flags) OFFSET(vm_area_struct.vm_file) OFFSET(file.f_path) OFFSET(path.dentry) "
    "OFFSET(dentry.d_name) OFFSET(dentry.d_parent) OFFSET(qstr.name) OFFSET(qstr.hash_len)"
).split()
WITH_MAPLE_TREE = (
    "OFFSET(maple_tree.ma_root) OFFSET(maple_range_64.pivot) OFFSET(maple_range_64.slot) "
    "OFFSET(maple_arange_64.pivot) OFFSET(maple_arange_64.slot) OFFSET(maple_arange_64.meta) OFFSET(maple_metadata.end)"
).split()
WITHOUT_MAPLE_TREE = ("OFFSET(vm_area_struct.vm_next)",)
_ITEM = re.compile(r"(SYMBOL|OFFSET)\((?:(\w+)\.)?([\w|]+)\)")


def check_required(layout: KernelLayout) -> None:
    """Check that the layout knows everything that conversion needs.

    Args:
        layout: all sources.

    Raises:
        LayoutUnknown: something is missing; the error names all of it.
    """
    missing = list(_missing(layout))
    if missing:
        because = _without_btf(layout) if "OFFSET(task_struct.tasks)" in missing else ""
        raise LayoutUnknown(", ".join(missing), layout.source_names, because)


def _without_btf(layout: Layout) -> str:
    """Return why the dump's BTF does not answer: the kernel was built without, or it is not found.

    kallsyms has no ``__start_BTF`` without CONFIG_KALLSYMS_ALL; but of a kernel with BTF it has the function that puts
    it into sysfs (kernel/bpf/sysfs_btf.c, Linux 7.2).
    """
    known = layout.find_symbol("start_kernel") is not None
    has_btf = any(layout.find_symbol(name) is not None for name in ("__start_BTF", "btf_vmlinux_init"))
    return "this kernel has no BTF" if known and not has_btf else "no BTF was found in the dump"


def _missing(layout: Layout) -> Iterator[str]:
    yield from (item for item in ALWAYS if not _known(layout, item))
    if layout.find_member("mm_struct", "mm_mt") is not None:
        yield from (item for item in WITH_MAPLE_TREE if not _known(layout, item))
    elif layout.find_member("mm_struct", "mmap") is not None:
        yield from (item for item in WITHOUT_MAPLE_TREE if not _known(layout, item))


def _known(layout: Layout, item: str) -> bool:
    found = _ITEM.fullmatch(item)
    assert found is not None  # noqa: S101 - the lists above
    kind, struct, names = found.groups()
    if kind == "SYMBOL":
        return layout.find_symbol(names) is not None
    return any(layout.find_member(struct, name) is not None for name in names.split("|"))
