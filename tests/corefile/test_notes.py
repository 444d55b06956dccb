"""Notes with the kernel's offsets, by the C compiler, eu-readelf and a kernel's own core."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.corefile.cabi import fields
from tests.corefile.snapshots import (
    AUXV,
    AUXV_32,
    GREGS_32,
    GREGS_64,
    absent,
    elf_notes,
    snapshot,
    snapshot_32,
    thread,
    vma,
    with_regsets,
    write,
)
from tests.needs import need
from vmcore2core.corefile.notes import nt_file, provenance, prpsinfo, prstatuses
from vmcore2core.process.model import AbsentReason, ProcessSnapshot, PsInfo, ThreadLeftOut, ThreadSnapshot

MAKERS = pytest.mark.parametrize(("bits", "make"), [(64, snapshot), (32, snapshot_32)], ids=["x86-64", "i386"])

PRSTATUS = (
    "pr_info.si_signo pr_info.si_code pr_info.si_errno pr_cursig pr_sigpend pr_sighold pr_pid pr_ppid pr_pgrp pr_sid "
    "pr_utime.tv_sec pr_utime.tv_usec pr_stime.tv_sec pr_stime.tv_usec pr_cutime.tv_sec pr_cutime.tv_usec "
    "pr_cstime.tv_sec pr_cstime.tv_usec pr_reg pr_fpvalid"
).split()
PRPSINFO = (
    "pr_state pr_sname pr_zomb pr_nice pr_flag pr_uid pr_gid pr_pid pr_ppid pr_pgrp pr_sid pr_fname pr_psargs".split()
)


def number(record: bytes, where: tuple[int, int]) -> int:
    offset, size = where
    return int.from_bytes(record[offset : offset + size], "little")


def prstatus(process: ProcessSnapshot, thread: ThreadSnapshot) -> bytes:
    """Return the note of a process's only thread."""
    [record] = prstatuses(process._replace(threads=(thread,)))
    return record


@MAKERS
def test_every_field_of_prstatus_is_where_the_compiler_has_it(bits: int, make: Any) -> None:
    at, size = fields("elf_prstatus", tuple(PRSTATUS), "sys/procfs.h", bits)
    gregs = GREGS_64 if bits == 64 else GREGS_32
    one = thread(
        4242,
        gregs=gregs,
        pr_cursig=11,
        pr_sigpend=0x1234_5678,
        pr_sighold=0x2345_6789,
        pr_ppid=4243,
        pr_pgrp=4244,
        pr_sid=4245,
        pr_utime=5_000_006_999,
        pr_stime=7_000_008_000,
        pr_cutime=9_000_010_000,
        pr_cstime=11_999_999_999,
    )
    one = with_regsets(one, ("CORE", 2))
    process = make(threads=(one,))
    record = prstatus(process, one)
    assert len(record) == size
    expected = {
        "pr_info.si_signo": 11,
        "pr_info.si_code": 0,
        "pr_info.si_errno": 0,
        "pr_cursig": 11,
        "pr_sigpend": 0x1234_5678,
        "pr_sighold": 0x2345_6789,
        "pr_pid": 4242,
        "pr_ppid": 4243,
        "pr_pgrp": 4244,
        "pr_sid": 4245,
        "pr_utime.tv_sec": 5,
        "pr_utime.tv_usec": 6,
        "pr_stime.tv_sec": 7,
        "pr_stime.tv_usec": 8,
        "pr_cutime.tv_sec": 9,
        "pr_cutime.tv_usec": 10,
        "pr_cstime.tv_sec": 11,
        "pr_cstime.tv_usec": 999_999,
        "pr_fpvalid": 1,
    }
    assert {name: number(record, at[name]) for name in expected} == expected
    offset, length = at["pr_reg"]
    assert record[offset : offset + length] == gregs


@MAKERS
def test_every_field_of_prpsinfo_is_where_the_compiler_has_it(bits: int, make: Any) -> None:
    at, size = fields("elf_prpsinfo", tuple(PRPSINFO), "sys/procfs.h", bits)
    info = PsInfo(
        pr_pid=4242,
        pr_fname=b"a comm of 15 by",
        pr_psargs=b"victim --with arguments",
        pr_state=1,
        pr_sname="S",
        pr_zomb=True,
        pr_nice=-5,
        pr_flag=0x0040_0100,
        pr_uid=1001,
        pr_gid=1002,
        pr_ppid=4243,
        pr_pgrp=4244,
        pr_sid=4245,
    )
    record = prpsinfo(make(psinfo=info))
    assert len(record) == size
    expected = {
        "pr_state": 1,
        "pr_sname": ord("S"),
        "pr_zomb": 1,
        "pr_nice": 256 - 5,
        "pr_flag": 0x0040_0100,
        "pr_uid": 1001,
        "pr_gid": 1002,
        "pr_pid": 4242,
        "pr_ppid": 4243,
        "pr_pgrp": 4244,
        "pr_sid": 4245,
        "pr_fname": int.from_bytes(b"a comm of 15 by", "little"),
        "pr_psargs": int.from_bytes(b"victim --with arguments", "little"),
    }
    assert {name: number(record, at[name]) for name in PRPSINFO} == expected


def test_fields_that_nothing_tells_are_zero_and_named() -> None:
    process = snapshot(vma(0x1000, 0x2000))
    at, _ = fields("elf_prpsinfo", tuple(PRPSINFO), "sys/procfs.h", 64)
    record = prpsinfo(process)
    for name in ("pr_state", "pr_sname", "pr_zomb", "pr_nice", "pr_flag", "pr_uid", "pr_gid", "pr_pgrp", "pr_psargs"):
        assert number(record, at[name]) == 0


def test_prpsinfo_cuts_what_is_too_long() -> None:
    at, _ = fields("elf_prpsinfo", tuple(PRPSINFO), "sys/procfs.h", 64)
    record = prpsinfo(snapshot(psinfo=PsInfo(1, b"n" * 40, pr_psargs=b"a" * 200)))
    name, args = at["pr_fname"], at["pr_psargs"]
    assert record[name[0] : name[0] + 16] == b"n" * 16
    # fill_psinfo(): ELF_PRARGSZ - 1 bytes at most, so that a NUL ends it.
    assert record[args[0] : args[0] + 80] == b"a" * 79 + b"\0"


@pytest.mark.parametrize("uid", [0x1_0000, 0x1_0001, 70_000, 0xFFFF_FFFE])
def test_a_uid_beyond_16_bits_never_reads_as_another_user_in_a_32_bit_core(uid: int) -> None:
    """SET_UID() in fs/binfmt_elf.c: high2lowuid() gives the overflow uid, 65534."""
    at, _ = fields("elf_prpsinfo", tuple(PRPSINFO), "sys/procfs.h", 32)
    record = prpsinfo(snapshot_32(psinfo=PsInfo(1, b"x", pr_uid=uid, pr_gid=uid)))
    assert (number(record, at["pr_uid"]), number(record, at["pr_gid"])) == (65534, 65534)


def test_a_uid_beyond_16_bits_is_whole_in_a_64_bit_core() -> None:
    at, _ = fields("elf_prpsinfo", tuple(PRPSINFO), "sys/procfs.h", 64)
    record = prpsinfo(snapshot(psinfo=PsInfo(1, b"x", pr_uid=70_000, pr_gid=0xFFFF_FFFE)))
    assert (number(record, at["pr_uid"]), number(record, at["pr_gid"])) == (70_000, 0xFFFF_FFFE)


def test_a_signal_set_keeps_64_bits_or_their_low_word() -> None:
    bits = 1 << 33 | 1 << 5
    wide, _ = fields("elf_prstatus", tuple(PRSTATUS), "sys/procfs.h", 64)
    narrow, _ = fields("elf_prstatus", tuple(PRSTATUS), "sys/procfs.h", 32)
    one = thread(pr_sigpend=bits, pr_sighold=bits)
    assert number(prstatus(snapshot(), one), wide["pr_sigpend"]) == bits
    one = thread(pr_sigpend=bits, pr_sighold=bits, gregs=GREGS_32)
    assert number(prstatus(snapshot_32(), one), narrow["pr_sighold"]) == 1 << 5


def test_an_x32_core_has_64_bit_registers_in_the_32_bit_structure() -> None:
    """struct x32_elf_prstatus of arch/x86/include/asm/elfcore-compat.h: 296 bytes in the cores of Debian's 7.2."""
    one = with_regsets(thread(tid=4242, gregs=GREGS_64), ("CORE", 2))
    record = prstatus(snapshot_32(e_machine=62, greg_size=8), one)
    assert len(record) == 296
    assert struct.unpack_from("<i", record, 24) == (4242,)
    assert record[72:288] == GREGS_64
    assert struct.unpack_from("<ii", record, 288) == (1, 0)


def test_pr_fpvalid_says_whether_floating_point_registers_follow() -> None:
    at, _ = fields("elf_prstatus", tuple(PRSTATUS), "sys/procfs.h", 64)
    assert number(prstatus(snapshot(), thread()), at["pr_fpvalid"]) == 0
    xstate_only = with_regsets(thread(), ("LINUX", 0x202))
    assert number(prstatus(snapshot(), xstate_only), at["pr_fpvalid"]) == 0


def kinds(core: Path) -> list[tuple[str, int]]:
    return [(name, n_type) for name, n_type, _ in elf_notes(core)]


def test_notes_stand_in_the_order_of_the_kernel(tmp_path: Path) -> None:
    """write_note_info(): the first thread's NT_PRSTATUS, the process's notes, its other registers; then the others'."""
    threads = tuple(with_regsets(thread(100 + i), ("CORE", 2), ("LINUX", 0x202)) for i in range(3))
    core = tmp_path / "core"
    write(snapshot(vma(0x1000, 0x2000, path=b"/bin/x", pgoff=0), threads=threads), core)
    per_thread = [("CORE", 1), ("CORE", 2), ("LINUX", 0x202)]
    process = [("CORE", 3), ("CORE", 6), ("CORE", 0x46494C45)]
    expected = [per_thread[0], *process, *per_thread[1:], *per_thread, *per_thread]
    assert [kind for kind in kinds(core) if kind[0] != "vmcore2core"] == expected
    assert kinds(core)[-1][0] == "vmcore2core"
    tids = [
        struct.unpack_from("<i", desc, 32)[0] for name, n_type, desc in elf_notes(core) if (name, n_type) == ("CORE", 1)
    ]
    assert tids == [100, 101, 102]


def test_a_process_without_registers_still_has_its_other_notes(tmp_path: Path) -> None:
    core = tmp_path / "core"
    left = (ThreadLeftOut(7, b"gone", "it is exiting"),)
    write(snapshot(vma(0x1000, 0x2000), threads=(), threads_left_out=left), core)
    assert kinds(core)[:2] == [("CORE", 3), ("CORE", 6)]
    assert ("CORE", 1) not in kinds(core)
    assert json.loads(elf_notes(core)[-1][2])["threads_left_out"] == {"7": "it is exiting"}


def test_notes_that_cannot_be_filled_are_left_out(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(vma(0x1000, 0x2000), auxv=None), core)
    assert kinds(core) == [("CORE", 1), ("CORE", 3), ("vmcore2core", 0x564D_4332)]


def test_auxv_is_as_the_process_had_it(tmp_path: Path) -> None:
    for make, auxv in ((snapshot, AUXV), (snapshot_32, AUXV_32)):
        core = tmp_path / make.__name__
        write(make(vma(0x1000, 0x2000)), core)
        assert [desc for name, n_type, desc in elf_notes(core) if (name, n_type) == ("CORE", 6)] == [auxv]


FILES = (
    vma(0x40_0000, 0x40_2000, path=b"/usr/bin/with space", pgoff=0),
    vma(0x40_2000, 0x40_3000, path=b"/usr/bin/with space", pgoff=7),
    vma(0x50_0000, 0x50_1000),
    vma(0x60_0000, 0x60_1000, path=b"/tmp/gone (deleted)", pgoff=1),
    vma(0x70_0000, 0x70_1000, path=b"/no/offset", pgoff=None),
    vma(0x80_0000, 0x80_1000, path=b"/lib/\xff\xfe", pgoff=3),
)


@pytest.mark.parametrize(("make", "word"), [(snapshot, "Q"), (snapshot_32, "I")], ids=["x86-64", "i386"])
def test_nt_file_lists_every_file_mapping_that_is_known(make: Any, word: str) -> None:
    """fill_files_note(): count, page_size, (start, end, pgoff) each, then the names."""
    rows = (
        (0x40_0000, 0x40_2000, 0),
        (0x40_2000, 0x40_3000, 7),
        (0x60_0000, 0x60_1000, 1),
        (0x80_0000, 0x80_1000, 3),
    )
    expected = struct.pack(f"<2{word}", 4, 4096) + b"".join(struct.pack(f"<3{word}", *row) for row in rows)
    expected += b"/usr/bin/with space\0/usr/bin/with space\0/tmp/gone (deleted)\0/lib/\xff\xfe\0"
    assert nt_file(make(*FILES)) == expected


def test_no_files_no_nt_file() -> None:
    assert nt_file(snapshot(vma(0x1000, 0x2000))) is None


def eu_readelf(core: Path, *options: str) -> str:
    result = subprocess.run(
        [need("eu-readelf"), *options, str(core)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


@MAKERS
def test_eu_readelf_reads_every_note_as_meant(bits: int, make: Any, tmp_path: Path) -> None:
    core = tmp_path / "core"
    info = PsInfo(4242, b"victim", pr_psargs=b"victim -x", pr_state=2, pr_sname="D", pr_uid=1001, pr_ppid=17)
    one = thread(4242, gregs=GREGS_64 if bits == 64 else GREGS_32, pr_ppid=17, pr_pgrp=18, pr_sid=19)
    write(make(FILES[0], FILES[2], threads=(one,), psinfo=info), core)
    text = eu_readelf(core, "-n")
    owners = re.findall(r"^  (\S+) +\d+  (.+)$", text, re.MULTILINE)
    assert owners[:4] == [("CORE", "PRSTATUS"), ("CORE", "PRPSINFO"), ("CORE", "AUXV"), ("CORE", "FILE")]
    assert "pid: 4242, ppid: 17, pgrp: 18, sid: 19" in text
    assert "state: 2, sname: D, zomb: 0, nice: 0" in text
    assert "uid: 1001, gid: 0, pid: 4242, ppid: 17, pgrp: 0, sid: 0" in text
    assert "fname: victim, psargs: victim -x" in text
    assert "PAGESZ: 4096" in text
    assert "1 files:" in text
    assert re.search(r"00400000-00402000 0+ 8192 +/usr/bin/with space", text)


def test_no_reader_takes_our_own_note_for_a_kernels(tmp_path: Path) -> None:
    """elfutils and BFD look at the type of a note under whatever name."""
    core = tmp_path / "core"
    write(snapshot(vma(0x1000, 0x2000)), core)
    (own,) = [line for line in eu_readelf(core, "-n").splitlines() if line.lstrip().startswith("vmcore2core")]
    assert not re.search(r"PRSTATUS|FPREGSET|PRPSINFO|AUXV|FILE|SIGINFO", own)


def test_what_is_missing_is_listed_before_what_was_left_out_on_purpose() -> None:
    left = absent(0x1000, 0x2000, AbsentReason.BEYOND_FILTER)
    lost = absent(0x9000, 0xA000)
    vmas = (vma(0x1000, 0x3000, absent=(left,)), vma(0x8000, 0xA000, absent=(lost,)))
    note = json.loads(provenance(snapshot(*vmas), {}))
    assert note["absent"] == [["0x9000", "0xa000", "excluded"], ["0x1000", "0x2000", "beyond_filter"]]
