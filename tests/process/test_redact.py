"""What is to go is gone and said to be, what a debugger needs for backtraces stays, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.corefile.snapshots import PAGE, Pages
from tests.e2e.cores import Core
from tests.e2e.debuggers import gdb, gdb_backtraces, in_order
from tests.e2e.guests import FIXTURES, PROGRAMS, convert, unpacked_sysroot
from tests.process.scene import CODE, HEAP, STACK, Scene, simple
from vmcore2core.addresses import UserAddr
from vmcore2core.errors import TaskError, UsageError
from vmcore2core.process.capture import Captured
from vmcore2core.process.model import AbsentReason, TagRun
from vmcore2core.process.redact import BlankedStream, Redaction, parse_redaction, redact

GUEST = "debian-6.1-amd64"
DUMP = FIXTURES / GUEST / "vmcore"
TRUTH = FIXTURES / GUEST / "truth"


def test_profiles_and_patterns() -> None:
    assert parse_redaction([]) is None
    assert parse_redaction(["stacks"]) == Redaction(files=True, anonymous=True)
    assert parse_redaction(["no-files", "no-env"]) == Redaction(files=True, environment=True)
    assert parse_redaction(["no-anon"]) == Redaction(anonymous=True)
    assert parse_redaction(["/dev/shm/*", "[heap]"]) == Redaction(patterns=("/dev/shm/*", "[heap]"))
    for word in ("stack", "none", ""):
        with pytest.raises(UsageError, match="expected stacks, no-files, no-anon, no-env, or a pattern"):
            parse_redaction([word])


def applied(redaction: Redaction, scene: Scene) -> Captured:
    processes = scene.processes()
    leader = processes.find(100)
    once = redact(redaction, processes, leader, processes.capture(leader))
    again = redact(redaction, processes, leader, once)
    assert again.snapshot == once.snapshot
    return once


def absent(captured: Captured) -> list[tuple[int, int, AbsentReason]]:
    return [(run.start, run.end, run.reason) for vma in captured.snapshot.vmas for run in vma.absent]


def test_of_anonymous_memory_the_stack_stays_from_the_page_below_its_pointer() -> None:
    scene = simple()
    for at in range(STACK, STACK + 0x3000, PAGE):
        scene.image.user_page(at, b"stack")
    found = absent(applied(Redaction(anonymous=True), scene))
    # Nothing is mapped of a file here; rsp is in the stack's first page (user_regs), so all of it stays.
    assert found == [
        (CODE, CODE + 0x2000, AbsentReason.REDACTED),
        (HEAP, HEAP + 0x4000, AbsentReason.REDACTED),
    ]


def test_a_pattern_takes_all_of_a_mapping() -> None:
    found = absent(applied(Redaction(patterns=("[heap]",)), simple()))
    assert found == [(HEAP, HEAP + 0x4000, AbsentReason.REDACTED)]


def test_memory_tags_of_a_mapping_go_with_it() -> None:
    scene = simple()
    processes = scene.processes()
    leader = processes.find(100)
    captured = processes.capture(leader)
    code, heap = (TagRun(UserAddr(at), UserAddr(at + PAGE), bytes([at >> 16])) for at in (CODE, HEAP))
    tagged = replace(captured, snapshot=replace(captured.snapshot, tags=(code, heap)))
    assert redact(Redaction(patterns=("[heap]",)), processes, leader, tagged).snapshot.tags == (code,)
    assert redact(Redaction(anonymous=True), processes, leader, tagged).snapshot.tags == ()


def test_without_knowing_where_the_environment_is_there_is_no_core() -> None:
    with pytest.raises(TaskError, match="where its environment is"):
        applied(Redaction(environment=True), simple())


@pytest.mark.parametrize(("start", "end"), [(STACK + 0x2000, STACK + 0x1000), (0x1000, 0x7FFF_0000_0000)])
def test_an_environment_that_cannot_be_is_refused(start: int, end: int) -> None:
    scene = Scene()
    scene.image.table.offsets["mm_struct"] |= {"env_start": (928, 8), "env_end": (936, 8)}
    mm = scene.mm((STACK, STACK + 0x3000, 3), env_start=start, env_end=end)
    scene.group(scene.task(100), mm=mm)
    with pytest.raises(TaskError, match="where its environment is"):
        applied(Redaction(environment=True), scene)


def test_bytes_are_blanked_across_pages_and_batches() -> None:
    pages = {0x1000 + PAGE * i: bytes([i + 1]) * PAGE for i in range(6)}
    stream = BlankedStream(Pages(pages, batch=2), [(0x1010, 0x1020), (0x2FF0, 0x5004)], PAGE)
    found: dict[int, bytes] = {}
    for vaddr, rows in stream.batches(0x1000, 0x7000):
        found |= {int(v): row.tobytes() for v, row in zip(vaddr, rows, strict=True)}
    memory = bytearray(b"".join(pages[at] for at in sorted(pages)))
    memory[0x10:0x20] = bytes(0x10)
    memory[0x1FF0:0x4004] = bytes(0x4004 - 0x1FF0)
    assert b"".join(found[at] for at in sorted(found)) == bytes(memory)


def redacted(tmp_path: Path, *profiles: str) -> dict[str, Core]:
    words = [word for profile in profiles for word in ("--redact", profile)]
    result = convert(DUMP, "--comm", "lab-static", "--comm", "lab-dynamic", "-o", tmp_path, *words)
    assert (result.returncode, result.stderr) == (0, "")
    return {program: Core(next(tmp_path.glob(f"core.{program}.*[0-9]"))) for program in PROGRAMS}


def note_of(core: Core) -> dict[str, object]:
    raw = core.notes[-1][2]
    found: dict[str, object] = json.loads(raw)
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_environment_is_blanked_and_arguments_stay(program: str, tmp_path: Path) -> None:
    cores = redacted(tmp_path / "out", "no-env")
    environ = (TRUTH / f"{program}.environ").read_bytes()
    cmdline = (TRUTH / f"{program}.cmdline").read_bytes()
    path = next((tmp_path / "out").glob(f"core.{program}.*[0-9]"))
    assert len(environ) > 4
    whole = convert(DUMP, "--comm", program, "-o", tmp_path / "whole")
    assert whole.returncode == 0
    original = next((tmp_path / "whole").glob("core.*[0-9]")).read_bytes()
    ours = path.read_bytes()
    at = original.index(cmdline + environ)
    assert ours.count(environ) == original.count(environ) - 1
    note = note_of(cores[program])
    blanked = note["blanked"]
    assert isinstance(blanked, list)
    ((start, end),) = [(int(a, 16), int(b, 16)) for a, b in blanked]
    assert end - start == len(environ)
    expected = cmdline + bytes(len(environ)) + original[at + len(cmdline) + len(environ) :][:64]  # AT_EXECFN follows
    assert expected in ours
    assert original[at - 4096 : at] in ours


@pytest.mark.parametrize("program", PROGRAMS)
def test_backtraces_need_only_the_stacks(program: str, tmp_path: Path) -> None:
    redacted(tmp_path / "out", "stacks")
    sysroot = unpacked_sysroot(tmp_path / "sysroot")
    core = next((tmp_path / "out").glob(f"core.{program}.*[0-9]"))
    stacks = gdb_backtraces(gdb(core, "thread apply all bt", program=sysroot / "bin" / program, sysroot=sysroot))
    rows = [line.split("\t") for line in (TRUTH / f"{program}.tasks").read_text().splitlines()]
    known = json.loads((TRUTH / "expected.json").read_text())[program]
    for row in rows:
        assert in_order(known[row[1]], stacks[int(row[0])])
    assert core.stat().st_blocks * 512 < 200 << 10
