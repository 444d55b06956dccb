"""A fake kernel with processes in it, by struct.pack and the literal offsets of tests/builders/kernelimage.py."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tests.builders.kernelimage import TEXT, KernelImage, Offsets
from tests.builders.prstatus import elf_prstatus
from vmcore2core.containers.base import PageState
from vmcore2core.elf.notes import Note
from vmcore2core.process.snapshot import Captured, Processes

PT_REGS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss".split()
USER_REGS = [*PT_REGS, "fs_base", "gs_base", "ds", "es", "fs", "gs"]
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 1, 2, 4, 8
PF_KTHREAD, PF_EXITING = 0x20_0000, 0x4
CODE, HEAP, STACK = 0x40_0000, 0x50_0000, 0x7FFC_0000_0000


def user_regs(mark: int, **more: int) -> dict[str, int]:
    """Return registers of a thread in user mode; ``mark`` is in every general one."""
    regs = {name: mark << 8 | i for i, name in enumerate(PT_REGS)}
    return {**regs, "cs": 0x33, "eflags": 0x246, "rip": CODE + mark, "rsp": STACK + 0x800, "ss": 0x2B, **more}


def frame(regs: dict[str, int]) -> bytes:
    """Pack struct pt_regs."""
    return struct.pack("<21Q", *(regs[name] for name in PT_REGS))


def prstatus(pid: int, regs: dict[str, int]) -> bytes:
    """Pack struct elf_prstatus as kdump's and QEMU's notes have it."""
    return elf_prstatus(pid, struct.pack("<27Q", *(regs.get(name, 0) for name in USER_REGS)))


def qemu_note(cr3: int, fs_base: int = 0, gs_base: int = 0, kernel_gs_base: int = 0) -> bytes:
    """Pack QEMUCPUState."""
    bases = {3: fs_base, 4: gs_base}
    segments = b"".join(struct.pack("<IIIIQ", 0, 0, 0, 0, bases.get(i, 0)) for i in range(10))
    return (
        struct.pack("<II", 1, 440)
        + bytes(144)
        + segments
        + struct.pack("<6Q", 0x8005_0033, 0, 0, cr3, 0, kernel_gs_base)
    )


class Scene:
    """Tasks, their threads, one address space; ``processes()`` looks at it as the product does."""

    def __init__(self, *offsets: Offsets, pages: int = 200, without: Sequence[str] = ()) -> None:
        self.image = KernelImage(*offsets, pages=pages)
        for item in without:
            tag, _, member = item.partition(".")
            self.image.table.offsets.get(tag, {}).pop(member, None)
        self.init = self.image.make("task_struct", comm=b"swapper/0")
        self.image.table.symbols["init_task"] = self.init
        self.leaders: list[int] = []
        self.states: dict[int, PageState] = {}
        self.relink()

    def relink(self) -> None:
        """Link the leaders into init_task's list."""
        at = self.image.offset("task_struct", "tasks")
        self.image.link(self.init + at, *(leader + at for leader in self.leaders))

    def has(self, tag: str, member: str) -> bool:
        return member in self.image.table.offsets.get(tag, {})

    def task(
        self,
        pid: int,
        tgid: int | None = None,
        *,
        top: bytes | None = None,
        members: Mapping[str, int] | None = None,
        **more: Any,
    ) -> int:
        """Make a task_struct with a kernel stack whose top is ``top``."""
        stack = self.image.alloc(16384, 4096)
        content = frame(user_regs(pid)) if top is None else top
        self.image.write(stack + 16384 - len(content), content)
        values: dict[str, Any] = {"comm": b"task%d" % pid, "static_prio": 120, **(members or {}), **more}
        known = {name: value for name, value in values.items() if self.has("task_struct", name)}
        return self.image.make("task_struct", pid=pid, tgid=pid if tgid is None else tgid, stack=stack, **known)

    def group(self, *tasks: int, mm: int = 0, nr_threads: int | None = None) -> int:
        """Make a thread group of tasks, the leader first; returns the leader."""
        count = len(tasks) if nr_threads is None else nr_threads
        signal = self.image.make("signal_struct", nr_threads=count)
        node = self.image.offset("task_struct", "thread_node")
        self.image.link(signal + self.image.offset("signal_struct", "thread_head"), *(task + node for task in tasks))
        for task in tasks:
            self.image.set("task_struct", task, signal=signal)
            if mm:
                self.image.set("task_struct", task, mm=mm)
        self.leaders.append(tasks[0])
        self.relink()
        return tasks[0]

    def mm(self, *vmas: tuple[int, int, int], **members: Any) -> int:
        """Make an address space of VMAs (start, end, flags)."""
        values = {"pgd": TEXT + self.image.ROOT, "task_size": 0x7FFF_FFFF_F000, **members}
        known = {name: value for name, value in values.items() if self.has("mm_struct", name)}
        mm = self.image.make("mm_struct", **known)
        self.vmas = []
        for start, end, flags in vmas:
            extra: dict[str, int | bytes] = {"anon_vma": self.init} if self.has("vm_area_struct", "anon_vma") else {}
            if self.has("vm_area_struct", "vm_mm"):
                extra["vm_mm"] = mm
            self.vmas.append(
                self.image.make(
                    "vm_area_struct", vm_start=start, vm_end=end, vm_flags=flags | (flags & 0xF) << 4, members=extra
                )
            )
        self.image.vma_tree(mm, [(start, end, vma) for (start, end, _), vma in zip(vmas, self.vmas, strict=True)])
        return mm

    def processes(self, *notes: Note, typed: bool = True) -> Processes:
        self.image.table.typed = typed
        return Processes(self.image.kernel(states=self.states), notes)

    def capture(self, *notes: Note, number: int = 100) -> Captured:
        processes = self.processes(*notes)
        return processes.capture(processes.find(number))


def simple(**members: Any) -> Scene:
    """Return a scene of one process, PID 100, with code, heap and stack."""
    scene = Scene()
    mm = scene.mm(
        (CODE, CODE + 0x2000, VM_READ | VM_EXEC),
        (HEAP, HEAP + 0x4000, VM_READ | VM_WRITE),
        (STACK, STACK + 0x3000, VM_READ | VM_WRITE),
        start_brk=HEAP,
        brk=HEAP + 0x3800,
        start_stack=STACK + 0x2000,
        **members,
    )
    scene.group(scene.task(100), mm=mm)
    return scene


def registers(gregs: bytes) -> dict[str, int]:
    """Return the registers of elf_gregset_t by name."""
    return dict(zip(USER_REGS, struct.unpack("<27Q", gregs), strict=True))
