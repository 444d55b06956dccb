"""Where a thread's kernel stack begins, and the message if it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.builders.kernelimage import TEXT, KernelImage
from tests.process.scene import prstatus, user_regs
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import KernelStacks as KernelStacksOf
from vmcore2core.arch.kernel_stack import KernelFrame, KernelStackEnd, KernelUnwinder, ModuleText
from vmcore2core.arch.spec import CpuNote
from vmcore2core.arch.x86_64.machine import X86_64
from vmcore2core.elf.notes import Note
from vmcore2core.errors import NotMapped, TaskError
from vmcore2core.interfaces import KernelView
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.kernelbt import KernelStack, KernelStacks
from vmcore2core.process.threads import CpuNotes


class OneFrame(KernelUnwinder):
    """Stacks of one frame."""

    def switched_out(self, task: KernelAddr) -> KernelFrame:
        raise NotMapped(task)

    def running(self, note: CpuNote) -> KernelFrame:
        return KernelFrame(note.regs["rip"], note.regs["rsp"], "crash note", exact=True)

    def caller(self, frame: KernelFrame) -> KernelStackEnd:
        return KernelStackEnd(complete=True, why="the end of the stack")


class OneFrameStacks(KernelStacksOf):
    """Kernel stacks of one frame."""

    def unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return OneFrame()


class Machine(X86_64):
    """A machine with such stacks."""

    kernel_stacks = OneFrameStacks()  # type: ignore[assignment]


class Unknown(X86_64):
    """A machine of which it is not known how its stacks unwind."""

    kernel_stacks = None  # type: ignore[assignment]


def stack_of(notes: tuple[Note, ...] = (), **members: int) -> KernelStack:
    image = KernelImage()
    task = image.make("task_struct", {"thread_info.cpu": 0}, pid=812, **members)
    kernel = replace(image.kernel(), arch=Machine())
    return KernelStacks(kernel, CpuNotes(kernel, notes)).of(StructView(kernel, "task_struct", KernelAddr(task)))


def note(**regs: int) -> tuple[Note, ...]:
    return (Note("CORE", 1, prstatus(812, user_regs(1, **regs))),)


def test_a_task_on_a_cpu_begins_with_its_registers() -> None:
    found = stack_of(note(rip=TEXT + 5, cs=0x10), on_cpu=1)
    assert [(frame.address, frame.found_by, frame.function) for frame in found.frames] == [
        (TEXT + 5, "crash note", None)
    ]
    assert found.frames[0].line() == f"#0  {TEXT + 5:#x} ?? [crash note]"
    assert (found.complete, found.end) == (True, "the end of the stack")


def test_a_task_in_user_mode_has_no_kernel_frames() -> None:
    assert stack_of(note(), on_cpu=1) == KernelStack((), complete=True, end="CPU 0 was in user mode")


def test_a_cpu_without_registers_is_said() -> None:
    why = "it was running on CPU 0, whose registers the dump lacks"
    assert stack_of(on_cpu=1) == KernelStack((), complete=False, end=why)


def test_a_task_that_has_exited_has_no_stack() -> None:
    assert stack_of(stack=0) == KernelStack((), complete=True, end="it has exited, and its stack is gone")


def test_what_cannot_be_read_is_said() -> None:
    found = stack_of(stack=TEXT)
    assert (found.frames, found.complete) == ((), False)
    assert found.end.endswith("is not mapped")


def test_where_stacks_are_not_needed_each_says_why_it_has_none() -> None:
    image = KernelImage()
    task = image.make("task_struct", pid=812, stack=TEXT)
    kernel = replace(image.kernel(), arch=Unknown())
    stacks = KernelStacks(kernel, CpuNotes(kernel, ()), needed=False)
    found = stacks.of(StructView(kernel, "task_struct", KernelAddr(task)))
    why = "how the kernel's own stacks of x86_64 unwind is not known yet"
    assert found == KernelStack((), complete=False, end=why)


def test_a_machine_whose_stacks_are_not_known_is_said() -> None:
    kernel = replace(KernelImage().kernel(), arch=Unknown())
    with pytest.raises(TaskError, match="how the kernel's own stacks of x86_64 unwind is not known yet"):
        KernelStacks(kernel, CpuNotes(kernel, ()))
