"""Hand-made processes and page streams for the core writer."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmcore2core.addresses import U8Array, U64Array, UserAddr
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Output, WriteReport, write_core
from vmcore2core.process.model import (
    AbsentReason,
    AbsentRun,
    ProcessSnapshot,
    PsInfo,
    RegSetData,
    ThreadSnapshot,
    Vma,
)

PAGE = 4096
R, W, X = 4, 2, 1

# Each slot of elf_gregset_t holds its own name, so that a swapped register reads as such.
GREGS_64 = b"".join(
    name.encode().rjust(8)
    for name in (
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
        "ds es fs gs"
    ).split()
)
GREGS_32 = b"".join(
    name.encode().rjust(4)[:4] for name in "ebx ecx edx esi edi ebp eax ds es fs gs oeax eip cs efl esp ss".split()
)

AUXV = struct.pack("<6Q", 6, 4096, 33, 0x7FFF_F000_0000, 0, 0)
AUXV_32 = struct.pack("<6I", 6, 4096, 33, 0xF7FF_0000, 0, 0)


class Pages:
    """A ``PageStream`` over a table of pages.

    Attributes:
        asked: the ranges that were asked for.
    """

    def __init__(self, pages: Mapping[int, bytes] | None = None, batch: int = 3) -> None:
        self.pages = dict(pages or {})
        self.batch = batch
        self.asked: list[tuple[int, int]] = []

    def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[U64Array, U8Array]]:
        self.asked += ranges
        wanted = sorted(v for v in self.pages if any(start <= v < end for start, end in ranges))
        for at in range(0, len(wanted), self.batch):
            part = wanted[at : at + self.batch]
            raw = b"".join(self.pages[v].ljust(PAGE, b"\0") for v in part)
            yield np.array(part, np.uint64), np.frombuffer(raw, np.uint8).reshape(len(part), PAGE)


def thread(tid: int = 100, **members: Any) -> ThreadSnapshot:
    values: dict[str, Any] = {"comm": b"victim", "gregs": GREGS_64, "gregs_source": "kernel stack"}
    return ThreadSnapshot(tid=tid, **{**values, **members})


def vma(start: int, end: int, p_flags: int = R | W, **members: Any) -> Vma:
    return Vma(UserAddr(start), UserAddr(end), p_flags, **members)


def absent(start: int, end: int, reason: AbsentReason = AbsentReason.EXCLUDED) -> AbsentRun:
    return AbsentRun(UserAddr(start), UserAddr(end), reason)


def snapshot(*vmas: Vma, **members: Any) -> ProcessSnapshot:
    """Return a 64-bit process with one thread, unless members say otherwise."""
    values: dict[str, Any] = {
        "tgid": 100,
        "comm": b"victim",
        "e_machine": 62,
        "elf_class": 64,
        "byte_order": "little",
        "page_size": PAGE,
        "threads": (thread(),),
        "psinfo": PsInfo(100, b"victim"),
        "auxv": AUXV,
    }
    return ProcessSnapshot(vmas=vmas, **{**values, **members})


def snapshot_32(*vmas: Vma, **members: Any) -> ProcessSnapshot:
    """Return an i386 process with one thread."""
    values: dict[str, Any] = {
        "e_machine": 3,
        "elf_class": 32,
        "threads": (thread(gregs=GREGS_32),),
        "auxv": AUXV_32,
    }
    return snapshot(*vmas, **{**values, **members})


def with_regsets(one: ThreadSnapshot, *types: tuple[str, int]) -> ThreadSnapshot:
    """Return a thread with further register notes, each as long as it is unlike the others."""
    sets = tuple(
        RegSetData(name, n_type, bytes([n_type & 255]) * (8 + 4 * i), "test") for i, (name, n_type) in enumerate(types)
    )
    return one._replace(regsets=sets)


def write(process: ProcessSnapshot, target: Path, pages: Mapping[int, bytes] | None = None, **more: Any) -> WriteReport:
    """Write a core."""
    options = {name: more.pop(name) for name in ("force", "compression") if name in more}
    verify = more.pop("verify", True)
    return write_core(process, Pages(pages), Output(target, CoreOptions(**options), **more), verify=verify)


def elf_notes(core: Path) -> list[tuple[str, int, bytes]]:
    """Return the notes of a core's PT_NOTE, read by struct alone."""
    data = core.read_bytes() if core.stat().st_size < 1 << 26 else _head(core)
    wide = data[4] == 2
    phoff = struct.unpack_from("<Q", data, 32)[0] if wide else struct.unpack_from("<I", data, 28)[0]
    if wide:
        p_type, _, at, _, _, size = struct.unpack_from("<IIQQQQ", data, phoff)
    else:
        p_type, at, _, _, size = struct.unpack_from("<5I", data, phoff)
    assert p_type == 4
    notes = []
    end = at + size
    while at < end:
        namesz, descsz, n_type = struct.unpack_from("<3I", data, at)
        name = data[at + 12 : at + 12 + namesz]
        assert name.endswith(b"\0")
        at += 12 + -(-namesz // 4) * 4
        notes.append((name[:-1].decode(), n_type, data[at : at + descsz]))
        at += -(-descsz // 4) * 4
    assert at == end
    return notes


def _head(core: Path) -> bytes:
    with core.open("rb") as f:
        return f.read(1 << 24)


def segments(core: Path) -> list[tuple[int, int, int, int, int]]:
    """Return (vaddr, memsz, filesz, flags, offset) of each PT_LOAD, read by struct alone; PN_XNUM included."""
    with core.open("rb") as f:
        ehdr = f.read(64)
        wide = ehdr[4] == 2
        if wide:
            phoff, shoff = struct.unpack_from("<QQ", ehdr, 32)
            phentsize, phnum = struct.unpack_from("<HH", ehdr, 54)
        else:
            phoff, shoff = struct.unpack_from("<II", ehdr, 28)
            phentsize, phnum = struct.unpack_from("<HH", ehdr, 42)
        if phnum == 0xFFFF:
            f.seek(shoff + (44 if wide else 28))
            phnum = struct.unpack("<I", f.read(4))[0]
        f.seek(phoff)
        table = f.read(phnum * phentsize)
    found = []
    for i in range(phnum):
        if wide:
            p_type, flags, offset, vaddr, _, filesz, memsz, _ = struct.unpack_from("<IIQQQQQQ", table, i * 56)
        else:
            p_type, offset, vaddr, _, filesz, memsz, flags, _ = struct.unpack_from("<8I", table, i * 32)
        if p_type == 1:
            found.append((vaddr, memsz, filesz, flags, offset))
    return found


def loads(core: Path) -> list[tuple[int, int, int, int]]:
    """Return (vaddr, memsz, filesz, flags) of each PT_LOAD."""
    return [segment[:4] for segment in segments(core)]


def changed(process: ProcessSnapshot, **members: Any) -> ProcessSnapshot:
    return process._replace(**members)


def many(start: int, count: int, step: int = 2 * PAGE) -> Iterable[Vma]:
    """Yield one-page mappings with a gap after each."""
    return (vma(start + i * step, start + i * step + PAGE) for i in range(count))
