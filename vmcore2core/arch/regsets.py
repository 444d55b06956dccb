"""The shape of every machine's table of register sets: ``REGSETS`` in ``arch/NAME/regsets.py``.

References: include/linux/regset.h: struct user_regset; fs/binfmt_elf.c: fill_thread_core_info().
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from vmcore2core.elf.notes import Note
from vmcore2core.formats.elf_core import NOTE_LINUX

Thread = TypeVar("Thread")


class RegisterSet(NamedTuple, Generic[Thread]):
    """One register set besides NT_PRSTATUS; the kernel writes them in the order of its table.

    Attributes:
        n_type: of its note.
        get: returns a thread's descriptor; None if the thread has no such note, or if that is not known.
        name: owner of the note.
    """

    n_type: int
    get: Callable[[Thread], bytes | None]
    name: str = NOTE_LINUX


def notes_of(
    table: Iterable[RegisterSet[Thread]], thread: Thread, types: Container[int] | None = None
) -> tuple[Note, ...]:
    """Return the notes of a thread, in the table's order.

    Args:
        table: register sets.
        thread: what their ``get`` takes.
        types: the wanted note types; None for all.

    Raises:
        MemoryFault, LayoutInvalid: a register set cannot be read, or cannot be one.
    """
    made = ((row, row.get(thread)) for row in table if types is None or row.n_type in types)
    return tuple(Note(row.name, row.n_type, desc) for row, desc in made if desc is not None)


def in_order(table: Sequence[RegisterSet[Thread]], notes: Iterable[Note]) -> tuple[Note, ...]:
    """Return notes in the order of the table, which has all their types."""
    order = [row.n_type for row in table]
    return tuple(sorted(notes, key=lambda note: order.index(note.n_type)))
