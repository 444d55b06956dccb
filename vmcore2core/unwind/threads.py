"""The frames of each thread of a process, by its registers and those of its further register notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import CoreMachine, CoreNote, UnwindSpec
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.unwind.frames import LIMIT, Backtrace
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.unwinder import Unwinder


def spec_of(snapshot: ProcessSnapshot, arch: Arch) -> UnwindSpec | None:
    """Return how a process's stacks unwind, or None where that is not known."""
    return arch.unwind.spec(CoreMachine(snapshot.e_machine, snapshot.elf_class, (), e_flags=snapshot.e_flags))


class ThreadUnwinder:
    """Unwinds the threads of one process.

    Args:
        spec: how its stacks unwind.
        space: its memory and images.
        arch: of the kernel.
    """

    def __init__(self, spec: UnwindSpec, space: UserSpace, arch: Arch) -> None:
        self._unwinder, self._arch = Unwinder(spec, space), arch
        self._notes = {
            thread.tid: [CoreNote(note.note_name, note.note_type, note.data) for note in thread.regsets]
            for thread in space.snapshot.threads
        }

    def backtrace(self, tid: int, registers: Mapping[str, int], limit: int = LIMIT) -> Backtrace:
        """Return the frames of a thread.

        Args:
            tid: whose further register notes are looked at as well.
            registers: its general registers, by native name.
            limit: most frames.
        """
        more = self._arch.unwind.registers(self._notes.get(tid, ()))
        return self._unwinder.backtrace({**more, **registers}, limit)
