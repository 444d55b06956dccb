"""Dumps that have stacks and ELF headers alone: the start scripts know where each file is, and find it by build ID."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.builders.stacks_only import bundled_stacks_only
from tests.e2e.debuggers import in_order
from tests.e2e.guests import FIXTURES, PROGRAMS, bundled, convert, rows, tasks, unpacked_sysroot
from tests.e2e.test_sysroot import PAGE, without_pages
from tests.handover.test_scripts import gdb_stacks, lldb_stacks
from tests.unwind.processes import need
from vmcore2core.handover.debugger_files import facts_of

GUEST = "debian-6.1-amd64"
DEBUGGERS = ("gdb", "lldb")
GUESSES = ("frame pointer", "return address at the stack pointer")
LIBC = "93ac61ec5a8eb1396f9fbd350e3169a558528a40"  # eu-readelf -n


@pytest.fixture(scope="module")
def sysroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_sysroot(tmp_path_factory.mktemp("sysroot"))


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled_stacks_only(GUEST, tmp_path_factory.mktemp("filtered"))


@pytest.fixture(scope="module")
def cores(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cores")
    assert convert(dump, "--comm", "lab-*", "-o", folder).returncode == 3
    return folder


def script(folder: Path, program: str, debugger: str) -> str:
    return next(folder.glob(f"core.{program}.*.{debugger}")).name


def expected(program: str) -> dict[int, list[str]]:
    truth = FIXTURES / GUEST / "truth"
    rows = [line.split("\t") for line in (truth / f"{program}.tasks").read_text().splitlines()]
    tids = {row[1]: int(row[0]) for row in rows}
    known = json.loads((truth / "expected.json").read_text())[program]
    return {tids[name]: functions for name, functions in known.items()}


def check(stacks: dict[int, list[str]], output: str, program: str) -> None:
    assert len(stacks) == 6, output
    for tid, wanted in expected(program).items():
        assert in_order(wanted, stacks[tid]), output


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("debugger", DEBUGGERS)
def test_every_stack_is_complete_with_a_sysroot(cores: Path, sysroot: Path, program: str, debugger: str) -> None:
    stacks = gdb_stacks if debugger == "gdb" else lldb_stacks
    shown, output = stacks(cores, script(cores, program, debugger), sysroot)
    check(shown, output, program)
    assert "wanted" not in output


@pytest.mark.parametrize("debugger", DEBUGGERS)
def test_what_is_not_found_is_said_in_one_line_with_build_ids(cores: Path, debugger: str) -> None:
    stacks = gdb_stacks if debugger == "gdb" else lldb_stacks
    _, output = stacks(cores, script(cores, "lab-dynamic", debugger))
    (line,) = (line for line in output.splitlines() if line.startswith("vmcore2core: wanted"))
    assert (
        "wanted, but not found (VMCORE2CORE_SYSROOT=DIR says where to look): /bin/lab-dynamic (build ID 8727f9" in line
    )
    assert f"/lib/libc.so.6 (build ID {LIBC}; in part)" in line


@pytest.mark.parametrize("debugger", DEBUGGERS)
def test_a_file_with_another_build_id_is_never_loaded(
    cores: Path, sysroot: Path, tmp_path: Path, debugger: str
) -> None:
    shutil.copytree(sysroot, tmp_path / "other")
    libc = tmp_path / "other/lib/libc.so.6"
    libc.write_bytes(libc.read_bytes().replace(bytes.fromhex(LIBC), bytes(20)))
    if debugger == "gdb":
        stacks, output = gdb_stacks(cores, script(cores, "lab-dynamic", debugger), tmp_path / "other")
    else:
        # As lldb itself does, which takes files of this machine for the guest's.
        before = [f"target modules add {libc}", f"target modules load --file {libc} --slide 0x10000"]
        again = (cores / script(cores, "lab-dynamic", debugger)).read_text().splitlines()[-1]
        stacks, output = lldb_stacks(
            cores, script(cores, "lab-dynamic", debugger), tmp_path / "other", *before, again, "image list"
        )
        assert str(libc) not in output.rpartition("image list")[2]
    assert (
        f"not found (VMCORE2CORE_SYSROOT=DIR says where to look): /lib/libc.so.6 (build ID {LIBC}; in part)" in output
    )
    assert not any("clone3" in names or "start_thread" in names for names in stacks.values()), output


@pytest.fixture(scope="module")
def completed(dump: Path, sysroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``cores``, with --sysroot."""
    folder = tmp_path_factory.mktemp("completed")
    assert convert(dump, "--comm", "lab-*", "-o", folder, "--sysroot", sysroot).returncode == 3
    return folder


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("debugger", DEBUGGERS)
def test_a_sysroot_at_conversion_is_enough(completed: Path, program: str, debugger: str) -> None:
    stacks, output = (lldb_stacks if debugger == "lldb" else gdb_stacks)(
        completed, script(completed, program, debugger)
    )
    check(stacks, output, program)


def test_gdb_without_python_takes_what_is_beside_the_core(completed: Path) -> None:
    text = (completed / script(completed, "lab-dynamic", "gdb")).read_text()
    without = text.replace("! $_isvoid ($_streq)", "0").replace("$_isvoid ($_streq)", "1")
    (completed / "without.gdb").write_text(without)
    check(*gdb_stacks(completed, "without.gdb"), "lab-dynamic")


def test_a_sysroot_at_conversion_completes_the_directory(completed: Path, sysroot: Path) -> None:
    for file in (
        "bin/lab-dynamic",
        "bin/lab-static",
        "lib/libc.so.6",
        "lib/libvictim.so",
        "lib64/ld-linux-x86-64.so.2",
    ):
        assert (completed / "sysroot" / file).read_bytes() == (sysroot / file).read_bytes()
    assert not (completed / "sysroot.incomplete").exists()
    entries = json.loads((completed / "index.json").read_text())["processes"]
    notices = next(entry["debug"]["notices"] for entry in entries if entry["comm"] == "lab-dynamic")
    assert f"/lib/libc.so.6 is not whole in memory: it is copied from {sysroot}/lib/libc.so.6, which" in notices[1]


def test_without_the_helper_gdb_says_so_and_goes_on(cores: Path, tmp_path: Path) -> None:
    name = script(cores, "lab-static", "gdb")
    for file in (name, name.removesuffix(".gdb")):
        shutil.copy(cores / file, tmp_path)
    stacks, output = gdb_stacks(tmp_path, name)
    assert len(stacks) == 6
    assert "only what the dynamic linker's list leads to is loaded: [Errno 2]" in output


@pytest.mark.corpus
@pytest.mark.parametrize("program", ["victim-static", "victim-dyn"])
@pytest.mark.parametrize("debugger", DEBUGGERS)
def test_a_dump_of_makedumpfile_itself(
    corpus: Path, tmp_path: Path, sysroot: Path, program: str, debugger: str
) -> None:
    guest, root = corpus / "debian-6.1-amd64-kdump", tmp_path / "root"
    shutil.copytree(guest / "bin", root / "bin")
    (root / "lib/x86_64-linux-gnu").mkdir(parents=True)
    shutil.copy(sysroot / "lib/libc.so.6", root / "lib/x86_64-linux-gnu")  # of the same build ID
    shutil.copytree(sysroot / "lib64", root / "lib64")
    cores = tmp_path / "cores"
    assert convert(guest / "vmcore.zlib-d31-userstack", "--comm", "victim-*", "-o", cores).returncode == 3
    shown, output = (gdb_stacks if debugger == "gdb" else lldb_stacks)(cores, script(cores, program, debugger), root)
    assert "wanted" not in output
    assert len(shown) == (6 if program == "victim-static" else 5), output
    nested = [stack for stack in shown.values() if in_order(["level_c", "level_b", "level_a"], stack)]
    assert len(nested) == 2, output
    assert any("handler" in stack and "sig_thread" in stack for stack in shown.values()), output
    starts = "start_thread" if program == "victim-static" else "??" if debugger == "gdb" else None
    assert starts is None or sum(starts in stack for stack in shown.values()) >= 4, output


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cores of a dump that has no page of any process."""
    folder = tmp_path_factory.mktemp("plain")
    dump = bundled_stacks_only(GUEST, folder, stacks=False)
    assert convert(dump, "--comm", "lab-*", "-o", folder / "cores").returncode == 3
    return folder / "cores"


@pytest.mark.parametrize("debugger", DEBUGGERS)
def test_without_any_build_id_files_are_taken_by_path_size_and_time(
    plain: Path, sysroot: Path, tmp_path: Path, debugger: str
) -> None:
    """The threads' innermost functions have names; a file of another time is not loaded."""
    root = Path(shutil.copytree(sysroot, tmp_path / "root"))
    stacks_of = gdb_stacks if debugger == "gdb" else lldb_stacks
    name = script(plain, "lab-dynamic", debugger)
    for path in root.rglob("*"):
        os.utime(path, (0, 0))  # as the guest's initramfs has them
    stacks, output = stacks_of(plain, name, root)
    assert "by path, size and time, as the dump does not have the build ID: /bin/lab-dynamic, /lib/libc.so.6" in output
    assert "wanted" not in output
    assert len(stacks) == 6
    innermost = {stack[0] for stack in stacks.values()}  # one is in a static function of libc, which is stripped
    assert {"spin_here", "block_with_registers"} < innermost, output
    assert any("pause" in name for name in innermost), output
    assert any("poll" in name for name in innermost), output
    os.utime(root / "lib/libc.so.6", (0, 1))
    output = stacks_of(plain, name, root)[1]
    assert "/lib/libc.so.6 (build ID not known; 1926232 bytes of 1970-01-01 00:00:00 UTC)" in output
    assert "the build ID: /bin/lab-dynamic, /lib/libvictim.so" in output


def test_a_sysroot_at_conversion_is_enough_without_build_ids(sysroot: Path, tmp_path: Path) -> None:
    dump = bundled_stacks_only(GUEST, tmp_path, stacks=False)
    root = Path(shutil.copytree(sysroot, tmp_path / "root"))
    for path in root.rglob("*"):
        os.utime(path, (0, 0))
    os.utime(root / "lib/libvictim.so", (0, 1))
    done = convert(dump, "--comm", "lab-*", "--sysroot", root, "-v", "-o", tmp_path / "cores")
    assert done.returncode == 3
    assert f"{root}/lib/libc.so.6, which has its size and time; its build ID is not in the dump" in done.stderr
    assert f"{root}/lib/libvictim.so is not used: it has 0x4120 bytes of 1 (seconds since 1970)" in done.stderr
    copied = tmp_path / "cores/sysroot/lib/libc.so.6"
    assert copied.read_bytes() == (sysroot / "lib/libc.so.6").read_bytes()
    assert not copied.with_name("libvictim.so").exists()
    stacks, output = gdb_stacks(tmp_path / "cores", script(tmp_path / "cores", "lab-dynamic", "gdb"), tmp_path / "no")
    assert {"spin_here", "block_with_registers"} < {stack[0] for stack in stacks.values()}, output
    assert "by path, size and time, as the dump does not have the build ID: /bin/lab-dynamic, /lib/libc.so.6" in output
    assert "/lib/libvictim.so (build ID not known; 16672 bytes of 1970-01-01 00:00:00 UTC)" in output


def test_several_sysroots_are_tried_in_their_order(dump: Path, sysroot: Path, tmp_path: Path) -> None:
    """Each alone has too little; the one that has other files in the places of these comes too late to matter."""
    for name in ("bin", "lib"):
        (tmp_path / "programs" / name).mkdir(parents=True)
    shutil.copy(sysroot / "bin/lab-dynamic", tmp_path / "programs/bin/lab-dynamic")
    shutil.copy(sysroot / "bin/lab-static", tmp_path / "programs/lib/libc.so.6")
    words = ("bt", dump, "--comm", "lab-dynamic", "--debug-directory", tmp_path / "none", "--json")
    alone = json.loads(tasks(*words, "--sysroot", sysroot).stdout)
    both = json.loads(tasks(*words, "--sysroot", tmp_path / "programs", "--sysroot", sysroot).stdout)
    frames = [[frame["function"] for frame in stack["frames"]] for stack in both["stacks"]]
    assert frames == [[frame["function"] for frame in stack["frames"]] for stack in alone["stacks"]]
    assert any("level_c" in stack and "poll" in stack for stack in frames)


@pytest.mark.parametrize("program", PROGRAMS)
def test_gdb_shows_what_unwinding_found_by_other_means_than_call_frame_information(
    cores: Path, dump: Path, program: str
) -> None:
    """Without any file, its frames begin as those of vmcore-tasks bt, and it says by what they were found."""
    name = script(cores, program, "gdb")
    threads = rows(tasks("bt", dump, "--pid", name.split(".")[2], "--json").stdout)
    led_on = [t for t in threads if any(frame["found_by"] in GUESSES for frame in t["frames"])]
    assert led_on
    _, output = gdb_stacks(cores, name)
    assert "vmcore2core: no call frame information for /" in output
    assert ": frames come from frame pointers, and some may be missing" in output
    parts = re.split(r"^Thread \d+ \(.*LWP (\d+)\)*:?.*$", output, flags=re.MULTILINE)
    for tid, part in zip(parts[1::2], parts[2::2], strict=True):
        ours = [int(f["address"], 16) for t in led_on if t["tid"] == int(tid) for f in t["frames"][1:]]
        # Of the innermost frame gdb shows no address where a line of source begins there.
        shown = [int(address, 16) for address in re.findall(r"^#[1-9]\d* +(0x\w+)", part, re.MULTILINE)]
        assert shown[: len(ours)] == ours


def test_debug_packages_below_a_sysroot_are_used(cores: Path, sysroot: Path, tmp_path: Path) -> None:
    program = sysroot / "bin/lab-dynamic"
    shutil.copytree(sysroot, tmp_path / "root")
    subprocess.run([need("objcopy"), "--strip-debug", program, tmp_path / "root/bin/lab-dynamic"], check=True)
    name = script(cores, "lab-dynamic", "gdb")
    assert "programs/victim.c:" not in gdb_stacks(cores, name, tmp_path / "root")[1]
    debug = tmp_path / "packages" / debug_file(program)
    debug.parent.mkdir(parents=True)
    subprocess.run([need("objcopy"), "--only-keep-debug", program, debug], check=True)
    stacks, output = gdb_stacks(cores, name, f"{tmp_path}/root:{tmp_path}/packages")
    assert "programs/victim.c:" in output
    check(stacks, output, "lab-dynamic")


def debug_file(program: Path) -> str:
    """Return where a debug package has a program's separate debug file."""
    facts = facts_of(program)
    assert facts is not None
    assert facts.build_id is not None
    return f"usr/lib/debug/.build-id/{facts.build_id[:2]}/{facts.build_id[2:]}.debug"


def test_a_file_that_lacks_pages_gets_its_debug_file(sysroot: Path, tmp_path: Path) -> None:
    """The program's section headers and symbols are in no memory; a debug package has them."""
    program = sysroot / "bin/lab-dynamic"
    content = program.read_bytes()
    unwanted = {content[at : at + PAGE].ljust(PAGE, b"\0") for at in range(0x3000, len(content), PAGE)}
    assert without_pages(bundled(GUEST, tmp_path), tmp_path / "poor", unwanted) >= len(unwanted)
    assert convert(tmp_path / "poor", "--comm", "lab-*", "-o", tmp_path / "cores").returncode in (0, 3)
    name = script(tmp_path / "cores", "lab-dynamic", "gdb")
    plain = gdb_stacks(tmp_path / "cores", name, tmp_path / "nothing")[1]
    assert "programs/victim.c:" not in plain
    debug = tmp_path / "root" / debug_file(program)
    debug.parent.mkdir(parents=True)
    subprocess.run([need("objcopy"), "--only-keep-debug", program, debug], check=True)
    stacks, output = gdb_stacks(tmp_path / "cores", name, tmp_path / "root")
    assert "/bin/lab-dynamic (build ID 8727f96cdf9d6e8eda964dd86cb03cde126c398a; in part)" in output
    assert "programs/victim.c:" in output
    check(stacks, output, "lab-dynamic")


def test_lldb_says_once_where_it_guesses(cores: Path, sysroot: Path) -> None:
    name = script(cores, "lab-dynamic", "lldb")
    guess = "vmcore2core: no call frame information for /bin/lab-dynamic, /lib/libc.so.6"
    assert lldb_stacks(cores, name)[1].count(guess) == 1
    assert "lldb guesses" not in lldb_stacks(cores, name, sysroot)[1]
