"""Backtraces of small programs against gdb's, instruction by instruction.

Tests unwind/frames.py, unwind/process.py, unwind/stacks.py, unwind/threads.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unwind.processes import Recording, Stop, compile_c, record
from vmcore2core.unwind.frames import Backtrace, Found

SIGNAL = r"""
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
__attribute__((noinline)) void stop_here(void) { __asm__ volatile("" ::: "memory"); }
static void handler(int s) { stop_here(); __asm__ volatile(""); }
__attribute__((noinline)) int level_c(int n) { raise(SIGUSR1); return n + 1; }
__attribute__((noinline)) int level_b(int n) { volatile char room[200]; room[0] = n; return level_c(n) + room[0]; }
__attribute__((noinline)) int level_a(int n) {
  char *p = __builtin_alloca(n + 100); memset(p, n, n); __asm__ volatile("" :: "r"(p) : "memory");
  return level_b(n) + p[0]; }
static void *thread(void *a) { level_a(1); return 0; }
int main(void) {
  static char alt[65536]; stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt};
  struct sigaction sa = {.sa_handler = handler, .sa_flags = ON_STACK}; sigaction(SIGUSR1, &sa, 0);
  if (ON_STACK) { sigaltstack(&ss, 0); return level_a(1); }
  pthread_t t; pthread_create(&t, 0, thread, 0); pthread_join(t, 0); return 0; }
"""

STEPS = r"""
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
struct big { double v[8] __attribute__((aligned(64))); };
__attribute__((noinline)) double aligned(struct big b) {
  struct big c = b; __asm__ volatile("" :: "r"(&c) : "memory"); return c.v[3]; }
__attribute__((noinline)) static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
__attribute__((noinline)) int stop_here(int n) {
  struct big b = {{1, 2, 3, 4}}; int v[] = {3, 1, n, 2};
  qsort(v, 4, sizeof v[0], compare);
  return v[0] + (int)aligned(b); }
int main(int argc, char **argv) { return stop_here(argc) + atoi("12") ; }
"""


def backtrace(recording: Recording, stop: Stop) -> tuple[Backtrace, list[str | None]]:
    """Return our backtrace, and its names; None for a signal trampoline."""
    process = recording.process(stop)
    unwinder = process.unwinder()
    found = unwinder.backtrace(stop.registers)
    names: list[str | None] = []
    for frame in found.frames:
        image = unwinder.space.image(frame.lookup_pc)
        symbol = image.symbol(frame.lookup_pc) if image is not None else None
        names.append(None if frame.trampoline else symbol.name.decode() if symbol is not None else "??")
    return found, names


@pytest.mark.parametrize("stack", ["SA_ONSTACK", "0"])
@pytest.mark.parametrize(
    "options",
    [
        ["-fomit-frame-pointer"],
        ["-fno-omit-frame-pointer"],
        ["-fomit-frame-pointer", "-static"],
        ["-static-pie"],
        ["-no-pie", "-Wl,--hash-style=sysv"],
        ["-no-pie", "-Wl,--hash-style=gnu"],
    ],
    ids=" ".join,
)
def test_frames_are_gdbs_across_a_signal(tmp_path: Path, options: list[str], stack: str) -> None:
    program = compile_c(SIGNAL, tmp_path / "program", f"-DON_STACK={stack}", "-pthread", *options)
    recording = record(program)
    for stop in recording.stops[0]:
        found, names = backtrace(recording, stop)
        assert [frame.pc for frame in found.frames] == stop.pcs
        assert [frame.trampoline for frame in found.frames] == [frame["signal"] for frame in stop.frames]
        assert found.complete, found.end
        ours = {"stop_here", "handler", "level_a", "level_b", "level_c", "main", "thread", "_start"}
        assert [name for name in names if name in ours] == [name for name in stop.names if name in ours]
    last = recording.stops[0][-1]
    assert "level_c" in last.names
    assert None in last.names


def test_every_instruction_of_prologues_plt_and_lazy_binding_unwinds_as_in_gdb(tmp_path: Path) -> None:
    program = compile_c(STEPS, tmp_path / "program", "-fomit-frame-pointer", "-Wl,-z,lazy", "-mno-red-zone")
    recording = record(program, steps=400)
    assert len(recording.stops) == 401
    wrong = []
    for (stop,) in recording.stops:
        found, _ = backtrace(recording, stop)
        if [frame.pc for frame in found.frames] != stop.pcs or not found.complete:
            wrong.append((hex(stop.pcs[0]), stop.names[0], found.end))
    assert wrong == []
    linker = [line.split() for line in recording.maps if "/ld-" in line]
    low, high = int(linker[0][0].split("-")[0], 16), int(linker[-1][0].split("-")[1], 16)
    innermost = [(stop.pcs[0], stop.names[0] or "") for (stop,) in recording.stops]
    assert any(low <= pc < high for pc, _ in innermost)
    assert any(name.endswith("@plt") for _, name in innermost)


NO_RETURN = r"""
#include <stdlib.h>
__attribute__((noinline, noreturn)) void stop_here(void) { __asm__ volatile(""); exit(0); }
__attribute__((noinline, noreturn)) void last(int n) { volatile char room[300]; room[n] = 1; stop_here(); }
__asm__(".type other,@function\nother:\n.cfi_startproc\n.cfi_def_cfa_offset 4096\nnop\nret\n"
        ".cfi_endproc\n.size other,.-other\n");
int main(int argc, char **argv) { last(argc); }
"""


def test_a_call_that_ends_a_function_belongs_to_that_function(tmp_path: Path) -> None:
    program = compile_c(NO_RETURN, tmp_path / "program", "-fno-align-functions", "-fno-toplevel-reorder")
    recording = record(program)
    (stop,) = recording.stops[0]
    found, names = backtrace(recording, stop)
    assert stop.names[:3] == ["stop_here", "last", "main"]
    assert names[:3] == stop.names[:3]
    assert [frame.pc for frame in found.frames] == stop.pcs
    # The return address is the first byte of the next function, which has other rules.
    image = recording.process(stop).space().image(stop.pcs[1])
    assert image is not None
    symbol = image.symbol(stop.pcs[1])
    assert symbol is not None
    assert symbol.name == b"other"


def test_a_stripped_program_keeps_its_frames_and_loses_its_names(tmp_path: Path) -> None:
    program = compile_c(SIGNAL, tmp_path / "program", "-DON_STACK=SA_ONSTACK", "-pthread", "-s")
    unstripped = compile_c(SIGNAL, tmp_path / "names", "-DON_STACK=SA_ONSTACK", "-pthread")
    recording = record(unstripped)
    (stop,) = recording.stops[0]
    recording.maps = [line.replace(str(unstripped), str(program)) for line in recording.maps]
    found, names = backtrace(recording, stop)
    assert [frame.pc for frame in found.frames] == stop.pcs
    assert not {"level_a", "level_b", "level_c", "main"} & set(names)
    assert "raise" in names  # .dynsym


def test_how_each_frame_was_found(tmp_path: Path) -> None:
    program = compile_c(SIGNAL, tmp_path / "program", "-DON_STACK=SA_ONSTACK", "-pthread")
    recording = record(program)
    (stop,) = recording.stops[0]
    found, _ = backtrace(recording, stop)
    after = next(i for i, frame in enumerate(found.frames) if frame.trampoline) + 1
    assert found.frames[0].found is Found.REGISTERS
    assert found.frames[after].found is Found.SIGNAL_CFI
    assert found.frames[after].exact
    others = [frame.found for i, frame in enumerate(found.frames) if i not in (0, after)]
    assert set(others) == {Found.CFI}
