"""How far the stacks of a process's threads go, by their frames: what a debugger reads for backtraces."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import CoreMachine, CoreNote
from vmcore2core.process.capture import Captured
from vmcore2core.process.redact import ThreadFrames
from vmcore2core.unwind.frames import Unwinder
from vmcore2core.unwind.process import UserSpace


def thread_frames(captured: Captured, arch: Arch) -> Iterator[ThreadFrames]:
    """Yield the frames of each thread that has registers; nothing where its architecture's stacks do not unwind.

    Args:
        captured: the process.
        arch: of the kernel.
    """
    snapshot = captured.snapshot
    spec = arch.unwind_spec(CoreMachine(snapshot.e_machine, snapshot.elf_class, (), e_flags=snapshot.e_flags))
    if spec is None:
        return
    unwinder = Unwinder(spec, UserSpace(snapshot, captured.memory))
    notes = {t.tid: [CoreNote(n.note_name, n.note_type, n.data) for n in t.regsets] for t in snapshot.threads}
    for task, regs in captured.answers:
        if isinstance(regs, str):
            continue
        tid = task.uint("pid", size=4)
        more = arch.unwind_registers(notes.get(tid, ()))
        found = unwinder.backtrace({**more, **regs.regs})
        pointers = tuple((frame.sp, frame.trampoline) for frame in found.frames)
        yield ThreadFrames(tid, pointers, complete=found.complete)
