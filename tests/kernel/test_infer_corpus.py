"""Inference on real dumps: a kernel's own BTF, or the kernel's own cores, say what the right answer is.

Tests kernel/infer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer
from vmcore2core.interfaces import Member
from vmcore2core.kernel.infer import InferredSource
from vmcore2core.kernel.struct import Kernel
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.bootstrap import Bootstrapped, bootstrap
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfoSource

pytestmark = pytest.mark.corpus

# What the task and VMA export adds to VMCOREINFO ("vmcoreinfo: export task and mm struct offsets to vmcoreinfo").
EXPORTED_MEMBERS = {
    "task_struct": "tasks thread_node pid tgid exit_state __state flags comm stack signal mm",
    "signal_struct": "thread_head nr_threads",
    "mm_struct": "mm_mt pgd start_brk brk start_stack",
    "maple_tree": "ma_root ma_flags",
    "maple_node": "slot parent ma64 mr64",
    "maple_range_64": "pivot slot",
    "maple_metadata": "end gap",
    "maple_arange_64": "pivot slot gap meta",
    "vm_area_struct": "vm_start vm_end vm_flags vm_file vm_mm",
    "file": "f_path",
    "path": "dentry",
    "dentry": "d_name d_parent",
    "qstr": "hash_len name",
}
EXPORTED_SIZES = "task_struct mm_struct maple_tree maple_node vm_area_struct file dentry pt_regs".split()

INFERRED = {
    "vm_area_struct": "vm_pgoff",
    "dentry": "d_hash",
    "path": "mnt",
    "mount": "mnt mnt_parent mnt_mountpoint",
    "file": "f_mapping",
    "address_space": "i_pages a_ops",
    "xarray": "xa_head",
    "xa_node": "shift slots",
    "task_struct": "thread.fsbase thread.gsbase thread.ds thread.es thread.fsindex thread.gsindex on_cpu",
    "fpu": "fpstate __fpstate",
    "fpstate": "size user_xfeatures regs",
    "fpu_state_config": "max_size max_features",
}
SYMBOLS = "init_task shmem_aops current_task __per_cpu_offset nr_cpu_ids init_fpstate fpu_user_cfg".split()


def pairs(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(struct, member) for struct, members in table.items() for member in members.split()]


class ExportOnly(LayoutSource):
    """The export's members and sizes by the kernel's BTF, and its symbols by kallsyms; nothing else."""

    name = "export"

    def __init__(self, full: KernelLayout) -> None:
        self.members = {pair: full.find_member(*pair) for pair in pairs(EXPORTED_MEMBERS)}
        self.sizes = {name: full.find_size(name) for name in EXPORTED_SIZES}
        self.symbols = {name: full.find_symbol(name) for name in SYMBOLS}
        self.asked: set[tuple[str, str]] = set()

    def member(self, struct: str, path: str) -> Member | None:
        found = self.members.get((struct, path))
        return None if found is None else Member(found.offset, self.name)

    def size(self, struct: str) -> int | None:
        return self.sizes.get(struct)

    def symbol(self, name: str) -> int | None:
        return self.symbols.get(name)

    def constant(self, name: str) -> int | None:
        return 16384 if name == "THREAD_SIZE" else None


def opened(path: Path) -> Iterator[tuple[DumpContainer, Bootstrapped]]:
    with open_container([path]) as container:
        yield container, bootstrap(container)


def limited(boot: Bootstrapped) -> InferredSource:
    """Return the inference on a kernel that tells only VMCOREINFO with the export."""
    layout = KernelLayout([VmcoreInfoSource(boot.vmcoreinfo), ExportOnly(boot.layout)])
    source = InferredSource(Kernel(boot.arch, boot.memory, layout))
    layout.add(source)
    return source


def test_every_inference_on_debian_72_equals_what_its_btf_says(debian_72: Path) -> None:
    for _, boot in opened(debian_72):
        source = limited(boot)
        found, truth = {}, {}
        for struct, member in pairs(INFERRED):
            answer, btf = source.member(struct, member), boot.layout.member(struct, member)
            assert "BTF" in btf.source
            found[struct, member] = None if answer is None else answer.offset
            truth[struct, member] = btf.offset
        assert found == truth


def test_no_inference_on_debian_61_contradicts_its_btf(corpus: Path) -> None:
    """This kernel never had the export; what is inferred all the same is right."""
    for _, boot in opened(corpus / "debian-6.1-amd64-kdump" / "vmcore.zstd-d17"):
        source = limited(boot)
        for struct, member in pairs(INFERRED):
            answer, btf = source.member(struct, member), boot.layout.member(struct, member)
            assert "BTF" in btf.source
            assert answer is None or answer.offset == btf.offset, f"{struct}.{member}"
