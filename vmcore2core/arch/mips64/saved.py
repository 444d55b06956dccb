"""Find the user registers that kernel functions save during a system call, by unwinding the kernel stack.

handle_sys() saves the registers that a call may change (SAVE_SOME). $s0 to $s7 and $fp stay in the processor, and each
kernel function that needs one saves it in its frame. At the end switch_to() saves them in ``thread_struct``. Unwinding
from there, by the instructions of each function, gives the program's values. They are accepted if the frames end
exactly at ``struct pt_regs``, in the call through the table of system calls.

References: arch/mips/kernel/{entry.S,scall64-n64.S,r4k_switch.S,process.c}, arch/mips/include/asm/stackframe.h
(Linux 6.1).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.mips64.code import BEFORE, BEHIND, frame_at_call, is_call
from vmcore2core.arch.spec import CodeFrame
from vmcore2core.arch.task import ThreadStruct
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView

FRAMES_MAX = 64
PIECE = 4096

_SWITCHED = {**{number: f"reg{number}" for number in fmt.STATIC}, fmt.SP: "reg29", fmt.RA: "reg31"}
STATIC_NAMES = tuple(fmt.GPRS[number] for number in fmt.STATIC)
LAYOUT_KEYS = (
    *(f"OFFSET(task_struct.thread.{member})" for member in sorted(_SWITCHED.values())),
    "OFFSET(task_struct.on_cpu)",
)


class KernelStack:
    """The frames on the kernel stack of one task in a system call.

    Args:
        task: ``struct task_struct *``.
        stack: the lowest address of its kernel stack.
        pt_regs: where its user registers are on it.
        kernel: the dumped one.
        byte_order: of the kernel.
    """

    def __init__(self, task: int, stack: int, pt_regs: int, kernel: KernelView, byte_order: ByteOrder) -> None:
        self.task, self.stack, self.pt_regs, self.kernel, self.layout = task, stack, pt_regs, kernel, kernel.layout
        self.byte_order: ByteOrder = byte_order

    def static_regs(self) -> Mapping[str, int] | None:
        """Return the known ones of $s0 to $s7 and $fp, by name; None if pt_regs itself has them all.

        It has them if the task is returning to user mode (SAVE_STATIC was done), or was forked and never ran: a call
        that clones saves all.
        """
        try:
            regs = self._switched()
            if regs is None:
                return {}
            if regs[fmt.SP] == self.pt_regs:
                return None
            for _ in range(FRAMES_MAX):
                call = self._word(regs[fmt.RA] - 8, 4)
                if not is_call(call):
                    return {}
                if regs[fmt.SP] == self.pt_regs:
                    direct = call >> 26 == fmt.OP_JAL
                    return None if direct else {fmt.GPRS[n]: regs[n] for n in fmt.STATIC if n in regs}
                frame = self._frame(regs[fmt.RA] - 8)
                if frame is None or regs[fmt.SP] + frame.size > self.pt_regs:
                    return {}
                regs = self._caller(regs, frame)
        except MemoryFault:
            pass
        return {}

    def _switched(self) -> dict[int, int] | None:
        """Return what switch_to() saved; None if that is not known, or out of date because the task was on a CPU."""
        on_cpu = self.layout.find_member("task_struct", "on_cpu")
        if on_cpu is None or self._word(self.task + on_cpu.offset, 4):
            return None
        thread = ThreadStruct(self.task, self.kernel)
        regs = {number: thread.uint(member) for number, member in _SWITCHED.items()}
        known = {number: value for number, value in regs.items() if value is not None}
        inside = self.stack < known.get(fmt.SP, 0) <= self.pt_regs and known.get(fmt.SP, 0) % 8 == 0
        return known if inside and fmt.RA in known else None

    def _caller(self, regs: Mapping[int, int], frame: CodeFrame) -> dict[int, int]:
        """Return the registers' values in the function's caller."""
        sp = regs[fmt.SP]
        found = {number: value for number, value in regs.items() if number not in frame.changed}
        found |= {number: self._word(sp + offset, 8) for number, offset in frame.saved.items()}
        return {**found, fmt.SP: sp + frame.size}

    def _frame(self, call: int) -> CodeFrame | None:
        """Return the frame of the function that makes the call at an address."""
        before, behind = b"", b""
        at = call
        # In pieces: the code's beginning or end may be missing.
        while len(before) < BEFORE:
            start = (at - 1) & -PIECE
            try:
                before = self.kernel.memory.read(start, at - start) + before
            except MemoryFault:
                break
            at = start
        base = at
        at = call
        while len(behind) < BEHIND:
            end = (at & -PIECE) + PIECE
            try:
                behind += self.kernel.memory.read(at, end - at)
            except MemoryFault:
                break
            at = end
        if not behind or call % 4:
            return None
        return frame_at_call(before + behind, base, call - base, self.byte_order)

    def _word(self, address: int, size: int) -> int:
        return self.kernel.uint(address, size)
