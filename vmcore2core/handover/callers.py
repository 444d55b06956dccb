"""Callers found without call frame information, handed to gdb and lldb, which otherwise guess them.

A library or program that lacks pages may have lost its call frame information. Where a function's instructions, its
frame pointer, the back chain or the word at the stack pointer led to the caller, the start script tells the debugger
that caller. It does so only until the debugger finds the file itself; gdb is also told the callers of code in no file
(JIT).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmcore2core.arch.spec import UnwindSpec
from vmcore2core.errors import CorruptStructure
from vmcore2core.process.linkmap import vma_at
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.unwind.frames import Backtrace, Found, Frame
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.symbols import Origin
from vmcore2core.unwind.threads import Unwound

WITHOUT_CFI = (Found.CODE, Found.FRAME_POINTER, Found.STACK_POINTER, Found.BACK_CHAIN)
CALLERS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one frame.

    Attributes:
        path: path of the file whose code the frame runs, as its mapping has it; empty if the code is in no file.
        pc: program counter of the frame.
        sp: stack pointer of the frame.
        registers: gdb's name and the value of each known register of the caller: first the program counter, which is 0
            if the frame is the outermost; then the stack pointer; then the others.
        found_by: how the caller was found.
    """

    path: bytes
    pc: int
    sp: int
    registers: tuple[tuple[str, int], ...]
    found_by: str = Found.FRAME_POINTER.value


@dataclass(frozen=True, slots=True)
class LastFrame:
    """The frame of a thread from which on a debugger guesses callers: the last found, where the stack itself goes on.

    Or the first whose caller's stack pointer is not known, as where only the frame pointer led there on arm64.

    Attributes:
        path: as in ``Caller``.
        pc: program counter of the frame.
        tid: the thread's TID.
    """

    path: bytes
    pc: int
    tid: int


@dataclass(frozen=True, slots=True)
class WithoutCfi:
    """The frames of a process that were found, or ended, without call frame information."""

    callers: tuple[Caller, ...] = ()
    last: tuple[LastFrame, ...] = ()


def stacks_without_cfi(stacks: Unwound) -> WithoutCfi:
    """Return the frames found without call frame information, on machines whose programs usually have it."""
    snapshot = stacks.space.snapshot
    if not stacks.spec.has_cfi:
        return WithoutCfi()
    callers: list[Caller] = []
    last: list[LastFrame] = []
    for row, found in stacks.threads:
        if len(callers) < CALLERS_MAX:
            callers += [*_callers(snapshot, found, stacks.spec), *_outermost(stacks, found)]
        if (end := _followed_to(stacks, found)) is not None:
            last.append(LastFrame(_path(snapshot, end.pc) or b"", end.pc, row.tid))
    return WithoutCfi(tuple(callers[:CALLERS_MAX]), tuple(last[:CALLERS_MAX]))


def led_by_files(stacks: Unwound) -> Iterator[Path]:
    """Yield the files outside the dump whose call frame information led to a caller."""
    for _, found in stacks.threads:
        for frame, caller in itertools.pairwise(found.frames):
            image = stacks.space.image(frame.lookup_pc) if caller.cfi_origin not in (None, Origin.MEMORY) else None
            original = None if image is None else image.source.original
            if original is not None and original.path is not None:
                yield original.path


def _callers(snapshot: ProcessSnapshot, found: Backtrace, spec: UnwindSpec) -> Iterator[Caller]:
    for frame, caller in itertools.pairwise(found.frames):
        path = _path(snapshot, frame.pc)
        if caller.found in WITHOUT_CFI and path is not None and _has_sp(frame, spec) and _has_sp(caller, spec):
            yield Caller(path, frame.pc, frame.sp, _named(caller.registers, caller.pc, spec), caller.found.value)


def _has_sp(frame: Frame, spec: UnwindSpec) -> bool:
    return spec.stack_pointer in frame.registers


def _named(registers: Mapping[int, int], pc: int, spec: UnwindSpec) -> tuple[tuple[str, int], ...]:
    """Return registers as in ``Caller``; a return leaves its address in the link register, if there is one."""
    first = {spec.return_address: pc, spec.stack_pointer: registers[spec.stack_pointer]}
    known = registers if spec.link_register is None else {spec.link_register: pc, **registers}
    others = {number: value for number, value in sorted(known.items()) if number not in first}
    named = ((spec.registers[number], value) for number, value in (first | others).items())
    return tuple((spec.gdb_names.get(name, name), value) for name, value in named)


def _followed_to(stacks: Unwound, found: Backtrace) -> Frame | None:
    """Return the frame of a ``LastFrame``; None if a debugger shows the stack as it is."""
    for frame, caller in itertools.pairwise(found.frames):
        if caller.found in WITHOUT_CFI and not _has_sp(caller, stacks.spec):
            return frame
    ends = bool(found.frames) and not found.complete and not _is_main(stacks.space, found.frames[-1])
    return found.frames[-1] if ends else None


def _outermost(stacks: Unwound, found: Backtrace) -> Iterator[Caller]:
    """Yield the caller of an outermost frame without call frame information; it has the program counter 0.

    Otherwise gdb guesses further frames, and lldb leaves this one out.
    """
    if not found.complete or not found.frames:
        return
    frame, spec = found.frames[-1], stacks.spec
    path = _path(stacks.space.snapshot, frame.pc)
    if path is not None and _has_sp(frame, spec) and not _has_cfi(stacks.space, frame):
        sp = frame.sp + (spec.word if spec.link_register is None else 0)
        yield Caller(path, frame.pc, frame.sp, _named({spec.stack_pointer: sp}, 0, spec), Found.CODE.value)


def _has_cfi(space: UserSpace, frame: Frame) -> bool:
    """Tell whether a file has call frame information of a frame, or is Go's, whose stacks end elsewhere than gdb's."""
    image = space.image(frame.lookup_pc)
    try:
        return image is not None and (image.ends_stack(frame.lookup_pc) or image.fde(frame.lookup_pc) is not None)
    except CorruptStructure:
        return False


def _is_main(space: UserSpace, frame: Frame) -> bool:
    """Tell whether a frame is main()'s; gdb shows no frame beyond it."""
    image = space.image(frame.lookup_pc)
    symbol = None if image is None else image.symbol(frame.lookup_pc)
    return symbol is not None and symbol.name == b"main"


def _path(snapshot: ProcessSnapshot, pc: int) -> bytes | None:
    """Return the file whose code is at an address, empty if it is in no file; None if nothing is mapped there."""
    vma = vma_at(snapshot, pc)
    return None if vma is None else vma.path or b""
