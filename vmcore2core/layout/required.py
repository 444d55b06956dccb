"""Members and symbols that every core needs, asked for at once, so that one sentence names all missing ones."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import LayoutUnknown
from vmcore2core.interfaces import Layout
from vmcore2core.layout import asked
from vmcore2core.layout.resolver import KernelLayout


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
    if layout.find_symbol("init_task") is None:
        yield "SYMBOL(init_task)"
    has_tree = layout.find_member("mm_struct", "mm_mt") is not None
    has_list = not has_tree and layout.find_member("mm_struct", "mmap") is not None
    for struct, names, needed in asked.members():
        applies = has_list if names == ("vm_next",) else has_tree or not struct.startswith("maple_")
        if needed and applies and all(layout.find_member(struct, name) is None for name in names):
            yield f"OFFSET({struct}.{'|'.join(names)})"
