"""User stacks as plain records: one row a frame, one a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import CoreMachine, CoreNote
from vmcore2core.errors import TaskError
from vmcore2core.printable import text
from vmcore2core.process.capture import Captured
from vmcore2core.process.threads import ThreadRow
from vmcore2core.unwind.frames import LIMIT, Frame, Unwinder
from vmcore2core.unwind.process import UserSpace


@dataclass(frozen=True, slots=True)
class FrameRow:
    """One line of ``bt``; None is "not known".

    Attributes:
        number: from 0, innermost first.
        address: program counter.
        symbol: function that holds it.
        offset: of the address from the function's start.
        file: what is mapped there: a path, or "[vdso]" and the like.
        file_address: the address as the file counts it, for addr2line.
        file_offset: where it is in the file, in bytes.
        found_by: how the frame was found.
        signal_trampoline: whether it is the return from a signal handler.
        width: hexadecimal digits of an address.
    """

    number: int
    address: int
    symbol: str | None
    offset: int | None
    file: str | None
    file_address: int | None
    file_offset: int | None
    found_by: str
    signal_trampoline: bool
    width: int

    def line(self) -> str:
        """Return the line as ``bt`` prints it."""
        if self.symbol is not None:
            name = f"{self.symbol}+{self.offset:#x}"
        else:
            name = "<signal trampoline>" if self.signal_trampoline else "??"
        if self.file_address is not None:
            place = f" ({self.file or 'an image without a file'}+{self.file_address:#x})"
        elif self.file and self.file_offset is not None:
            place = f" ({self.file}, file offset {self.file_offset:#x})"
        else:
            place = f" ({self.file})" if self.file else ""
        return f"#{self.number:<3}{self.address:#0{self.width + 2}x} {name}{place} [{self.found_by}]"


@dataclass(frozen=True, slots=True)
class StackRow:
    """One thread's frames; ``end`` says why there are no more, and ``complete`` whether the last is the outermost."""

    pid: int
    tid: int
    comm: str
    state: str
    source: str
    frames: tuple[FrameRow, ...]
    complete: bool
    end: str


def backtraces(captured: Captured, arch: Arch, rows: Iterable[ThreadRow], limit: int = LIMIT) -> Iterator[StackRow]:
    """Yield the user stacks of threads of one process.

    Args:
        captured: the process.
        arch: of the kernel.
        rows: the threads.
        limit: most frames of one.

    Raises:
        TaskError: how stacks of its architecture unwind is not known.
    """
    snapshot = captured.snapshot
    spec = arch.unwind_spec(CoreMachine(snapshot.e_machine, snapshot.elf_class, (), e_flags=snapshot.e_flags))
    if spec is None:
        raise TaskError(snapshot.tgid, f"how user stacks of {arch.name} unwind is not known yet")
    space = UserSpace(snapshot, captured.memory)
    unwinder = Unwinder(spec, space)
    notes = {t.tid: [CoreNote(n.note_name, n.note_type, n.data) for n in t.regsets] for t in snapshot.threads}
    for row in rows:
        frames: tuple[FrameRow, ...] = ()
        complete, end = False, f"no registers: {row.source}"
        if row.registers is not None:
            more = arch.unwind_registers(notes.get(row.tid, ()))
            found = unwinder.backtrace({**more, **row.registers}, limit)
            frames = tuple(_frame_row(space, number, frame, 2 * spec.word) for number, frame in enumerate(found.frames))
            complete, end = found.complete, found.end
        yield StackRow(snapshot.tgid, row.tid, row.comm, row.state, row.source, frames, complete, end)


def _frame_row(space: UserSpace, number: int, frame: Frame, width: int) -> FrameRow:
    place = space.place(frame.lookup_pc)
    image = place.image if place is not None else None
    symbol = image.symbol(frame.lookup_pc) if image is not None else None
    back = frame.pc - frame.lookup_pc
    return FrameRow(
        number=number,
        address=frame.pc,
        symbol=text(symbol.name) if symbol is not None else None,
        offset=frame.pc - symbol.value if symbol is not None else None,
        file=(text(place.vma.path) if place.vma.path is not None else text(place.vma.name.encode()) or None)
        if place
        else None,
        file_address=frame.pc - image.bias if image is not None else None,
        file_offset=place.file_offset + back if place is not None and place.file_offset is not None else None,
        found_by=frame.found.value,
        signal_trampoline=frame.trampoline,
        width=width,
    )
