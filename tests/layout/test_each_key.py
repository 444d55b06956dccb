"""A kernel whose only layout is the task and VMA export, with each key missing in turn.

Without a key the answer is the same (it is not needed, or inferred), or less in a way that says so, or one sentence
names the key and how to supply it. It is never another answer. The keys are those of "[PATCH 2/4] vmcoreinfo: export
task and mm struct offsets to vmcoreinfo" (June 2026), and those of x86-64 that were there before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CORPUS
from tests.e2e.guests import FIXTURES, bundled, tasks
from vmcore2core.containers import open_container
from vmcore2core.errors import Vmcore2coreError
from vmcore2core.kernel import sched
from vmcore2core.layout import bootstrap, find_vmcoreinfo
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.session import OpenOptions, Session

EXPORT = (
    "SYMBOL(init_task) SIZE(task_struct) OFFSET(task_struct.tasks) OFFSET(task_struct.thread_node) "
    "OFFSET(task_struct.pid) OFFSET(task_struct.tgid) OFFSET(task_struct.exit_state) OFFSET(task_struct.__state) "
    "OFFSET(task_struct.flags) OFFSET(task_struct.comm) OFFSET(task_struct.stack) OFFSET(task_struct.signal) "
    "OFFSET(signal_struct.thread_head) OFFSET(signal_struct.nr_threads) OFFSET(task_struct.mm) SIZE(mm_struct) "
    "OFFSET(mm_struct.mm_mt) OFFSET(mm_struct.pgd) OFFSET(mm_struct.start_brk) OFFSET(mm_struct.brk) "
    "OFFSET(mm_struct.start_stack) SIZE(maple_tree) OFFSET(maple_tree.ma_root) OFFSET(maple_tree.ma_flags) "
    "SIZE(maple_node) OFFSET(maple_node.slot) OFFSET(maple_node.parent) OFFSET(maple_node.ma64) "
    "OFFSET(maple_node.mr64) OFFSET(maple_range_64.pivot) OFFSET(maple_range_64.slot) OFFSET(maple_metadata.end) "
    "OFFSET(maple_metadata.gap) OFFSET(maple_arange_64.pivot) OFFSET(maple_arange_64.slot) "
    "OFFSET(maple_arange_64.gap) OFFSET(maple_arange_64.meta) SIZE(vm_area_struct) OFFSET(vm_area_struct.vm_start) "
    "OFFSET(vm_area_struct.vm_end) OFFSET(vm_area_struct.vm_flags) OFFSET(vm_area_struct.vm_file) "
    "OFFSET(vm_area_struct.vm_mm) SIZE(file) OFFSET(file.f_path) OFFSET(path.dentry) SIZE(dentry) "
    "OFFSET(dentry.d_name) OFFSET(dentry.d_parent) OFFSET(qstr.hash_len) OFFSET(qstr.name) NUMBER(THREAD_SIZE) "
    "SIZE(pt_regs) OFFSET(ucontext.uc_mcontext) NUMBER(__NR_rt_sigreturn) NUMBER(CONFIG_PGTABLE_LEVELS) "
    "NUMBER(PMD_SHIFT) NUMBER(PGDIR_SHIFT)"
).split()
BEFORE = (
    "OSRELEASE BUILD-ID PAGESIZE SYMBOL(init_uts_ns) OFFSET(uts_namespace.name) SYMBOL(swapper_pg_dir) "
    "SYMBOL(init_top_pgt) SYMBOL(_stext) SYMBOL(vmemmap) SIZE(page) OFFSET(page.mapping) "
    "NUMBER(phys_base) NUMBER(pgtable_l5_enabled) NUMBER(KERNEL_IMAGE_SIZE) KERNELOFFSET"
).split()
# The machines' own keys, of the same series.
RISCV64 = (
    "OFFSET(rt_sigframe.uc) OFFSET(sigcontext.sc_regs) SIZE(rt_sigframe) NUMBER(STACK_ALIGN) NUMBER(_PAGE_PFN_SHIFT)"
).split()
MIPS64 = (
    "OFFSET(rt_sigframe.rs_uc) OFFSET(sigcontext.sc_regs) NUMBER(PAGE_SHIFT) NUMBER(_PFN_MASK) NUMBER(_PAGE_PRESENT) "
    "NUMBER(_PAGE_VALID) NUMBER(_PAGE_GLOBAL) NUMBER(PTRS_PER_PGD) NUMBER(PTRS_PER_PMD) NUMBER(PTRS_PER_PTE)"
).split()
SIZES_AND_NUMBERS = [key for key in EXPORT if not key.startswith(("SYMBOL(", "OFFSET("))]
"""The keys of the export that machines may take differently; the walks of structures are the same on all."""
MACHINES = {"seed-7.2-riscv64": RISCV64, "seed-7.2-mips64el": MIPS64}
# Without these nothing can be said at all.
NEEDED = {
    *(key for key in EXPORT if key.startswith(("SYMBOL(", "OFFSET("))),
    *("OSRELEASE", "SYMBOL(init_uts_ns)", "SYMBOL(_stext)"),
}
# Keys of the export that only narrow a walk down, or that their users know otherwise.
NOT_NEEDED = {
    "OFFSET(signal_struct.nr_threads)",  # bounds the walk of the threads
    "OFFSET(mm_struct.start_brk)",  # [heap]
    "OFFSET(mm_struct.brk)",
    "OFFSET(mm_struct.start_stack)",  # [stack], arguments, NT_AUXV
    "OFFSET(maple_tree.ma_flags)",
    "OFFSET(maple_node.slot)",  # of a dense node, which VMAs never are in
    "OFFSET(maple_node.parent)",
    "OFFSET(maple_node.ma64)",  # both begin the node
    "OFFSET(maple_node.mr64)",
    "OFFSET(maple_metadata.gap)",
    "OFFSET(maple_arange_64.gap)",
    "OFFSET(vm_area_struct.vm_mm)",
    "OFFSET(ucontext.uc_mcontext)",  # the ABI fixes it, and these
    "OFFSET(rt_sigframe.uc)",
    "OFFSET(rt_sigframe.rs_uc)",
    "OFFSET(sigcontext.sc_regs)",
}
# Keys that lead to pages that the process had not mapped in: without them there are fewer, with a sentence.
TELLS_MORE = {
    "OFFSET(mm_struct.start_stack)",  # to NT_AUXV, and by it to the vDSO
    "SYMBOL(vmemmap)",  # to the page cache
    "SIZE(page)",
    "OFFSET(page.mapping)",
    "SIZE(file)",
}


def test_the_list_has_the_58_keys() -> None:
    assert len(EXPORT) == len(set(EXPORT)) == 58


@dataclass(frozen=True)
class Facts:
    """What is said of a dump and one of its processes.

    Attributes:
        fixed: what never may be another.
        optional: what may be missing (None, "") but not another.
        registers: thread -> register bytes, with names of those that are not known.
        pages: address -> digest of each page that is known.
        warnings: sentences that make the core incomplete.
    """

    fixed: dict[str, Any]
    optional: dict[str, Any]
    registers: dict[int, tuple[bytes, frozenset[str]]]
    pages: dict[int, bytes]
    warnings: tuple[str, ...]


def facts_of(session: Session, pid: int) -> Facts:
    captured = session.processes.capture(session.processes.find(pid))
    snapshot: ProcessSnapshot = captured.snapshot
    pages = {
        int(address): hashlib.sha256(page.tobytes()).digest()
        for vma in snapshot.vmas
        for addresses, batch in (captured.memory.batches([(vma.start, vma.end)]) if vma.dumped else ())
        for address, page in zip(addresses, batch, strict=True)
    }
    fixed = {
        "tasks": [
            (sched.task_pid(task), sched.task_tgid(task), sched.task_comm(task), sched.task_state_char(task))
            for leader in session.processes.leaders()
            for task in session.processes.threads(leader)
        ],
        "vmas": [(v.start, v.end, v.vm_flags, v.path) for v in snapshot.vmas],
        "threads": [thread.tid for thread in snapshot.threads],
        "threads_left_out": snapshot.threads_left_out,
    }
    optional = {f"{v.start:#x}.{name}": getattr(v, name) for v in snapshot.vmas for name in ("pgoff", "name")}
    optional |= {"auxv": snapshot.auxv, "psargs": snapshot.psinfo.pr_psargs}
    registers = {t.tid: (t.gregs, frozenset(t.gregs_unknown)) for t in snapshot.threads}
    return Facts(fixed, optional, registers, pages, (*session.warnings, *snapshot.warnings))


@dataclass
class KeysAlone:
    """A dump, its VMCOREINFO text, and what is said of it with all keys; ``memory_map``: how a raw one is read."""

    path: Path
    pid: int
    text: bytes
    facts: Facts | None = None
    memory_map: str | None = None

    def without(self, key: str | None, monkeypatch: pytest.MonkeyPatch) -> Facts:
        """Return what is said without a key; kallsyms, BTF and another text are not looked for."""
        lines = self.text.splitlines(keepends=True)
        left = [line for line in lines if key is None or not line.startswith(key.encode() + b"=")]
        assert key is None or len(left) == len(lines) - 1
        with open_container([self.path], self.memory_map) as container:
            kind = type(container)
        with monkeypatch.context() as patch:
            patch.setattr(kind, "vmcoreinfo", property(lambda _self: b"".join(left)))
            patch.setattr(bootstrap, "_kallsyms_source", lambda *_: None)
            patch.setattr(bootstrap, "_btf_source", lambda *_: None)
            patch.setattr(find_vmcoreinfo, "_candidates", lambda *_: iter(()))
            patch.setattr(find_vmcoreinfo, "_from_image", lambda *_: iter(()))
            with Session([self.path], OpenOptions(memory_map=self.memory_map)) as session:
                return facts_of(session, self.pid)


def check(dump: KeysAlone, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if dump.facts is None:
        dump.facts = dump.without(None, monkeypatch)
    whole = dump.facts
    if key in NEEDED - NOT_NEEDED:
        with pytest.raises(Vmcore2coreError) as refused:
            dump.without(key, monkeypatch)
        sentence = str(refused.value)
        assert key.removeprefix("OFFSET(").rstrip(")") in sentence
        assert "or such lines in a file with --vmcoreinfo" in sentence
        assert "\n" not in sentence
        return
    found = dump.without(key, monkeypatch)
    assert found.fixed == whole.fixed
    for name, value in found.optional.items():
        assert value in (whole.optional[name], None, ""), name
    if found.warnings == whole.warnings:
        assert found.pages == whole.pages
    else:
        assert key in TELLS_MORE
        assert found.pages.items() < whole.pages.items()
    assert found.registers.keys() == whole.registers.keys()
    for tid, (registers, unknown) in found.registers.items():
        wanted, also_unknown = whole.registers[tid]
        assert registers == wanted or unknown - also_unknown


@pytest.fixture(scope="module")
def bundled_keys(tmp_path_factory: pytest.TempPathFactory) -> KeysAlone:
    """The bundled 7.2 guest as if its kernel had the export: the values come from its BTF."""
    folder = tmp_path_factory.mktemp("keys")
    path = bundled("debian-7.2-amd64", folder)
    written = dict(line.split("=", 1) for line in tasks("layout", path).stdout.splitlines())
    with open_container([path]) as container:
        own = container.vmcoreinfo
    assert own is not None
    known = dict(line.split("=", 1) for line in own.decode().splitlines()) | {
        "NUMBER(THREAD_SIZE)": "16384",
        "OFFSET(ucontext.uc_mcontext)": "40",
        "NUMBER(__NR_rt_sigreturn)": "15",
        "NUMBER(CONFIG_PGTABLE_LEVELS)": "5",
        "NUMBER(PMD_SHIFT)": "21",
        "NUMBER(PGDIR_SHIFT)": "39",
        # Not used, so `vmcore-tasks layout` does not write them.
        "OFFSET(maple_tree.ma_flags)": "4",
        "OFFSET(maple_node.slot)": "8",
        "OFFSET(maple_node.ma64)": "0",
        "OFFSET(maple_metadata.gap)": "1",
        "OFFSET(maple_arange_64.gap)": "160",
    }
    lines = [f"{key}={(written | known)[key]}\n" for key in (*BEFORE, *EXPORT) if key in written | known]
    assert len(lines) == len(EXPORT) + len(BEFORE)
    return KeysAlone(path, 1, "".join(lines).encode())


@pytest.mark.parametrize("key", [*EXPORT, *BEFORE])
def test_the_bundled_guest_without_one_key(bundled_keys: KeysAlone, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(bundled_keys, key, monkeypatch)


@pytest.fixture(scope="module")
def seed() -> KeysAlone:
    """A kernel with the export itself."""
    path = CORPUS / "seed-7.2-amd64/vmcore.kdump-zlib"
    with open_container([path]) as container:
        text = container.vmcoreinfo
    assert text is not None
    return KeysAlone(path, int((path.parent / "truth/victim-dyn.pid").read_text()), text)


@pytest.mark.corpus
@pytest.mark.parametrize("key", [*EXPORT, *BEFORE])
def test_a_kernel_with_the_export_without_one_key(seed: KeysAlone, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if f"{key}=".encode() not in seed.text:
        assert key in BEFORE
        return
    check(seed, key, monkeypatch)


@pytest.fixture(scope="module", params=sorted(MACHINES))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> KeysAlone:
    """The two machines of the series, whose kernels have the export and nothing else."""
    folder = tmp_path_factory.mktemp("machine")
    path, memory_map = bundled(request.param, folder), "raw" if "mips" in request.param else None
    with Session([path], OpenOptions(memory_map=memory_map)) as session:
        values = session.boot.vmcoreinfo.values
    pids = json.loads((FIXTURES / request.param / "truth/pids.json").read_text())
    text = "".join(f"{key}={value}\n" for key, value in values.items())
    return KeysAlone(path, pids["lab-dynamic"], text.encode(), memory_map=memory_map)


@pytest.mark.parametrize(
    ("machine", "key"),
    [(name, key) for name, own in MACHINES.items() for key in (*SIZES_AND_NUMBERS, *own)],
    indirect=["machine"],
)
def test_a_machine_of_the_series_without_one_key(machine: KeysAlone, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(machine, key, monkeypatch)
