"""mips64el: cores of real processes (n64, n32 and o32) against the cores that the kernel itself wrote of them.

Debian's kernel has no BTF and no symbols of data there: layout.txt stands for the debug package. The kernel's cores are
zstd patches to the dump, as they have the same pages.
"""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
import zstandard

from tests.conftest import unpack
from tests.e2e.cores import NT_AUXV, NT_FILE, NT_PRPSINFO, Core, compare_pages
from tests.e2e.debuggers import gdb_backtraces, gdb_command, in_order
from tests.e2e.guests import FIXTURES, convert, convert_all, rows, tasks
from tests.e2e.machines import thread_notes
from vmcore2core.interfaces import Member
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.session import OpenOptions, Session

GUEST = FIXTURES / "debian-6.1-mips64el"
LAYOUT = GUEST / "layout.txt"
VICTIMS = (("victim-static", 90), ("victim-dyn", 98), ("victim-n32", 113), ("victim-32", 106))
SPINNING, PREEMPTED = 96, 104
# elf_gregset_t: word -> register, where the kernel's core has what the signal left.
V0, A3 = 2, 7
PAGES_MAX = 1 << 29
# What clock_nanosleep() wrote when the signal ended it: how long it had to sleep, of 32-bit programs on their stacks.
SLEEPERS = {"victim-n32": [0x6D7A_D000, 0x7FB9_2000], "victim-32": [0x6D7D_4000, 0x7F86_E000]}
FORMS = {480: ("<45Q", 112, 0), 440: ("<45Q", 72, 0), 256: ("<45I", 72, 6)}
"""Bytes of NT_PRSTATUS -> its registers, where they begin, which of them is $0."""


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(GUEST / "vmcore.zst", tmp_path_factory.mktemp("dump") / "vmcore")


@pytest.fixture(scope="module")
def cores(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``--all`` of the dump: the directory."""
    target = tmp_path_factory.mktemp("cores")
    result = convert_all(dump, "--vmcoreinfo", LAYOUT, "--filter", "0x1ff", "-o", target)
    assert result.stderr == (
        "vmcore2core: 90 (victim-static): thread 96 (v-spin) is left out: it was running on a CPU, whose registers the "
        "dump does not have; those on its kernel stack are older\n"
    )
    assert result.returncode == 3
    return target


def truth(dump: Path, program: str, target: Path) -> Core:
    """Return the kernel's own core."""
    known = zstandard.ZstdCompressionDict(dump.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    decompressor = zstandard.ZstdDecompressor(dict_data=known, max_window_size=PAGES_MAX)
    with (GUEST / "cores" / f"{program}.core.patch.zst").open("rb") as packed, target.open("wb") as plain:
        for chunk in decompressor.read_to_iter(packed, write_size=1 << 20):
            if chunk.count(0) == len(chunk):
                plain.seek(len(chunk), 1)
            else:
                plain.write(chunk)
        plain.truncate()
    return Core(target)


def registers(core: Core) -> dict[int, list[int]]:
    """Return $0 to $31, lo, hi, epc, badvaddr, status, cause by thread."""
    found = {}
    for tid, desc in core.prstatus.items():
        form, at, first = FORMS[len(desc)]
        found[tid] = list(struct.unpack_from(form, desc, at)[first : first + 38])
    return found


@pytest.mark.parametrize(("program", "pid"), VICTIMS)
def test_core_equals_the_kernels_own(dump: Path, cores: Path, tmp_path: Path, program: str, pid: int) -> None:
    ours, kernels = Core(cores / f"core.{program}.{pid}"), truth(dump, program, tmp_path / "truth")
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == (SLEEPERS.get(program, []), [], [])
    assert diff.same > 44_000
    assert ours.extents == kernels.extents
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    head = slice(4, 6), slice(18, 20), slice(36, 40) if not ours.is_64 else slice(48, 52)
    assert [ours.data[part] for part in head] == [kernels.data[part] for part in head]  # class, e_machine, e_flags
    mine, theirs = registers(ours), registers(kernels)
    assert mine.keys() == theirs.keys() - {SPINNING}
    for tid in mine:
        expected = list(theirs[tid])
        if tid != PREEMPTED:
            expected[V0], expected[A3] = mine[tid][V0], mine[tid][A3]
        assert [hex(value) for value in mine[tid]] == [hex(value) for value in expected], f"thread {tid}"
        assert thread_notes(ours)[tid] == thread_notes(kernels)[tid], f"thread {tid}"
        assert len(ours.prstatus[tid]) == len(kernels.prstatus[tid])
        assert [note[1] for note in thread_notes(ours)[tid]] == [0x800, 2, 0x801, 0x802]


@pytest.mark.parametrize(("program", "pid"), VICTIMS)
def test_prpsinfo_is_as_long_as_the_kernels(dump: Path, cores: Path, tmp_path: Path, program: str, pid: int) -> None:
    """n32's and o32's uids have 32 bits, where i386's and arm's have 16."""
    ours, kernels = (
        core.note(NT_PRPSINFO) for core in (Core(cores / f"core.{program}.{pid}"), truth(dump, program, tmp_path / "t"))
    )
    assert ours is not None
    assert kernels is not None
    behind = 16 if len(kernels) == 136 else 8  # the state and pr_flag are not what they were when the signal came
    assert (len(ours), ours[behind:]) == (len(kernels), kernels[behind:])


def test_the_verifier_finds_nothing_wrong_with_them(cores: Path) -> None:
    for program, pid in VICTIMS[1:]:
        result = convert("verify", cores / f"core.{program}.{pid}", "--json")
        assert (result.returncode, json.loads(result.stdout)["wrong"]) == (0, []), result.stdout


SIGNAL = ["pause", "handler", "__pthread_kill_implementation.constprop.0", "gsignal", "sig_thread"]
LEVELS = ["level_c", "level_b", "level_a"]


@pytest.mark.parametrize(("pid", "outermost"), [(90, "__start"), (113, "__start"), (106, "__start")])
def test_bt_shows_every_stack_without_call_frame_information(dump: Path, pid: int, outermost: str) -> None:
    """The programs have none of their own functions: the instructions tell their frames."""
    result = tasks("bt", dump, "--vmcoreinfo", LAYOUT, "--pid", str(pid), "--json")
    threads = {thread["tid"]: thread for thread in rows(result.stdout)}
    shown = {tid: [frame["function"] for frame in thread["frames"]] for tid, thread in threads.items()}
    end = ["start_thread", "__thread_start"]
    for tid, wanted in {
        pid: ["nanosleep", *LEVELS, "main", "__libc_start_call_main", outermost],
        pid + 2: ["regs_blocked", *end],
        pid + 3: [*SIGNAL, *end],
        pid + 4: ["pthread_cond_wait", "cond_thread", *end],
        pid + 5: ["nanosleep", *LEVELS, "bt_thread", *end],
    }.items():
        assert in_order(wanted, shown[tid]), (tid, shown[tid])
        assert threads[tid]["complete"], threads[tid]
    assert any(frame["signal_trampoline"] for frame in threads[pid + 3]["frames"])


@pytest.mark.parametrize(("program", "pid"), [victim for victim in VICTIMS if victim[0] != "victim-dyn"])
def test_gdb_shows_every_stack(cores: Path, program: str, pid: int) -> None:
    """With the programs that were in the page cache."""
    command = [*gdb_command("gdb-multiarch"), "-ex", "thread apply all bt", "-ex", "p/x victim_magic"]
    command += [str(cores / "sysroot" / "bin" / program), str(cores / f"core.{program}.{pid}")]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = gdb_backtraces(output)
    for tid, wanted in {
        pid: ["nanosleep", *LEVELS, "main"],
        pid + 2: ["regs_blocked", "start_thread"],
        pid + 3: ["pause", "handler", "<signal handler called>", "sig_thread"],
        pid + 4: ["pthread_cond_wait", "cond_thread", "start_thread"],
        pid + 5: ["nanosleep", *LEVELS, "bt_thread"],
    }.items():
        assert in_order(wanted, shown[tid]), (tid, shown[tid])
    assert "= 0x5ec0de5ec0de0001\n" in output


def test_regs_names_what_it_has(dump: Path) -> None:
    result = tasks("regs", dump, "--vmcoreinfo", LAYOUT, "--tid", "92", "--json")
    (thread,) = rows(result.stdout)
    assert {name: thread["registers"][name] for name in ("s0", "s7", "t9")} == {
        "s0": "0x1616161616161616",
        "s7": "0x2323232323232323",
        "t9": "0x2525252525252525",
    }


def test_a_layout_without_on_cpu_makes_no_registers_up(
    dump: Path, cores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """thread_struct is older for a task that was on a CPU: what it has is not taken, and that is said."""
    find_member = KernelLayout.find_member

    def known(self: KernelLayout, struct: str, member: str) -> Member | None:
        return None if (struct, member) == ("task_struct", "on_cpu") else find_member(self, struct, member)

    monkeypatch.setattr(KernelLayout, "find_member", known)
    with Session([dump], OpenOptions(vmcoreinfo=LAYOUT)) as session:
        snapshot = session.processes.capture(session.processes.find(98), with_absent=False).snapshot
    assert [thread.tid for thread in snapshot.threads_left_out] == [PREEMPTED]
    whole = registers(Core(cores / "core.victim-dyn.98"))
    for thread in snapshot.threads:
        assert thread.gregs_unknown == ("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "fp")
        expected = [0 if i in (*range(16, 24), 30) else value for i, value in enumerate(whole[thread.tid])]
        assert list(struct.unpack("<45Q", thread.gregs)[:38]) == expected
    assert any("s0, s1, s2" in warning and "100 (v-regs)" in warning for warning in snapshot.warnings)


def test_the_exports_keys_of_mips_tell_the_page_tables(dump: Path, cores: Path, tmp_path: Path) -> None:
    """As the VMCOREINFO export has them: no enumerators, no symbols of tables."""
    lines = [line for line in LAYOUT.read_text().splitlines() if "invalid_" not in line and "_SHIFT)" not in line]
    numbers = {"PAGE_SHIFT": 12, "_PFN_MASK": -16384, "_PAGE_PRESENT": 1, "_PAGE_VALID": 512, "_PAGE_GLOBAL": 256}
    numbers |= {"PTRS_PER_PGD": 1024, "PTRS_PER_PMD": 512, "PTRS_PER_PTE": 512, "CONFIG_PGTABLE_LEVELS": 3}
    lines += [f"NUMBER({name})={value}" for name, value in numbers.items()]
    (tmp_path / "layout").write_text("\n".join(lines))
    arguments = "--vmcoreinfo", tmp_path / "layout", "--filter", "0x1ff", "--pid", "98", "-o", tmp_path / "core"
    assert convert(dump, *arguments).returncode == 0
    ours, before = Core(tmp_path / "core"), Core(cores / "core.victim-dyn.98")
    diff = compare_pages(ours, before)
    assert (diff.same, diff.wrong, diff.zeroed, diff.absent) == (len(before.pages()), [], [], [])
    (tmp_path / "layout").write_text("\n".join(line for line in lines if "_PFN_" not in line and "_PAGE_" not in line))
    result = convert(dump, *arguments, "--force")
    assert result.returncode == 1
    assert "NUMBER(_CACHE_SHIFT) of this kernel is not known" in result.stderr


def test_a_kernel_whose_code_is_left_out_has_its_registers_said_to_be_unknown(dump: Path, tmp_path: Path) -> None:
    """makedumpfile leaves the kernel's code in; somebody else may not."""
    data = bytearray(dump.read_bytes())
    stext, etext = 0x18F_0400 // 4096, 0x234_0000 // 4096
    # The second bitmap: disk_dump_header says how many blocks come before it.
    sub_blocks, bitmap_blocks = struct.unpack_from("<iI", data, 428 + 4)
    second = (1 + sub_blocks + bitmap_blocks // 2) * 4096
    kept = [pfn for pfn in range(65536) if data[second + pfn // 8] >> pfn % 8 & 1]
    gone = {pfn for pfn in kept if stext <= pfn < etext}
    assert gone
    descs = (1 + sub_blocks + bitmap_blocks) * 4096
    table = [bytes(data[descs + 24 * i : descs + 24 * i + 24]) for i in range(len(kept))]
    left = b"".join(desc for pfn, desc in zip(kept, table, strict=True) if pfn not in gone)
    data[descs : descs + len(left)] = left
    for pfn in gone:
        data[second + pfn // 8] &= ~(1 << pfn % 8)
    (tmp_path / "vmcore").write_bytes(data)
    result = convert(tmp_path / "vmcore", "--vmcoreinfo", LAYOUT, "--pid", "98", "-o", tmp_path / "core")
    assert result.returncode == 3
    assert "s0, s1, s2, s3, s4, s5, s6, s7, fp of thread 100 (v-regs) are not known: kernel stack lacks them" in (
        result.stderr
    )
