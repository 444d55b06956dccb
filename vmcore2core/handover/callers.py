"""Callers that were found without call frame information, for gdb, which goes on by guesses where it has none.

Of libraries and programs that lack pages, call frame information may be among what is lost. Where frame pointers or the
word at the stack pointer led on, gdb's start script says so to gdb, for as long as the file itself is not found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import CoreMachine, CoreNote
from vmcore2core.formats.elf_core import EM_X86_64
from vmcore2core.process.capture import Captured
from vmcore2core.process.linkmap import vma_at
from vmcore2core.process.threads import thread_rows
from vmcore2core.unwind.frames import Found, Unwinder
from vmcore2core.unwind.process import UserSpace

GUESSED = (Found.FRAME_POINTER, Found.STACK_POINTER)
FRAMES_MAX = 64
CALLERS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one frame.

    Attributes:
        path: of the file whose code the frame runs, as its mapping has it.
        pc: program counter of the frame.
        sp: its stack pointer.
        registers: name and value of those of the caller that are known, its own program counter among them.
    """

    path: bytes
    pc: int
    sp: int
    registers: tuple[tuple[str, int], ...]


def callers_of(captured: Captured, arch: Arch) -> tuple[Caller, ...]:
    """Return the callers of a process's threads that were found without call frame information; of x86-64 alone."""
    snapshot = captured.snapshot
    if (snapshot.e_machine, snapshot.elf_class) != (EM_X86_64, 64):
        return ()
    return tuple(_callers(captured, arch))[:CALLERS_MAX]


def _callers(captured: Captured, arch: Arch) -> Iterator[Caller]:
    snapshot = captured.snapshot
    spec = arch.unwind_spec(CoreMachine(snapshot.e_machine, snapshot.elf_class, (), e_flags=snapshot.e_flags))
    if spec is None:
        return
    unwinder = Unwinder(spec, UserSpace(snapshot, captured.memory))
    notes = {t.tid: [CoreNote(n.note_name, n.note_type, n.data) for n in t.regsets] for t in snapshot.threads}
    for row in thread_rows(captured.answers):
        if row.registers is None:
            continue
        registers = {**arch.unwind_registers(notes.get(row.tid, ())), **row.registers}
        frames = unwinder.backtrace(registers, FRAMES_MAX).frames
        for frame, caller in itertools.pairwise(frames):
            vma = vma_at(snapshot, frame.pc)
            if caller.found in GUESSED and vma is not None and vma.path is not None:
                known = {**caller.registers, spec.return_address: caller.pc, spec.stack_pointer: caller.sp}
                named = tuple((spec.registers[number], value) for number, value in sorted(known.items()))
                yield Caller(vma.path, frame.pc, frame.sp, named)
