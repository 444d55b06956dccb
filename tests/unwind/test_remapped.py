"""Code that is in no file where it runs: text that was moved to other memory, and code that was made at run time."""

from __future__ import annotations

from pathlib import Path

from tests.unwind.processes import Recording, Stop, compile_c, record
from vmcore2core.unwind.frames import Backtrace, Found
from vmcore2core.unwind.unwinder import Unwinder

# As libhugetlbfs and some servers do it, but for the size of the pages.
REMAPPED = r"""
#define _GNU_SOURCE
#include <link.h>
#include <string.h>
#include <sys/mman.h>
__attribute__((noinline)) void stop_here(void) { __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) int level_b(int n) { volatile char room[200]; room[0] = n; stop_here(); return room[0]; }
__attribute__((noinline)) int level_a(int n) { return level_b(n) + 1; }
static int move(struct dl_phdr_info *info, size_t size, void *data) {
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
    unsigned long start = (info->dlpi_addr + p->p_vaddr) & -4096ul;
    unsigned long length = (info->dlpi_addr + p->p_vaddr + p->p_memsz + 4095 & -4096ul) - start;
    void *copy = mmap(0, length, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(copy, (void *)start, length);
    mremap(copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start);
  }
  return 1; }
int main(void) { dl_iterate_phdr(move, 0); return level_a(1) + 1; }
"""

# first() puts a return address on the stack without a call, and jumps to second(), which calls what it was given.
GENERATED = r"""
#include <string.h>
#include <sys/mman.h>
static const unsigned char code[] = {
  0x55, 0x48, 0x89, 0xe5,                    /* first: push %rbp; mov %rsp,%rbp */
  0x48, 0x8d, 0x05, 3, 0, 0, 0, 0x50,        /* lea after(%rip),%rax; push %rax */
  0xeb, 2,                                   /* jmp second */
  0x5d, 0xc3,                                /* after: pop %rbp; ret */
  0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3 }; /* second: push %rbp; mov %rsp,%rbp; call *%rdi; pop %rbp; ret */
__attribute__((noinline)) void stop_here(void) { __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) void helper(void) { volatile char room[100]; room[0] = 1; stop_here(); room[1] = 2; }
__attribute__((noinline)) int level_b(void (*made)(void (*)(void))) { made(helper); return 1; }
__attribute__((noinline)) int level_a(void (*made)(void (*)(void))) { return level_b(made) + 1; }
int main(void) {
  void *made = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(made, code, sizeof code);
  return level_a(made) + 1; }
"""


def found_in(recording: Recording, stop: Stop) -> tuple[Unwinder, Backtrace, list[str]]:
    unwinder = recording.process(stop).unwinder()
    found = unwinder.backtrace(stop.registers)
    names = []
    for frame in found.frames:
        image = unwinder.space.image(frame.lookup_pc)
        symbol = image.symbol(frame.lookup_pc) if image is not None else None
        names.append(symbol.name.decode() if symbol is not None else "??")
    return unwinder, found, names


def test_text_that_was_remapped_is_unwound_by_the_file_around_it(tmp_path: Path) -> None:
    program = compile_c(REMAPPED, tmp_path / "program", "-fomit-frame-pointer")
    recording = record(program)
    (stop,) = recording.stops[0]
    line = next(line for line in recording.maps if int(line.split("-")[0], 16) <= stop.pcs[0] < end_of(line))
    assert str(program) not in line  # it is other memory indeed
    unwinder, found, names = found_in(recording, stop)
    assert [frame.pc for frame in found.frames] == stop.pcs
    assert found.complete, found.end
    assert names[:4] == ["stop_here", "level_b", "level_a", "main"]
    assert {frame.found for frame in found.frames[1:]} == {Found.CFI}
    place = recording.process(stop).space().place(stop.pcs[0])
    assert place is not None
    assert place.name == str(program).encode()
    assert unwinder.space.image(int(line.split("-")[0], 16)) is not None


def test_code_that_was_generated_is_unwound_by_frame_pointers(tmp_path: Path) -> None:
    program = compile_c(GENERATED, tmp_path / "program", "-fno-omit-frame-pointer")
    recording = record(program)
    (stop,) = recording.stops[0]
    _, found, names = found_in(recording, stop)
    assert names[:7] == ["stop_here", "helper", "??", "??", "level_b", "level_a", "main"]
    assert [frame.found for frame in found.frames[3:5]] == [Found.FRAME_POINTER] * 2
    assert found.complete, found.end
    # An address in a file that follows no call is still not believed.
    start = found.frames[2].pc & -4096
    (tmp_path / "code").write_bytes(bytes(4096))
    recording.maps = [f"{line} {tmp_path}/code" if line.startswith(f"{start:x}-") else line for line in recording.maps]
    process = recording.process(stop)
    short = process.unwinder().backtrace(stop.registers)
    assert len(short.frames) == 3
    assert not short.complete


def end_of(line: str) -> int:
    return int(line.split()[0].split("-")[1], 16)
