"""s390 stand-alone dumps."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.builders.elfdump import page
from tests.builders.s390_dump import END, MAGIC, MAGIC_EXT, build_s390, build_s390_ext, header, stored
from tests.containers.contract import check_contract, read
from tests.e2e.guests import bundled
from vmcore2core.addresses import AddressRange
from vmcore2core.arch.s390x.machine import ARCH
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import DumpError, FormatError, Vmcore2coreError
from vmcore2core.kernel.sched import task_pid
from vmcore2core.session import Session

NR = 40
MEMORY = b"".join(page(n) for n in range(NR))
PAGES = {n: page(n) for n in range(NR)}
SEGMENTS = [(0x2000, MEMORY[0x2000:0x5000]), (0x8000, MEMORY[0x8000:0x28000])]
HAVE = {n: page(n) for n in (*range(2, 5), *range(8, 40))}


def dump(tmp_path: Path, raw: bytes) -> DumpContainer:
    (tmp_path / "dump").write_bytes(raw)
    return open_container([tmp_path / "dump"])


def test_all_memory_is_one_segment(tmp_path: Path) -> None:
    with dump(tmp_path, build_s390(MEMORY)) as container:
        assert (container.DOC.name, container.warnings, container.notes) == ("s390", [], ())
        assert (container.e_machine, container.byte_order) == (22, "big")
        assert container.memory_ranges() == (AddressRange(0, NR * 4096),)
        check_contract(container, PAGES)


def test_what_no_segment_has_was_zeros(tmp_path: Path) -> None:
    with dump(tmp_path, build_s390_ext(48 * 4096, SEGMENTS)) as container:
        assert container.warnings == []
        check_contract(container, HAVE)
        states, rows = read(container, 0, 5, 47, 48)
        assert states == [PageState.ZERO, PageState.ZERO, PageState.ZERO, PageState.MISSING]
        assert rows[:3] == [bytes(4096)] * 3


def test_registers_are_those_of_the_lowcore(tmp_path: Path) -> None:
    """Each register slot has its own name."""
    names = [f"{n:>8}".encode() for n in ("pswm", "pswa", *(f"gpr{i}" for i in range(16)))]
    regs = b"".join(names) + b"".join(f"a{i:>3}".encode() for i in range(16)) + bytes(8)
    floats = b"fpc!" + bytes(4) + b"".join(f"{f'fpr{i}':>8}".encode() for i in range(16))
    ctrs = b"".join(f"{f'ctr{i}':>8}".encode() for i in range(16))
    memory = bytearray(MEMORY)
    memory[0x4000:0x6000] = stored(bytes(0x2000), regs, floats, ctrs, 0x4000)
    wide = b"".join(floats[8 + 8 * i : 16 + 8 * i] + f"{f'low{i}':>8}".encode() for i in range(16))
    wide += b"".join(f"{f'vx{i}':>16}".encode() for i in range(16, 32))
    memory[0x51B0:0x51B8] = struct.pack(">Q", 0x9400)
    memory[0x9400:0x9600] = wide
    for raw in (build_s390(bytes(memory), [0x4000]), build_s390_ext(len(memory), [(0, bytes(memory))], [0x4000])):
        with dump(tmp_path, raw) as container:
            assert container.warnings == []
            notes = {n.n_type: n.desc for n in container.notes}
        assert notes[1][112:328] == regs
        assert (notes[2], notes[0x305], notes[0x304]) == (floats, struct.pack(">I", 0x4000), ctrs)
        assert notes[0x309] == b"".join(f"{f'low{i}':>8}".encode() for i in range(16))
        assert notes[0x30A] == wide[256:]
    (note,) = ARCH.cpus.notes(tuple(container.notes))
    assert (note.regs["prefix"], note.regs["r7"]) == (0x4000, int.from_bytes(b"    gpr7", "big"))
    memory[0x9400] ^= 1
    with dump(tmp_path, build_s390(bytes(memory), [0x4000])) as container:
        assert {n.n_type for n in container.notes} == {1, 2, 0x304, 0x305}


def test_registers_that_were_not_stored_are_none(tmp_path: Path) -> None:
    for prefix in (0x4000, 0x4001, 0x100_0000):
        with dump(tmp_path, build_s390(MEMORY, [prefix])) as container:
            assert container.notes == ()
            assert container.warnings == [
                f"the registers of the CPU with prefix {prefix:#x} were not stored in its lowcore"
            ]
    older = build_s390(MEMORY, [0x4000], patches={8: struct.pack(">I", 4)})
    with dump(tmp_path, older) as container:
        assert (container.notes, container.warnings) == ((), [])
    with dump(tmp_path, build_s390(b"LIVEDUMP" + MEMORY[8:], [0x4000])) as container:
        assert container.notes == ()
        assert "running machine" in container.warnings[0]


@pytest.mark.parametrize("extended", [False, True])
def test_the_cores_are_the_same(tmp_path: Path, extended: bool) -> None:
    """The bundled guest as a stand-alone dump, against QEMU's ELF: each process, running threads too, to the byte."""
    source = bundled("debian-7.2-s390x", tmp_path).rename(tmp_path / "vmcore")
    (tmp_path / "s390").mkdir()
    with open_container([source]) as container:
        size = container.memory_ranges()[-1].end
        pages = np.zeros((size // 4096, 4096), np.uint8)
        container.read_pages(np.arange(len(pages), dtype=np.uint64), pages)
        memory = bytearray(pages.tobytes())
        cpus: list[dict[int, bytes]] = []
        for note in container.notes:
            cpus += [{}] if note.n_type == 1 else []
            cpus[-1][note.n_type] = note.desc
    prefixes = [int.from_bytes(cpu[0x305], "big") for cpu in cpus]
    for cpu, prefix in zip(cpus, prefixes, strict=True):
        lowcore = memory[prefix : prefix + 0x2000]
        memory[prefix : prefix + 0x2000] = stored(bytes(lowcore), cpu[1][112:], cpu[2], cpu[0x304], prefix)
        at = int.from_bytes(lowcore[0x11B0:0x11B8], "big")
        low = [cpu[2][8 + 8 * i : 16 + 8 * i] + cpu[0x309][8 * i : 8 * i + 8] for i in range(16)]
        memory[at : at + 512] = b"".join(low) + cpu[0x30A]
    mib = 1 << 20
    if extended:
        parts = [(at, bytes(memory[at : at + mib])) for at in range(0, size, mib) if any(memory[at : at + mib])]
        (tmp_path / "s390" / "vmcore").write_bytes(build_s390_ext(size, parts, prefixes))
    else:
        (tmp_path / "s390" / "vmcore").write_bytes(build_s390(bytes(memory), prefixes))
    running = 0
    with Session([source]) as theirs, Session([tmp_path / "s390" / "vmcore"]) as ours:
        assert ours.warnings == []
        for leader in ours.processes.with_mm():
            mine = ours.extract(leader, tmp_path / "ours", CoreOptions(force=True))
            theirs.extract(theirs.processes.find(task_pid(leader)), tmp_path / "theirs", CoreOptions(force=True))
            assert mine.complete
            running += sum("crash note" in t.gregs_source for t in mine.snapshot.threads)
            assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert running


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (header(4096)[:4000], "df_s390_hdr is cut off"),
        (build_s390(MEMORY, patches={0xC: struct.pack(">I", 1)}), "hdr_size 1 at file offset 0xc"),
        (build_s390(MEMORY, patches={0x14: struct.pack(">I", 1)}), "page_size 1 at file offset 0x14"),
        (build_s390(MEMORY, patches={0x48: struct.pack(">I", 1)}), "arch 1 at file offset 0x48"),
        (build_s390(MEMORY, patches={0x18: struct.pack(">Q", 1 << 60)}), "mem_size 0x1000000000000000"),
        (build_s390(MEMORY, patches={0x5D: b"\2\1"}), "cpu_cnt 513"),
        (build_s390(MEMORY, patches={0x200: struct.pack(">Q", MAGIC)}), "one volume of a dump on several"),
        (header(4096, magic=MAGIC_EXT, patches={0x61: b"\1"}), "compressed s390 dump"),
        (build_s390_ext(0x28000, [])[:4096], "the first df_s390_dump_segm_hdr is cut off"),
        (build_s390_ext(0x28000, [(0x28000, page(1))]), "start 0x28000 and len 0x1000"),
        (build_s390_ext(0x28000, [SEGMENTS[1], SEGMENTS[0]]), "start 0x2000 and len 0x3000"),
        (build_s390_ext(0x28000, [(0x2800, page(1))]), "start 0x2800"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(DumpError) as refused:
        dump(tmp_path, raw)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_dump_without_its_end_says_so(tmp_path: Path) -> None:
    for raw in (build_s390(MEMORY, end=bytes(16)), build_s390_ext(48 * 4096, SEGMENTS, end=bytes(16))):
        with dump(tmp_path, raw) as container:
            assert "was not finished" in container.warnings[0]


def test_cut_off_wherever_it_is(tmp_path: Path) -> None:
    whole = build_s390_ext(48 * 4096, SEGMENTS)
    for size in [*range(8, 4200, 61), *range(4200, len(whole) - 1, 4093)]:
        with contextlib.suppress(FormatError), dump(tmp_path, whole[:size]) as container:
            assert container.warnings
            states, rows = read(container, *range(48))
            for pfn, state, row in zip(range(48), states, rows, strict=True):
                assert row == (HAVE.get(pfn, bytes(4096)) if state in (PageState.PRESENT, PageState.ZERO) else b"")
                assert pfn not in HAVE or state != PageState.ZERO


def test_the_end_marker_is_looked_for_behind_the_last_segment(tmp_path: Path) -> None:
    with dump(tmp_path, build_s390_ext(48 * 4096, SEGMENTS) + bytes(4096)) as container:
        assert container.warnings == []
    assert END.startswith(b"DUMP_END")
    with contextlib.suppress(Vmcore2coreError):
        dump(tmp_path, build_s390(MEMORY)[:9]).close()
