"""Reading cores and comparing them, by struct alone: nothing of vmcore2core is used to judge it."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

GREGS_64 = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
).split()
GREGS_32 = "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss".split()
# NT_FPREGSET, NT_PRXFPREG, NT_X86_XSTATE, NT_386_TLS
REGSETS = {("CORE", 2), ("LINUX", 0x46E62B7F), ("LINUX", 0x202), ("LINUX", 0x200)}
NT_SIGINFO, NT_X86_XSAVE_LAYOUT = 0x53494749, 0x205
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45


@dataclass
class Core:
    """A core file: PT_LOADs as (vaddr, offset, filesz, memsz, flags), notes in order, registers per thread."""

    path: Path
    data: mmap.mmap = field(init=False)
    loads: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    notes: list[tuple[str, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self.path.open("rb") as f:
            self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        data = self.data
        assert data[:4] == b"\x7fELF"
        self.is_64 = data[4] == 2
        order = self.order = "<" if data[5] == 1 else ">"
        if self.is_64:
            phoff, phentsize, phnum = (
                *struct.unpack_from(order + "Q", data, 32),
                *struct.unpack_from(order + "HH", data, 54),
            )
        else:
            phoff, phentsize, phnum = (
                *struct.unpack_from(order + "I", data, 28),
                *struct.unpack_from(order + "HH", data, 42),
            )
        for i in range(phnum):
            at = phoff + i * phentsize
            if self.is_64:
                p_type, flags, offset, vaddr, _, filesz, memsz, _ = struct.unpack_from(order + "IIQQQQQQ", data, at)
            else:
                p_type, offset, vaddr, _, filesz, memsz, flags, _ = struct.unpack_from(order + "8I", data, at)
            if p_type == 1:
                self.loads.append((vaddr, offset, filesz, memsz, flags))
            elif p_type == 4:
                self._notes(offset, offset + filesz)

    def _notes(self, at: int, end: int) -> None:
        while at < end:
            namesz, descsz, n_type = struct.unpack_from(self.order + "III", self.data, at)
            name = self.data[at + 12 : at + 12 + namesz].rstrip(b"\0").decode()
            at += 12 + (namesz + 3 & ~3)
            self.notes.append((name, n_type, self.data[at : at + descsz]))
            at += descsz + 3 & ~3

    @property
    def loads_without_offsets(self) -> list[tuple[int, int, int, int]]:
        """PT_LOADs as (vaddr, filesz, memsz, flags)."""
        return [(vaddr, filesz, memsz, flags) for vaddr, _, filesz, memsz, flags in self.loads]

    def note(self, n_type: int) -> bytes | None:
        return next((desc for name, kind, desc in self.notes if (name, kind) == ("CORE", n_type)), None)

    @property
    def prstatus(self) -> dict[int, bytes]:
        """NT_PRSTATUS by thread ID."""
        at = 32 if self.is_64 else 24
        found = [desc for name, kind, desc in self.notes if (name, kind) == ("CORE", NT_PRSTATUS)]
        return {struct.unpack_from(self.order + "i", desc, at)[0]: desc for desc in found}

    @property
    def regsets(self) -> dict[int, list[tuple[str, int, bytes]]]:
        """The notes behind each thread's NT_PRSTATUS that are the thread's own."""
        found: dict[int, list[tuple[str, int, bytes]]] = {}
        at, tid = 32 if self.is_64 else 24, 0
        for note in self.notes:
            if note[:2] == ("CORE", NT_PRSTATUS):
                tid = struct.unpack_from(self.order + "i", note[2], at)[0]
                found[tid] = []
            elif note[:2] in REGSETS:
                found[tid].append(note)
        return found

    @property
    def registers(self) -> dict[int, dict[str, int]]:
        """General registers by thread ID."""
        names, at, form = (GREGS_64, 112, "<27Q") if self.is_64 else (GREGS_32, 72, "<17I")
        return {
            tid: dict(zip(names, struct.unpack_from(form, desc, at), strict=True))
            for tid, desc in self.prstatus.items()
        }

    @property
    def extents(self) -> dict[int, tuple[int, int]]:
        """PT_LOADs: start -> (memsz, flags)."""
        return {vaddr: (memsz, flags) for vaddr, _, _, memsz, flags in self.loads}

    def pages(self) -> dict[int, int]:
        """Page address -> file offset."""
        return {v + o: offset + o for v, offset, filesz, _, _ in self.loads for o in range(0, filesz, 4096)}

    def read(self, address: int, size: int) -> bytes | None:
        for vaddr, offset, filesz, _, _ in self.loads:
            if vaddr <= address and address + size <= vaddr + filesz:
                return self.data[offset + address - vaddr : offset + address - vaddr + size]
        return None


@dataclass
class PageDiff:
    """How the pages of a core compare with the kernel's: addresses of those that differ."""

    same: int = 0
    wrong: list[int] = field(default_factory=list)
    zeroed: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)


def compare_pages(ours: Core, kernels: Core) -> PageDiff:
    """Compare every page that the kernel's core has; a page of zeros there may be absent here."""
    diff, zero, mine = PageDiff(), bytes(4096), ours.pages()
    for address, offset in kernels.pages().items():
        truth = kernels.data[offset : offset + 4096]
        if address not in mine:
            if truth != zero:
                diff.absent.append(address)
            continue
        page = ours.data[mine[address] : mine[address] + 4096]
        if page == truth:
            diff.same += 1
        else:
            (diff.zeroed if page == zero else diff.wrong).append(address)
    return diff
