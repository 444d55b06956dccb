"""Checks a finished core's headers with readers that share no code with the writer.

pyelftools reads each core back before the core gets its name. lief, which takes longer to start than a small core takes
to write, is a second reader on request. It reads whole files, so it gets only the part before the first page; and it
drops notes with equal content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib import import_module
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_E_MACHINE
from elftools.elf.segments import NoteSegment

from vmcore2core.corefile.plan import CorePlan
from vmcore2core.elf.readerfile import ReaderFile
from vmcore2core.errors import OutputError
from vmcore2core.interfaces import ByteOrder
from vmcore2core.process.model import ProcessSnapshot

LIEF_SEGMENTS = 10_000
HEADERS_READ = 4096
"""Most program headers that pyelftools reads of a core; of more, it reads every second, third and so on."""
NOTES_READ = 1024
"""Most notes that pyelftools reads of a core: it takes as long for one as the rest of a conversion for a thread."""
NT_PRSTATUS = 1
READ_AT_ONCE = 1 << 16
"""Bytes of the head to join for reading."""
PR_PID = {32: 24, 64: 32}
"""Offset of the thread ID in NT_PRSTATUS, by ELF class; not shared with the writer, so that its errors are caught."""


def verify_head(plan: CorePlan, snapshot: ProcessSnapshot, output: Path) -> None:
    """Check with pyelftools that the headers say what was planned.

    Raises:
        OutputError: they do not; this is a bug in vmcore2core, and the core must not get its name.
    """
    problem = _by_pyelftools(plan, snapshot)
    if problem is not None:
        raise OutputError(f"{output} is not written: its headers read back wrong ({problem})")


def _by_pyelftools(plan: CorePlan, snapshot: ProcessSnapshot) -> str | None:
    try:
        head = BufferedReader(ReaderFile(plan.head.read, plan.head.size), READ_AT_ONCE)
        elf = ELFFile(head)
        at = PR_PID[snapshot.elf_class]
        ident = elf["e_type"], elf["e_machine"], elf.elfclass, elf.little_endian
        count, seen, others, tids = elf.num_segments(), [], 0, list[int]()
        chosen = range(0, count, 1 + count // HEADERS_READ)
        for segment in map(elf.get_segment, chosen):
            if segment["p_type"] == "PT_LOAD":
                seen.append(tuple(segment[name] for name in ("p_vaddr", "p_memsz", "p_filesz", "p_flags", "p_offset")))
            else:
                others += 1
            if isinstance(segment, NoteSegment):
                end = segment["p_offset"]
                for note in islice(segment.iter_notes(), NOTES_READ):
                    end = note["n_offset"] + note["n_size"]
                    if note["n_type"] == "NT_PRSTATUS":
                        tids.append(int.from_bytes(note["n_descdata"][at : at + 4], snapshot.byte_order))
                rest = range(end, segment["p_offset"] + segment["p_filesz"])
                tids += _tids(head, rest, at, snapshot.byte_order)
    except (ELFError, ValueError, KeyError, struct.error) as error:
        return f"pyelftools: {error}"
    machine = ENUM_E_MACHINE.get(ident[1], ident[1])
    planned = "ET_CORE", snapshot.e_machine, snapshot.elf_class, snapshot.byte_order == "little"
    if (ident[0], machine, *ident[2:]) != planned:
        return f"pyelftools sees type, machine, class and byte order {ident}, expected {planned}"
    loads = [plan.segments[i - 1] for i in chosen if 0 < i <= len(plan.segments)]
    if seen != [(s.start, s.memsz, s.filesz, s.p_flags, s.offset) for s in loads]:
        return f"pyelftools sees {len(seen)} PT_LOADs that differ from the {len(loads)} planned"
    expected = 1 + len(plan.segments) + len(snapshot.tags), len(chosen) - len(loads)
    if (count, others) != expected:
        return (
            f"pyelftools sees {count} program headers, {others} no PT_LOADs, expected {expected[0]} and {expected[1]}"
        )
    return None if tids == [thread.tid for thread in snapshot.threads] else f"pyelftools sees threads {tids}"


def _tids(head: BinaryIO, notes: range, pr_pid: int, byte_order: ByteOrder) -> Iterator[int]:
    """Yield the thread ID of each NT_PRSTATUS.

    Args:
        head: what has the notes.
        notes: their offsets in it.
        pr_pid: offset of the thread ID in NT_PRSTATUS.
        byte_order: of the core.

    Raises:
        struct.error: the head ends inside a note's header or thread ID.
    """
    order = "<" if byte_order == "little" else ">"
    nhdr, number, at = struct.Struct(f"{order}3I"), struct.Struct(f"{order}I"), notes.start
    while at < notes.stop:
        head.seek(at)
        namesz, descsz, n_type = nhdr.unpack(head.read(nhdr.size))
        desc = at + nhdr.size + (namesz + 3 & ~3)
        if n_type == NT_PRSTATUS and head.read(namesz) == b"CORE\0":
            head.seek(desc + pr_pid)
            yield number.unpack(head.read(number.size))[0]
        at = desc + (descsz + 3 & ~3)


class SeenByLief(NamedTuple):
    """A core's headers as lief sees them.

    Attributes:
        machine: e_machine.
        loads: ``(p_vaddr, p_memsz, p_filesz)`` of the PT_LOADs.
        tids: thread IDs; lief keeps only one of several notes with equal content.
    """

    machine: int
    loads: list[tuple[int, int, int]]
    tids: set[int]

    def agrees(self, loads: list[tuple[int, int, int]]) -> bool:
        """Tell whether lief's PT_LOADs are these; it reads only a limited number."""
        return self.loads == (loads[: len(self.loads)] if len(loads) >= LIEF_SEGMENTS else loads)


def read_with_lief(head: bytes) -> SeenByLief | None:
    """Return the headers that lief reads from a core's bytes before its first page, or None if it cannot.

    Raises:
        ImportError: it is not installed.
    """
    from concurrent.futures import ThreadPoolExecutor

    # A signal handler's exception during lief's start-up would end the whole process; only the main thread gets one.
    with ThreadPoolExecutor(max_workers=1) as pool:
        lief: Any = pool.submit(import_module, "lief").result()
    lief.logging.disable()
    binary = lief.ELF.parse(list(head))
    if not isinstance(binary, lief.ELF.Binary):
        return None
    return SeenByLief(
        machine=binary.header.machine_type.value,
        loads=[
            (s.virtual_address, s.virtual_size, s.physical_size)
            for s in binary.segments
            if s.type == lief.ELF.Segment.TYPE.LOAD
        ],
        tids={note.status.pid for note in binary.notes if isinstance(note, lief.ELF.CorePrStatus)},
    )
