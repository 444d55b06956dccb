"""Redacted memory is gone and listed, what backtraces need stays, and nothing else changes.

Tests blank_secrets.py, unwind/extents.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.corefile.snapshots import PAGE, Pages
from tests.e2e.cores import Core
from tests.e2e.debuggers import gdb, gdb_backtraces, in_order
from tests.e2e.guests import FIXTURES, PROGRAMS, convert, unpacked_sysroot
from tests.process.scene import CODE, HEAP, STACK, Scene, frame, simple, user_regs
from vmcore2core.addresses import UserAddr
from vmcore2core.errors import TaskError, UsageError
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.model import AbsentReason, TagRun, Vma
from vmcore2core.process.redact import (
    FRAME_SLACK,
    SIGNAL_SLACK,
    BlankedStream,
    Frames,
    Redaction,
    ThreadFrames,
    parse_redaction,
    redact,
)
from vmcore2core.process.snapshot import Captured
from vmcore2core.session import Session
from vmcore2core.unwind.extents import thread_frames

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
        with pytest.raises(UsageError, match=r"expected stacks, no-files, no-anon, no-env, secrets, secret:.*, or a p"):
            parse_redaction([word])


def no_frames(_captured: Captured) -> Iterator[ThreadFrames]:
    yield from ()


def applied(redaction: Redaction, scene: Scene, frames: Frames | None = None) -> Captured:
    processes = scene.processes()
    leader = processes.find(100)
    unwound = frames or partial(thread_frames, arch=processes.kernel.arch)
    once = redact(redaction, processes, leader, processes.capture(leader), unwound)
    again = redact(redaction, processes, leader, once, unwound)
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


@pytest.mark.parametrize("rsp", [STACK + 0x2000, STACK + 0x2008, STACK + 0x2FF8])
def test_the_page_below_a_stack_pointer_stays_for_its_red_zone(rsp: int) -> None:
    """System V ABI for x86-64, 3.2.2: a leaf function has 128 bytes below it without moving the pointer."""
    scene = Scene()
    mm = scene.mm((CODE, CODE + 0x2000, 5), (STACK, STACK + 0x4000, 3), start_stack=STACK + 0x3000)
    scene.group(scene.task(100, top=frame(user_regs(100, rsp=rsp))), mm=mm)
    found = absent(applied(Redaction(anonymous=True), scene))
    assert found == [
        (CODE, CODE + 0x2000, AbsentReason.REDACTED),
        (STACK, STACK + 0x1000, AbsentReason.REDACTED),
    ]


def test_a_pattern_takes_all_of_a_mapping() -> None:
    found = absent(applied(Redaction(patterns=("[heap]",)), simple()))
    assert found == [(HEAP, HEAP + 0x4000, AbsentReason.REDACTED)]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("/memfd:victim", "/memfd:victim (deleted)", True),
        ("/memfd:*", "/memfd:victim (deleted)", True),
        ("/memfd:victim (deleted)", "/memfd:victim (deleted)", True),
        ("/memfd:victim (deleted)", "/memfd:victim", False),
        ("/memfd:vict", "/memfd:victim (deleted)", False),
        ("[hea*]", "[heap]", True),
        ("[anon:*]", "[anon:keys]", True),
        ("[heap]", "[heap]", True),
        ("[heap]", "h", False),
        ("/a[12]", "/a2", True),
    ],
)
def test_a_name_matches_with_and_without_deleted_and_a_bracket_is_one(pattern: str, name: str, matches: bool) -> None:
    path, plain = (name.encode(), "") if name.startswith("/") else (None, name)
    vma = Vma(UserAddr(0x1000), UserAddr(0x2000), 4, path=path, name=plain)
    snapshot = simple().capture().snapshot._replace(vmas=(vma,))
    assert Redaction(patterns=(pattern,)).unmatched(snapshot) == (() if matches else (pattern,))


def stay(captured: Captured, start: int, end: int) -> list[tuple[int, int]]:
    """Return the bytes of a mapping that are in the core as they were."""
    gone = [(low, high) for low, high, _ in absent(captured)] + list(captured.snapshot.blanked)
    left, at = [], start
    for low, high in sorted((low, high) for low, high in gone if low < end and high > start):
        if low > at:
            left.append((at, low))
        at = max(at, high)
    return left + ([(at, end)] if at < end else [])


@pytest.mark.parametrize(("complete", "signal"), [(True, False), (True, True), (False, False)])
def test_of_a_heap_with_a_stack_in_it_only_the_frames_stay(complete: bool, signal: bool) -> None:
    """A goroutine, a coroutine, sigaltstack(2) with memory of malloc(3)."""
    scene = simple()
    for at in range(HEAP, HEAP + 0x4000, PAGE):
        scene.image.user_page(at, b"x" * PAGE)
    low, high = HEAP + 0x1800, HEAP + 0x1900

    def frames(_captured: Captured) -> Iterator[ThreadFrames]:
        yield ThreadFrames(100, ((low, False), (high, signal)), complete=complete)

    found = applied(Redaction(anonymous=True), scene, frames)
    end = high + (SIGNAL_SLACK if signal else FRAME_SLACK)
    assert stay(found, HEAP, HEAP + 0x4000) == [(HEAP, end)]  # from the page below the stack pointer's
    said = [notice for notice in found.snapshot.notices if notice.startswith("--redact keeps")]
    assert f"--redact keeps {end - HEAP:#x} bytes of {HEAP:#x}-{HEAP + 0x4000:#x} ([heap]): stacks" in said
    assert any("it cannot be unwound further" in notice for notice in said) == (not complete)


def test_the_stack_of_a_thread_that_does_not_unwind_stays_where_a_guard_says_that_it_is_one() -> None:
    scene = Scene()
    guard, top = 0x7F00_0000_0000, 0x7F00_0000_5000
    mm = scene.mm((guard, guard + 0x1000, 0), (guard + 0x1000, top, 3), start_stack=STACK)
    scene.group(scene.task(100), mm=mm)
    for at in range(guard + 0x1000, top, PAGE):
        scene.image.user_page(at, b"x" * PAGE)

    def frames(_captured: Captured) -> Iterator[ThreadFrames]:
        yield ThreadFrames(100, ((guard + 0x3800, False),), complete=False)

    assert stay(applied(Redaction(anonymous=True), scene, frames), guard + 0x1000, top) == [(guard + 0x2000, top)]


def environ_at(session: Session, leader: StructView) -> tuple[int, int]:
    owner = session.processes.mm_of(leader)
    return owner.ulong("env_start"), owner.ulong("env_end")


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (-4, -4), (7, None), (None, -3), (1 << 30, 1 << 30), (None, -1000), (-100_000, -99_000)],
)
def test_what_the_kernel_and_what_the_stack_say_of_the_environment_is_blanked(
    start: int | None, end: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setproctitle(3bsd), CRIU and prctl(2) change what the kernel has of it; so does damage."""
    with Session([DUMP]) as session:
        leader = session.processes.find(86)
        true = environ_at(session, leader)
        told = [true[1] + (end or 0) if at is None else true[1] + at for at in (start, end)]
        told[0] = true[0] if start is None else told[0]
        real = StructView.find_uint

        def find_uint(self: StructView, name: str, *more: Any, **named: Any) -> int | None:
            values = {"env_start": told[0], "env_end": told[1]}
            return values[name] if name in values else real(self, name, *more, **named)

        monkeypatch.setattr(StructView, "find_uint", find_uint)
        captured = session.processes.capture(leader)
        found = redact(Redaction(environment=True), session.processes, leader, captured, no_frames)
    blanked = found.snapshot.blanked
    assert any(low <= true[0] and true[1] <= high for low, high in blanked)
    if told[0] < told[1]:
        assert any(low <= told[0] and told[1] <= high for low, high in blanked)


def test_an_environment_that_only_the_kernel_knows_and_nothing_confirms_is_no_core() -> None:
    scene = Scene()
    scene.image.table.offsets["mm_struct"] |= {"env_start": (928, 8), "env_end": (936, 8)}
    mm = scene.mm((STACK, STACK + 0x3000, 3), env_start=STACK + 0x100, env_end=STACK + 0x200)
    scene.group(scene.task(100), mm=mm)
    with pytest.raises(TaskError, match="blank its environment, and where that is"):
        applied(Redaction(environment=True), scene)


@pytest.mark.parametrize("options", [["--pid", "86"], ["--all"], ["--all", "--dry-run"], ["--all", "--jobs", "2"]])
@pytest.mark.parametrize("pattern", ["/dev/shmm/*", "[hep]"])
def test_a_pattern_that_matches_nothing_is_an_error_before_anything_is_written(
    options: list[str], pattern: str, tmp_path: Path
) -> None:
    result = convert(DUMP, *options, "-o", tmp_path / "out", "--redact", "no-env", "--redact", pattern)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"--redact {pattern!r} matches no mapping of any process, so nothing is written" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_nothing_of_one_process_is_said_and_the_status_is_that_of_something_missing(
    tmp_path: Path,
) -> None:
    result = convert(DUMP, "--all", "-o", tmp_path, "--redact", "/memfd:victim")
    assert result.returncode == 3
    assert result.stderr == "vmcore2core: --redact '/memfd:victim' matches no mapping of 1 of 3 processes: 1\n"
    (core,) = tmp_path.glob("core.init.*[0-9]")
    assert "--redact '/memfd:victim' matches none of its mappings" in str(note_of(Core(core))["notices"])
    single = convert(DUMP, "--pid", "86", "-o", tmp_path / "single", "--redact", "/memfd:victim", "--redact", "[hea*]")
    assert (single.returncode, single.stderr) == (0, "")
    reasons = [row[2] for row in note_of(Core(tmp_path / "single"))["absent"]]  # type: ignore[attr-defined]
    assert reasons.count("redacted") >= 2


def test_memory_tags_of_a_mapping_go_with_it() -> None:
    scene = simple()
    processes = scene.processes()
    leader = processes.find(100)
    captured = processes.capture(leader)
    code, heap = (TagRun(UserAddr(at), UserAddr(at + PAGE), bytes([at >> 16]), 0x7000_0002) for at in (CODE, HEAP))
    tagged = captured._replace(snapshot=captured.snapshot._replace(tags=(code, heap)))
    assert redact(Redaction(patterns=("[heap]",)), processes, leader, tagged, no_frames).snapshot.tags == (code,)
    assert redact(Redaction(anonymous=True), processes, leader, tagged, no_frames).snapshot.tags == ()


def test_without_knowing_where_the_environment_is_there_is_no_core() -> None:
    with pytest.raises(TaskError, match="blank its environment, and where that is"):
        applied(Redaction(environment=True), simple())


@pytest.mark.parametrize(("start", "end"), [(STACK + 0x2000, STACK + 0x1000), (0x1000, 0x7FFF_0000_0000)])
def test_an_environment_that_cannot_be_is_refused(start: int, end: int) -> None:
    scene = Scene()
    scene.image.table.offsets["mm_struct"] |= {"env_start": (928, 8), "env_end": (936, 8)}
    mm = scene.mm((STACK, STACK + 0x3000, 3), env_start=start, env_end=end)
    scene.group(scene.task(100), mm=mm)
    with pytest.raises(TaskError, match="blank its environment, and where that is"):
        applied(Redaction(environment=True), scene)


def test_bytes_are_blanked_across_pages_and_batches() -> None:
    pages = {0x1000 + PAGE * i: bytes([i + 1]) * PAGE for i in range(6)}
    stream = BlankedStream(Pages(pages, batch=2), [(0x1010, 0x1020), (0x2FF0, 0x5004)], PAGE)
    found: dict[int, bytes] = {}
    for vaddr, rows in stream.batches([(0x1000, 0x7000)]):
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
