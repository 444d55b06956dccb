"""ELF notes: their headers, the CPUs' registers on each architecture, makedumpfile's eraseinfo."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.fuzz.harness import Harness, Parts
from tests.process.scene import prstatus, qemu_note, user_regs
from vmcore2core.arch import all_archs
from vmcore2core.containers.eraseinfo import erased, erased_notes
from vmcore2core.elf.notes import parse_notes


def note(name: bytes, kind: int, desc: bytes, order: str = "<") -> bytes:
    padded = name + b"\0" + bytes(-(len(name) + 1) % 4)
    return struct.pack(f"{order}3I", len(name) + 1, len(desc), kind) + padded + desc + bytes(-len(desc) % 4)


def seeds() -> Sequence[bytes]:
    little = note(b"CORE", 1, prstatus(7, user_regs(7))) + note(b"QEMU", 0, qemu_note(0x1000))
    big = note(b"CORE", 1, bytes(336), ">") + note(b"LINUX", 0x309, bytes(272), ">")
    erase = note(b"ERASEINFO", 0, b"erase task_struct.comm size 16\nerase x\n")
    return [little, little * 4 + erase, big, little + note(b"LINUX", 0x400, bytes(264))]


def run(data: bytes) -> str:
    parts = Parts()
    erased(data)
    for order in ("little", "big"):
        notes, _ = parse_notes(data, order, 0)
        list(erased_notes(notes))
        for arch in all_archs():
            with parts.one():
                for cpu in arch.cpus.notes(tuple(notes)):
                    arch.cpus.bases(cpu)
                    arch.cpus.assumed_user_pc(cpu)
    return parts.result


HARNESS = Harness("notes", seeds, run, 1 << 14)
