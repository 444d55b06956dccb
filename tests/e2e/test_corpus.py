"""Cores of real processes against the cores that the kernel itself wrote of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.guests import convert

pytestmark = pytest.mark.corpus

# What the signal that ended the process in the truth changed: the return value of the interrupted system call.
SYSCALL_RETURN = {"rax", "orig_rax", "eflags", "eax", "orig_eax"}

VICTIMS = (
    ("debian-7.2-amd64", "victim-dyn", 117),
    ("debian-7.2-amd64", "victim-static", 109),
    ("debian-7.2-amd64", "victim-32", 124),
    ("seed-7.2-amd64", "victim-dyn", 51),
    ("seed-7.2-amd64", "victim-static", 43),
)


@pytest.fixture(scope="module")
def all_cores(corpus: Path, debian_72: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``--all`` of every dump: dump name -> directory."""
    dumps = {"debian-7.2-amd64": debian_72, "seed-7.2-amd64": corpus / "seed-7.2-amd64" / "vmcore.kdump-zlib"}
    made = {}
    for name, dump in dumps.items():
        made[name] = tmp_path_factory.mktemp("cores") / name
        result = convert(dump, "--all", "--no-companions", "-o", made[name])
        assert (result.returncode, result.stderr) == (0, "")
    return made


@pytest.mark.parametrize(("dump", "program", "pid"), VICTIMS, ids=[f"{d}-{p}" for d, p, _ in VICTIMS])
def test_core_equals_the_kernels_own(
    corpus: Path, all_cores: dict[str, Path], tmp_path: Path, dump: str, program: str, pid: int
) -> None:
    ours = Core(all_cores[dump] / f"core.{program}.{pid}")
    kernels = Core(unpack(corpus / dump / "truth" / f"core.{program}.{pid}.zst", tmp_path / "truth"))
    diff = compare_pages(ours, kernels)
    # 32-bit nanosleep() is given a place for the time left, which the kernel fills in when a signal interrupts it:
    # two pages of victim-32 were written to after the dump, eight bytes each.
    written_later = 2 if program == "victim-32" else 0
    assert (diff.zeroed, diff.absent, len(diff.wrong)) == ([], [], written_later)
    assert diff.same > 40_000
    for address in diff.wrong:
        mine, truth = ours.read(address, 4096), kernels.read(address, 4096)
        assert mine is not None
        assert truth is not None
        changed = [i for i in range(4096) if mine[i] != truth[i]]
        assert changed[-1] - changed[0] < 8
    assert ours.extents == kernels.extents
    assert ours.note(NT_AUXV) == kernels.note(NT_AUXV)
    assert ours.note(NT_FILE) == kernels.note(NT_FILE)
    # A thread that was on a CPU has its state in the processor.
    with_state = [tid for tid, notes in ours.regsets.items() if notes]
    assert len(with_state) >= len(kernels.regsets) - 1
    assert {tid: ours.regsets[tid] for tid in with_state} == {tid: kernels.regsets[tid] for tid in with_state}
    assert ours.registers.keys() == kernels.registers.keys()
    for tid, theirs in kernels.registers.items():
        skip = SYSCALL_RETURN
        if theirs.get("rbx") == 0x1234123412341234:  # the spinning thread went on
            skip = skip | {"rip"}
        assert {k: hex(v) for k, v in ours.registers[tid].items() if k not in skip} == {
            k: hex(v) for k, v in theirs.items() if k not in skip
        }, f"thread {tid}"


def test_every_process_with_an_mm_comes_out(corpus: Path, all_cores: dict[str, Path]) -> None:
    for dump, directory in all_cores.items():
        cores = {path.name.rsplit(".", 1)[1] for path in directory.glob("core.*[0-9]")}
        user = set()
        for line in (corpus / dump / "truth" / "ps.txt").read_text().splitlines()[1:]:
            pid, _, command = line.split(None, 2)
            if not command.startswith("[") and not command.startswith("{ps}"):
                user.add(pid)
        victims = {str(pid) for name, _, pid in VICTIMS if name == dump}
        assert cores == user | victims | {"1"}


def test_a_dump_without_the_vmcoreinfo_note_gives_the_same_memory(
    debian_72: Path, all_cores: dict[str, Path], tmp_path: Path
) -> None:
    """As QEMU writes it without the vmcoreinfo device: the text is found in memory."""
    dump = tmp_path / "no-note.elf"
    data = bytearray(debian_72.read_bytes())
    at = data.index(b"VMCOREINFO\0", 0, 1 << 20)
    data[at : at + 10] = b"XXXXXXXXXX"
    dump.write_bytes(data)
    result = convert(dump, "--pid", "117", "-o", tmp_path / "core", "-v")
    assert result.returncode == 0
    assert "VMCOREINFO text at physical" in result.stderr
    ours, before = Core(tmp_path / "core"), Core(all_cores["debian-7.2-amd64"] / "core.victim-dyn.117")
    assert ours.registers == before.registers
    assert ours.extents == before.extents
    assert compare_pages(ours, before).same == len(before.pages())


def test_thread_ids_name_their_process(all_cores: dict[str, Path], debian_72: Path, tmp_path: Path) -> None:
    result = convert(debian_72, "--pid", "119", "-o", tmp_path / "core")
    assert result.returncode == 0
    assert (tmp_path / "core").read_bytes() == (all_cores["debian-7.2-amd64"] / "core.victim-dyn.117").read_bytes()


def test_kdump_with_user_pages_is_complete(corpus: Path, tmp_path: Path) -> None:
    folder = corpus / "debian-6.1-amd64-kdump"
    result = convert(folder / "vmcore.zstd-d17", "--all", "-o", tmp_path, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    summary = json.loads(result.stdout)
    assert {core["comm"] for core in summary["cores"]} == {"init", "victim-static", "victim-dyn", "sleep"}
    for program, pid in (("victim-static", 100), ("victim-dyn", 108)):
        core = Core(tmp_path / f"core.{program}.{pid}")
        truth = folder / "truth"
        assert core.note(NT_AUXV) == (truth / f"{program}.pid.auxv").read_bytes()
        maps = [line.split() for line in (truth / f"{program}.pid.maps").read_text().splitlines()]
        expected = [tuple(int(part, 16) for part in line[0].split("-")) for line in maps if line[-1] != "[vsyscall]"]
        assert [(vaddr, vaddr + memsz) for vaddr, _, _, memsz, _ in core.loads] == expected
        # /proc/PID/task/TID/syscall: number, six arguments, stack pointer, program counter.
        tasks = [line.split() for line in (truth / f"{program}.pid.tasks").read_text().splitlines()]
        assert core.registers.keys() == {int(task[0].rsplit("/", 1)[1]) for task in tasks}
        for where, comm, *call in tasks:
            if comm == "v-spin":
                continue  # "running"
            regs = core.registers[int(where.rsplit("/", 1)[1])]
            names = ("orig_rax", "rdi", "rsi", "rdx", "r10", "r8", "r9", "rsp", "rip")
            assert [regs[name] for name in names] == [int(call[0]), *(int(value, 16) for value in call[1:])]
            assert regs["fs_base"]
            if comm == "v-regs":
                values = {name: f"{regs[name]:x}" for name in ("rbx", "r12", "r13", "r14", "r15")}
                assert values == {"rbx": "1" * 16, "r12": "6" * 16, "r13": "7" * 16, "r14": "8" * 16, "r15": "9" * 16}


def test_kdump_without_user_pages_says_which_level_would_have_kept_them(corpus: Path, tmp_path: Path) -> None:
    dump = corpus / "debian-6.1-amd64-kdump" / "vmcore.lzo-d31"
    result = convert(dump, "--pid", "108", "-o", tmp_path / "core", "--json")
    assert result.returncode == 3
    assert "makedumpfile -d 31, which leaves out" in result.stderr
    assert "-d 17 would have kept" in result.stderr
    core = Core(tmp_path / "core")
    assert len(core.registers) == 5
    assert core.note(NT_FILE) is not None
    assert json.loads(result.stdout)["cores"][0]["pages"]["missing"] > 4000


@pytest.mark.parametrize("megabytes", [1, 30, 100, 200])
def test_a_truncated_dump_is_one_sentence_or_a_core_that_says_so(
    debian_72: Path, tmp_path: Path, megabytes: int
) -> None:
    dump = tmp_path / "cut.elf"
    with debian_72.open("rb") as f:
        dump.write_bytes(f.read(megabytes << 20))
    result = convert(dump, "--pid", "117", "-o", tmp_path / "core")
    assert "Traceback" not in result.stderr
    assert "cut off" in result.stderr
    assert result.returncode == (3 if (tmp_path / "core").exists() else 1)
    assert list(tmp_path.glob(".*")) == []
