"""Frames of code that has no call frame information; the program's source says what must be found.

Tests unwind/checks.py, unwind/cursor.py, unwind/unwinder.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unwind.processes import Recording, Stop, compile_c, record, spec
from vmcore2core.unwind.frames import Found
from vmcore2core.unwind.unwinder import Unwinder

# crash() calls address 0; the handler's return address is a trampoline that no call frame information describes.
SOURCE = r"""
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>
struct ksigaction { void (*handler)(int); unsigned long flags; void (*restorer)(void); unsigned long mask; };
void restorer(void);
__asm__(".text\n.globl restorer\n.type restorer,@function\nrestorer: " RESTORE "; syscall\n.size restorer,.-restorer");
__attribute__((noinline)) void stop_here(void) { __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) static void handler(int s) { stop_here(); __asm__ volatile(""); }
void (*volatile nothing)(void);
__attribute__((noinline)) int crash(int n) { nothing(); return n + 1; }
__attribute__((noinline)) int level_b(int n) { volatile char room[200]; room[0] = n; return crash(n) + room[0]; }
__attribute__((noinline)) int level_a(int n) { return level_b(n) + 1; }
int main(void) {
  struct ksigaction sa = {handler, SA_RESTORER_FLAG, restorer, 0};
  syscall(SYS_rt_sigaction, SIGSEGV, &sa, NULL, 8);
  return level_a(1); }
"""
NO_CFI = [
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
]
RESTORE = ["mov $15, %rax", "movl $15, %eax"]


def stopped(tmp_path: Path, *options: str, restore: str = RESTORE[0]) -> tuple[Recording, Stop]:
    program = compile_c(
        SOURCE, tmp_path / "program", *NO_CFI, "-DSA_RESTORER_FLAG=0x04000000", f'-DRESTORE="{restore}"', *options
    )
    recording = record(program)
    return recording, recording.stops[0][0]


def without_code(recording: Recording, stop: Stop) -> Unwinder:
    """Return an unwinder that follows no instructions, as where capstone is not installed."""
    return Unwinder(spec()._replace(frames_by_code=None), recording.process(stop).space())


def names_and_means(recording: Recording, stop: Stop) -> tuple[list[str], list[Found], bool, str]:
    unwinder = without_code(recording, stop)
    found = unwinder.backtrace(stop.registers)
    names = []
    for frame in found.frames:
        image = unwinder.space.image(frame.lookup_pc)
        symbol = image.symbol(frame.lookup_pc) if image is not None else None
        names.append(symbol.name.decode() if symbol is not None else "??")
    return names, [frame.found for frame in found.frames], found.complete, found.end


@pytest.mark.parametrize("restore", RESTORE)
def test_frame_pointers_trampoline_and_a_call_of_nothing_lead_to_main(tmp_path: Path, restore: str) -> None:
    recording, stop = stopped(tmp_path, restore=restore)
    names, means, complete, end = names_and_means(recording, stop)
    assert names[:8] == ["stop_here", "handler", "restorer", "??", "crash", "level_b", "level_a", "main"]
    assert means[:8] == [
        Found.REGISTERS,
        Found.STACK_POINTER,  # stop_here pushes nothing
        Found.FRAME_POINTER,
        Found.SIGNAL,
        Found.STACK_POINTER,
        Found.FRAME_POINTER,
        Found.FRAME_POINTER,
        Found.FRAME_POINTER,
    ]
    # Where libc has no frame pointers, what main saved as one is any number, and is not believed.
    if len(names) == 8:
        assert not complete
        assert "there is no saved one and a return address" in end


def test_the_registers_that_a_signal_interrupted_are_the_kernels(tmp_path: Path) -> None:
    recording, stop = stopped(tmp_path)
    found = recording.process(stop).unwinder().backtrace(stop.registers)
    interrupted = found.frames[3]
    assert interrupted.pc == 0
    assert interrupted.exact
    # Everything is known again: 16 general registers and the program counter.
    assert sorted(interrupted.registers) == list(range(17))
    assert interrupted.sp == interrupted.registers[7]
    crash = found.frames[4]
    assert crash.sp == interrupted.sp + 8


def test_after_frame_pointers_no_other_register_is_known(tmp_path: Path) -> None:
    recording, stop = stopped(tmp_path)
    found = without_code(recording, stop).backtrace(stop.registers)
    level_a = found.frames[6]
    assert sorted(level_a.registers) == [6, 7, 16]  # rbp, rsp, rip


def test_a_frame_pointer_that_is_none_ends_the_stack_with_a_sentence(tmp_path: Path) -> None:
    recording, stop = stopped(tmp_path)
    process = recording.process(stop)
    for rbp, sentence in (
        (0x1234, "is not on the stack"),
        (stop.registers["rsp"] - 64, "is not on the stack"),
        (stop.registers["rsp"] + 1, "is not on the stack"),
    ):
        found = process.unwinder().backtrace({**stop.registers, "rbp": rbp, "rsp": stop.registers["rsp"] | 1})
        assert len(found.frames) == 1
        assert not found.complete
        assert sentence in found.end


def test_unknown_registers_stay_unknown(tmp_path: Path) -> None:
    recording, stop = stopped(tmp_path)
    process = recording.process(stop)
    without = {name: value for name, value in stop.registers.items() if name != "rbp"}
    found = process.unwinder().backtrace({**without, "rsp": stop.registers["rsp"] | 1})
    assert "the frame pointer is not known" in found.end
    assert process.unwinder().backtrace({"rip": 1}).end == "the stack pointer is not known"
    assert process.unwinder().backtrace({}).frames == ()


def test_the_limit_is_kept(tmp_path: Path) -> None:
    recording, stop = stopped(tmp_path)
    found = recording.process(stop).unwinder().backtrace(stop.registers, limit=3)
    assert len(found.frames) == 3
    assert not found.complete
    assert found.end == "there are more than 3 frames"
