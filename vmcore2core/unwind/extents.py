"""How far the stacks of a process's threads extend: the memory that a debugger reads for backtraces."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.arch.base import Arch
from vmcore2core.process.redact import ThreadFrames
from vmcore2core.process.snapshot import Captured
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.threads import ThreadUnwinder, spec_of


def thread_frames(captured: Captured, arch: Arch) -> Iterator[ThreadFrames]:
    """Yield the frames of each thread that has registers; nothing if unwinding its architecture is not supported.

    Args:
        captured: the process.
        arch: the kernel's architecture.
    """
    snapshot = captured.snapshot
    spec = spec_of(snapshot, arch)
    if spec is None:
        return
    unwinder = ThreadUnwinder(spec, UserSpace(snapshot, captured.memory), arch)
    for task, regs in captured.answers:
        if isinstance(regs, str):
            continue
        tid = task.uint("pid", size=4)
        found = unwinder.backtrace(tid, regs.regs)
        pointers = tuple((frame.sp, frame.trampoline) for frame in found.frames)
        yield ThreadFrames(tid, pointers, complete=found.complete)
