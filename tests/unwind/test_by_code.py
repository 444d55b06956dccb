"""Frames that a function's instructions tell, against its source and the compiler's call frame information.

Tests arch/x86/code.py, arch/ways.py.
"""

from __future__ import annotations

import itertools
import random
import subprocess
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES
from tests.unwind.processes import Recording, Stop, compile_c, need, record
from vmcore2core.arch.ways import STEPS_MAX
from vmcore2core.arch.x86.code import FP, frames_by_code
from vmcore2core.unwind.frames import Found
from vmcore2core.unwind.image import Image

pytest.importorskip("capstone")

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
__attribute__((noinline)) void stop_here(void) { __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) static int checked(char *text, int n) {
  char room[100];
  strcpy(room, text);
  if (n > 1000) abort();
  stop_here();
  return room[n & 7] + n;
}
__attribute__((noinline)) static int of_any_size(int n) {
  char *room = __builtin_alloca(n * 16 + 1);
  memset(room, 'x', n * 16);
  room[n * 16] = 0;
  int found = checked("seven..", n) + room[n];
  return found + (int)strlen(room);
}
__attribute__((noinline)) static int with_saved(int a, int b, int c, int d) {
  int sum = of_any_size(a);
  for (int i = 0; i < b; i++) sum += of_any_size(c + i) * d;
  return sum + a + b + c + d;
}
int main(int argc, char **argv) {
  int n = with_saved(argc, argc + 1, argc + 2, argc + 3);
  return argv[0] == NULL ? n : 0;
}
"""
AS_IT_IS = ["-fno-optimize-sibling-calls", "-fcf-protection=none"]
NO_CFI = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables", *AS_IT_IS]


def stopped(tmp_path: Path, *options: str) -> tuple[Recording, Stop]:
    recording = record(compile_c(SOURCE, tmp_path / "program", *NO_CFI, *options))
    return recording, recording.stops[0][0]


@pytest.mark.parametrize("level", ["-O0", "-O2"])
@pytest.mark.parametrize("option", ["-fomit-frame-pointer", "-fstack-protector-all"])
def test_without_call_frame_information_the_frames_are_those_of_the_source(
    tmp_path: Path, level: str, option: str
) -> None:
    recording, stop = stopped(tmp_path, level, option)
    unwinder = recording.process(stop).unwinder()
    found = unwinder.backtrace(stop.registers)
    names = []
    for frame in found.frames[:5]:
        image = unwinder.space.image(frame.lookup_pc)
        symbol = image.symbol(frame.lookup_pc) if image is not None else None
        names.append(None if symbol is None else symbol.name.decode().partition(".")[0])
    assert names == ["stop_here", "checked", "of_any_size", "with_saved", "main"]
    assert [frame.found for frame in found.frames[1:5]] == [Found.CODE] * 4


def test_registers_that_are_restored_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same process's call frame information tells what they must be."""
    recording = record(compile_c(SOURCE, tmp_path / "program", "-O2", *AS_IT_IS))
    stop = recording.stops[0][0]
    told = recording.process(stop).unwinder().backtrace(stop.registers).frames[:5]
    monkeypatch.setattr(Image, "fde", lambda _image, _pc: None)
    ours = recording.process(stop).unwinder().backtrace(stop.registers).frames[:5]
    assert {frame.found for frame in told[1:]} == {Found.CFI}
    assert {frame.found for frame in ours[1:]} == {Found.CODE}
    for mine, theirs in zip(ours[1:], told[1:], strict=True):
        assert mine.registers == {number: theirs.registers[number] for number in mine.registers}
        assert mine.registers.keys() >= {3, 6, 7, 12, 13, 14, 15, 16}  # rbx, rbp, rsp, r12 to r15, rip


def test_calls_of_a_real_library_have_the_frames_of_its_call_frame_information() -> None:
    """The static victim's libc: its frames are those that the compiler wrote down, or are not told."""
    path = FIXTURES / "sysroot/bin/lab-static"
    read, rows = reader(path), call_frames(path)
    calls, starts, told = calls_of(path)[::12], sorted(rows), 0
    for pc in calls:
        register, offset = rows[starts[bisect_right(starts, pc - 1) - 1]]
        sizes = sizes_told(read, pc)
        # Where the stack is restored from the frame pointer, only a process tells whether that is the same.
        if register == "rsp" and len(sizes) == 1 and (FP, 16) not in sizes:
            assert sizes == {(None, offset)}, hex(pc)
            told += 1
    assert len(calls) > 300
    assert told > 0.6 * len(calls)


def sizes_told(read: Callable[[int, int], bytes | None], pc: int) -> set[tuple[int | None, int]]:
    made = frames_by_code(read, pc, None, exact=False)
    return {(FP if one.base == FP else None, one.size) for one in made if not one.outermost}


def test_what_clears_the_frame_pointer_and_never_returns_has_no_caller() -> None:
    """As _start does: xor %ebp,%ebp; call *%rdx; hlt."""
    code = bytes.fromhex("31ed ffd2 f4".replace(" ", ""))
    made = list(frames_by_code(in_memory(code), 0x1000 + 4, None, exact=False))
    assert [one.outermost for one in made] == [True]


@pytest.mark.parametrize(
    ("code", "size", "base"),
    [
        ("4883c4085b5dc3", 32, None),  # add $8,%rsp; pop %rbx; pop %rbp; ret
        ("5dc9c3", None, None),  # pop %rbp; leave, with a frame pointer that is gone; ret
        ("488d65f05b415c5dc3", 16, FP),  # lea -0x10(%rbp),%rsp; pop %rbx; pop %r12; pop %rbp; ret
        ("c9c3", 16, FP),  # leave; ret
        ("7402f4f44883c418c3", 32, None),  # je over two hlt; add $0x18,%rsp; ret
        ("4883c410c3", None, None),  # add $0x10,%rsp; ret: the stack would not have been aligned at the call
        ("ffe0", None, None),  # jmp *%rax: a table of a switch, or another function
        ("4889dcc3", None, None),  # mov %rbx,%rsp; ret
        ("50c3", None, None),  # push %rax; ret: where to is not known
        ("eb fe".replace(" ", ""), None, None),  # it loops for ever
    ],
)
def test_single_instructions(code: str, size: int | None, base: int | None) -> None:
    made = list(frames_by_code(in_memory(bytes.fromhex(code)), 0x1000, None, exact=False))
    assert [(one.size, FP if one.base == FP else None) for one in made] == ([] if size is None else [(size, base)])


def test_a_register_that_is_pushed_and_popped_on_the_way_is_the_callers() -> None:
    # push %rbx; mov $1,%ebx; pop %rbx; add $0x18,%rsp; ret
    made = list(frames_by_code(in_memory(bytes.fromhex("53bb010000005b4883c418c3")), 0x1000, None, exact=False))
    assert [(one.size, dict(one.saved), one.changed) for one in made] == [(32, {}, frozenset())]


def test_what_is_not_known_ends_a_way() -> None:
    """A page that is missing; and no more steps than the bound, whatever the code."""
    assert list(frames_by_code(lambda _at, _size: None, 0x1000, None, exact=False)) == []
    assert list(frames_by_code(in_memory(bytes.fromhex("4883c418")), 0x1000, None, exact=False)) == []
    nops = bytes([0x90]) * (2 * STEPS_MAX) + bytes.fromhex("4883c408c3")
    assert list(frames_by_code(in_memory(nops), 0x1000, None, exact=False)) == []


def in_memory(code: bytes) -> Callable[[int, int], bytes | None]:
    """Return a reader of code at 0x1000, behind which is nothing."""

    def read(address: int, size: int) -> bytes | None:
        at = address - 0x1000
        found = code[max(at, 0) : max(at + size, 0)]
        # What is asked for at the end of the page is there as far as there is code.
        return found if at >= 0 and found else code[: max(at + size, 0)] or None

    return read


def reader(path: Path) -> Callable[[int, int], bytes | None]:
    content, loads = path.read_bytes(), []
    for line in subprocess.run(
        ["readelf", "-lW", path], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        words = line.split()
        if words[:1] == ["LOAD"]:
            loads.append(tuple(int(word, 16) for word in (words[1], words[2], words[4])))

    def read(address: int, size: int) -> bytes | None:
        for offset, start, length in loads:
            if start <= address and address + size <= start + length:
                at = offset + address - start
                return content[at : at + size]
        return None

    return read


def calls_of(path: Path) -> list[int]:
    """Return where each call comes back to, as objdump has it."""
    shown = subprocess.run(
        [need("objdump"), "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in shown.stdout.splitlines() if line.startswith(" ")]
    pairs = itertools.pairwise(lines)
    return [int(after[0][:-1], 16) for line, after in pairs if line[1:2] == ["call"]]


def call_frames(path: Path, register: str = "rsp", size: int = 8) -> dict[int, tuple[str, int]]:
    """Return what the CFA counts from, and how far, by the address from which on that holds: by readelf.

    Args:
        path: the file.
        register: the stack pointer's name.
        size: how far at a function's first instruction.
    """
    shown = subprocess.run([need("readelf"), "-wFN", path], capture_output=True, text=True, check=False).stdout
    found: dict[int, tuple[str, int]] = {}
    for block in shown.split(" FDE ")[1:]:
        lines = block.splitlines()
        start, _, end = lines[0].partition("pc=")[2].partition("..")
        found[int(start, 16)] = (register, size)
        found.setdefault(int(end, 16), ("", 0))
        for line in itertools.takewhile(str.strip, lines[1:]):
            if "LOC" in line:
                continue
            at, cfa = line.split()[:2]
            base, _, offset = cfa.partition("+")
            found[int(at, 16)] = (base, int(offset)) if offset.isdigit() else ("", 0)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_any_bytes_end_within_the_bound(seed: int) -> None:
    """What is told of them is a frame that lies above the stack pointer, if there is one at all."""
    code = random.Random(seed).randbytes(8192)
    for exact in (False, True):
        for made in frames_by_code(in_memory(code), 0x1000 + seed * 64, None, exact=exact):
            assert made.outermost or made.base == FP or made.size > 0
            assert made.changed.isdisjoint(made.saved)
