"""Minidumps: the memory, registers and files of the core of the same process, as readers of minidumps see them.

Tests minidump.py, corefile/minidump_head.py, corefile/contexts.py, corefile/modules.py, corefile/stored.py.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.builders.minidumps import AMD64, AMD64_XMM, X86, Minidump
from tests.corefile.snapshots import GREGS_64, PAGE, Pages, absent, snapshot, thread, vma
from tests.e2e.cores import Core
from tests.e2e.debuggers import lldb
from tests.e2e.guests import FIXTURES, bundled, convert, unpacked_sysroot
from vmcore2core.corefile.minidump import write_minidump
from vmcore2core.corefile.minidump_head import Facts
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Output, PagesChanged
from vmcore2core.errors import OutputError
from vmcore2core.formats import minidump as fmt

DUMP, TRUTH = FIXTURES / "debian-6.1-amd64/vmcore", FIXTURES / "debian-6.1-amd64/truth"
STATUS, COMMAND_LINE, ENVIRONMENT, AUXV, MAPS, COMMENT, EXCEPTION = 0x47670004, *range(0x47670006, 0x4767000A), 10, 6
PID = 92


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Core, Minidump]:
    """A core, and the minidump of the same process."""
    folder = tmp_path_factory.mktemp("both")
    assert convert(DUMP, "--pid", f"{PID}", "-o", folder / "core").returncode == 0
    result = convert(DUMP, "--pid", f"{PID}", "--minidump", "-o", folder / "app.dmp")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{folder / 'app.dmp'}: complete, 6 threads, 2093 pages\n"
    assert (folder / "app.dmp").stat().st_mode & 0o777 == 0o600
    return Core(folder / "core"), Minidump(folder / "app.dmp")


@pytest.mark.parametrize(
    ("form", "size"),
    [
        (fmt.MDRawHeader, 32),
        (fmt.MDRawDirectory, 12),
        (fmt.MDRawThread, 48),
        (fmt.MDRawThreadName, 12),
        (fmt.MDRawModule, 108),
        (fmt.MDRawSystemInfo, 56),
        (fmt.MDRawMiscInfo, 24),
        (fmt.MDRawExceptionStream, 168),
        (fmt.MDRawContextAMD64, 1232),
        (fmt.MDRawContextX86, 716),
        (fmt.MDRawContextARM, 368),
        (fmt.MDRawContextARM64_Old, 796),
    ],
    ids=lambda value: None if isinstance(value, int) else "",
)
def test_structures_have_breakpads_sizes(form: Any, size: int) -> None:
    assert form.sizeof() == size


def test_memory_is_the_cores(both: tuple[Core, Minidump]) -> None:
    core, dump = both
    pages = core.pages()
    assert len(pages) > 2093
    assert dump.pages() == {address: core.data[at : at + PAGE] for address, at in pages.items()}


def test_registers_are_the_cores(both: tuple[Core, Minidump]) -> None:
    core, dump = both
    assert list(dump.threads) == list(core.registers)
    assert sum(bool(notes) for notes in core.regsets.values()) == 5  # QEMU's note of the running one has none
    for tid, (context, stack, content) in dump.threads.items():
        registers = core.registers[tid]
        assert {name: struct.unpack_from("<Q", context, at)[0] for name, at in AMD64.items()} == {
            name: registers[name] for name in AMD64
        }
        assert struct.unpack_from("<6HI", context, 56) == tuple(
            registers[name] for name in ("cs", "ds", "es", "fs", "gs", "ss", "eflags")
        )
        fxsave = next((desc for name, kind, desc in core.regsets[tid] if (name, kind) == ("CORE", 2)), None)
        assert struct.unpack_from("<I", context, 48) == (0x100007 if fxsave is None else 0x10000F,)
        assert context[AMD64_XMM : AMD64_XMM + 256] == (bytes(256) if fxsave is None else fxsave[160:416])
        assert stack <= registers["rsp"] - 128
        assert content == core.read(stack, len(content))
        assert len(content) > registers["rsp"] - stack


def test_text_is_what_the_guest_itself_said(both: tuple[Core, Minidump]) -> None:
    _, dump = both
    assert dump.streams[MAPS] == (TRUTH / "lab-dynamic.maps").read_bytes()
    assert dump.streams[COMMAND_LINE] == (TRUTH / "lab-dynamic.cmdline").read_bytes()
    assert dump.streams[ENVIRONMENT] == (TRUTH / "lab-dynamic.environ").read_bytes()
    auxv = (TRUTH / "lab-dynamic.auxv").read_bytes()
    assert dump.streams[AUXV][: len(auxv)] == auxv
    status = dict(line.split(b":\t") for line in (TRUTH / "lab-dynamic.status").read_bytes().splitlines())
    ours = dict(line.split(b":\t") for line in dump.streams[STATUS].splitlines())
    assert set(ours) == {b"Name", b"State", b"Tgid", b"Pid", b"PPid", b"Threads"}
    assert {name: value.split()[0] for name, value in ours.items()} == {name: status[name].split()[0] for name in ours}
    assert dump.names[PID] == "lab-dynamic"


def test_modules_have_their_build_ids(both: tuple[Core, Minidump], tmp_path: Path) -> None:
    _, dump = both
    sysroot = unpacked_sysroot(tmp_path)
    assert dump.modules[0][2] == "/bin/lab-dynamic"
    assert {name for _, _, name, _ in dump.modules[1:]} == {
        "/lib/libc.so.6",
        "/lib/libvictim.so",
        "/lib64/ld-linux-x86-64.so.2",
        "linux-gate.so",
    }
    maps = [line.split() for line in (TRUTH / "lab-dynamic.maps").read_text().splitlines()]
    for start, size, name, record in dump.modules:
        shown = "[vdso]" if name == "linux-gate.so" else name
        mine = [line[0].split("-") for line in maps if line[-1] == shown]
        assert (start, start + size) == (int(mine[0][0], 16), int(mine[-1][1], 16))
        assert record[:4] == b"LEpB"
        if name.startswith("/"):
            assert b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0" + record[4:] in (sysroot / name[1:]).read_bytes()


def frames(shown: str) -> list[tuple[str, ...]]:
    """Return what lldb says of frames, without what it knows of threads."""
    return re.findall(r"frame #(\d+): (0x\w+) (.*)", shown)


def test_lldb_shows_the_frames_of_the_core(both: tuple[Core, Minidump], tmp_path: Path) -> None:
    core, dump = both
    sysroot = unpacked_sysroot(tmp_path)
    program = sysroot / "bin/lab-dynamic"
    shown = [
        frames(lldb(path, "thread backtrace all", program=program, sysroot=sysroot)) for path in (core.path, dump.path)
    ]
    assert len(shown[0]) > 10
    assert shown[1] == shown[0]


def test_the_package_minidump_reads_it(both: tuple[Core, Minidump]) -> None:
    minidump = pytest.importorskip("minidump.minidumpfile")
    core, dump = both
    parsed = minidump.MinidumpFile.parse(str(dump.path))
    assert [(m.baseaddress, m.size, m.name) for m in parsed.modules.modules] == [one[:3] for one in dump.modules]
    assert [thread.ThreadId for thread in parsed.threads.threads] == list(core.registers)
    assert parsed.misc_info.ProcessId == PID
    reader = parsed.get_reader()
    for start, size, _, _ in dump.modules:
        assert reader.read(start, min(size, PAGE)) == core.read(start, min(size, PAGE))


@pytest.mark.parametrize("name", ["debian-7.2-arm64", "debian-6.1-i386-pae", "debian-6.1-armhf"])
def test_other_machines_have_their_registers(name: str, tmp_path: Path) -> None:
    dump = bundled(name, tmp_path)
    layout = FIXTURES / name / "layout.txt"
    known: list[str | Path] = ["--vmcoreinfo", layout] if layout.exists() else []
    options = [dump, "--comm", "lab-dynamic", *known]
    assert convert(*options, "-o", tmp_path).returncode == 0
    assert convert(*options, "--minidump", "-o", tmp_path).returncode == 0
    path = next(tmp_path.glob("core.lab-dynamic.*.dmp"))
    core, made = Core(path.with_suffix("")), Minidump(path)
    assert list(made.threads) == list(core.prstatus)
    word, at = (8, 112) if core.is_64 else (4, 72)
    for tid, (context, _, _) in made.threads.items():
        gregs = core.prstatus[tid][at:]
        if name.endswith("arm64"):
            assert context[8 : 8 + 33 * 8] == gregs[: 33 * 8]
            assert context[272:276] == gregs[33 * 8 : 33 * 8 + 4]
            simd = next(desc for note, kind, desc in core.notes if (note, kind) == ("CORE", 2))
            assert tid != next(iter(core.prstatus)) or context[284:796] == simd[:512]
        elif name.endswith("armhf"):
            assert context[4 : 4 + 17 * 4] == gregs[: 17 * 4]
        else:
            registers = core.registers[tid]
            assert {n: struct.unpack_from("<I", context, where)[0] for n, where in X86.items()} == {
                n: registers[n] for n in X86
            }
    first, (_, stack, content) = next(iter(made.threads.items()))
    assert content == core.read(stack, len(content))
    assert (len(content) >= word, first in core.prstatus) == (True, True)
    assert made.pages() == {address: core.data[where : where + PAGE] for address, where in core.pages().items()}


def test_machines_without_a_form_are_refused(tmp_path: Path) -> None:
    dump = bundled("debian-7.2-riscv64", tmp_path)
    result = convert(dump, "--pid", "1", "--minidump", "-o", tmp_path / "x.dmp")
    assert result.returncode == 1
    assert result.stderr == (
        "vmcore2core: 1 (init) gets no minidump: there is no form for registers of e_machine 243, class ELF64, "
        "expected an x86-64, i386, arm64 or arm process\n"
    )
    assert not (tmp_path / "x.dmp").exists()


def test_what_is_left_out_of_a_core_is_left_out(tmp_path: Path) -> None:
    environ = (TRUTH / "lab-dynamic.environ").read_bytes()
    target = tmp_path / "app.dmp"
    result = convert(DUMP, "--pid", f"{PID}", "--minidump", "--redact", "no-env", "-o", target)
    assert result.returncode == 0, result.stderr
    made = Minidump(target)
    assert ENVIRONMENT not in made.streams
    assert environ not in made.data
    assert made.streams[COMMAND_LINE] == (TRUTH / "lab-dynamic.cmdline").read_bytes()
    word = "lab-dynamic"
    result = convert(DUMP, "--pid", f"{PID}", "--minidump", "--redact", f"secret:{word}", "-o", target, "-f")
    assert result.returncode == 0, result.stderr
    assert word.encode() not in target.read_bytes()
    assert word.encode("utf-16-le") not in target.read_bytes()


def test_usage(tmp_path: Path) -> None:
    for option in (["--resume"], ["--companions"], ["--compress", "zstd"]):
        result = convert(DUMP, "--all", "--minidump", *option, "-o", tmp_path)
        assert result.returncode == 2
        said = " ".join(result.stderr.replace("│", " ").split())
        assert "--minidump cannot be used with --resume, --companions or --compress" in said


FACTS = Facts(system="Linux")
REPLACING = CoreOptions(force=True)
SP = int.from_bytes(GREGS_64[19 * 8 : 20 * 8], "little")
"""The slot of rsp in a hand-made thread."""


def made(
    tmp_path: Path, process: Any, pages: dict[int, bytes], options: CoreOptions = REPLACING, **more: Any
) -> Minidump:
    path = tmp_path / "made.dmp"
    write_minidump(FACTS, process, Pages(pages), Output(path, options, **more))
    return Minidump(path)


def gregs(rsp: int) -> bytes:
    return GREGS_64[: 19 * 8] + struct.pack("<Q", rsp) + GREGS_64[20 * 8 :]


def test_pages_that_are_not_known_are_in_no_range(tmp_path: Path) -> None:
    hole = vma(0x10000, 0x14000, absent=(absent(0x11000, 0x12000),))
    stack = vma(0x20000, 0x28000, absent=(absent(0x27000, 0x28000),))
    threads = (thread(tid=100, gregs=gregs(0x24010)), thread(tid=101, gregs=gregs(0x25010)), thread(tid=102))
    pages = {0x10000: b"a", 0x13000: b"b", 0x24000: b"c", 0x26000: b"d", 0x21000: b"e"}
    found = made(tmp_path, snapshot(hole, stack, threads=threads), pages)
    assert [(start, size) for start, size, _ in found.memory] == [
        (0x23000, 0x4000),  # both threads' stacks, with the red zone below the lower one, up to what is not known
        (0x10000, 0x1000),
        (0x12000, 0x2000),
        (0x20000, 0x3000),
    ]
    assert found.pages()[0x13000] == b"b".ljust(PAGE, b"\0")
    assert found.read(0x24000, 1) == b"c"
    assert [stack for _, stack, _ in found.threads.values()][:2] == [0x23000, 0x23000]
    assert found.threads[102][1:] == (SP, b"")  # its stack pointer leads nowhere
    assert b'"absent":[["0x11000","0x12000","excluded"]' in found.streams[COMMENT]


def test_registers_that_are_not_known_are_not_said_to_be(tmp_path: Path) -> None:
    threads = (thread(tid=1, gregs_unknown=("fs_base", "ds")), thread(tid=2, gregs_unknown=("rbx",)), thread(tid=3))
    found = made(tmp_path, snapshot(vma(0x1000, 0x2000), threads=threads), {})
    flags = [struct.unpack_from("<I", context, 48)[0] for context, _, _ in found.threads.values()]
    assert flags == [0x100003, 0x100005, 0x100007]


def test_a_signal_is_an_exception_of_its_thread(tmp_path: Path) -> None:
    threads = (thread(tid=1), thread(tid=2, pr_cursig=11))
    found = made(tmp_path, snapshot(vma(0x1000, 0x2000), threads=threads), {})
    tid, _, code = struct.unpack_from("<III", found.streams[EXCEPTION])
    assert (tid, code) == (2, 11)
    assert found.located(found.streams[EXCEPTION], 160) == found.threads[2][0]
    assert EXCEPTION not in made(tmp_path, snapshot(vma(0x1000, 0x2000), threads=threads[:1]), {}).streams


def test_what_changes_while_it_is_read_is_not_written(tmp_path: Path) -> None:
    process = snapshot(vma(0x1000, 0x2000))
    with pytest.raises(PagesChanged):
        made(tmp_path, process, {}, still_valid=lambda: False)
    with pytest.raises(OutputError, match="not compressed"):
        made(tmp_path, process, {}, CoreOptions(compression="zstd"))
    assert list(tmp_path.iterdir()) == []


def test_many_threads_in_one_mapping_have_their_own_place(tmp_path: Path) -> None:
    """Stacks of one mapping that touch are one range of memory; each thread's begins there."""
    stack = vma(0x100000, 0x200000, absent=(absent(0x140000, 0x150000),))
    pointers = [0x101010, 0x139008, 0x150010, 0x1FFFF8, 0x145000]
    threads = tuple(thread(tid=number, gregs=gregs(rsp)) for number, rsp in enumerate(pointers, start=-1))
    found = made(tmp_path, snapshot(vma(0x1000, 0x3000), stack, threads=threads), {0x138000: b"x"})
    assert [(start, size) for start, size, _ in found.memory] == [
        (0x100000, 0x40000),
        (0x150000, 0xB0000),
        (0x1000, 0x2000),
    ]
    assert {tid: (start, len(content)) for tid, (_, start, content) in found.threads.items()} == {
        0xFFFFFFFF: (0x100000, 0x40000),  # as a torn dump may number it
        0: (0x100000, 0x40000),
        1: (0x150000, 0xB0000),
        2: (0x150000, 0xB0000),
        3: (0x145000, 0),
    }
