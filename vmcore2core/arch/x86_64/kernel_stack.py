"""Kernel stacks of x86-64, by the ORC tables of the kernel and its modules.

For each range of code, a table tells where the caller's stack pointer is relative to a register, and whether a return
address or saved registers lie there. So unwinding crosses the stacks of interrupts, exceptions and NMIs.

References: arch/x86/kernel/unwind_orc.c: unwind_next_frame(), __unwind_start(); arch/x86/include/asm/orc_types.h:
struct orc_entry; arch/x86/include/asm/switch_to.h: struct inactive_task_frame (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import KernelStacks
from vmcore2core.arch.kernel_stack import KernelFrame, KernelStackEnd, KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.spec import CpuNote
from vmcore2core.errors import CorruptStructure, LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.formats._cabi import signed
from vmcore2core.interfaces import KernelView, Member, Memory
from vmcore2core.overrides import override

NOTHING, PREV_SP, SP, BP, SP_INDIRECT, BP_INDIRECT = "undefined", "prev sp", "sp", "bp", "sp indirect", "bp indirect"
REGISTERS = (NOTHING, "rax", "rdx", SP, BP, "rdi", "r10", "r13", PREV_SP, SP_INDIRECT, BP_INDIRECT)
REGISTERS_BEFORE = (NOTHING, PREV_SP, "rdx", "rdi", BP, SP, "r10", "r13", BP_INDIRECT, SP_INDIRECT)
"""ORC_REG_*, as Linux 7.2 and Linux 6.12 number them."""
UNDEFINED, END_OF_STACK, CALL, REGS, REGS_PARTIAL = "undefined", "end of stack", "call", "regs", "iret"
# Since Linux kernel commit fb799447ae29 ("x86,objtool: Split UNWIND_HINT_EMPTY in two") (in v6.4), the type has three
# bits; before, it has two, and one more bit marks the end of the stack.
TYPES = (UNDEFINED, END_OF_STACK, CALL, REGS, REGS_PARTIAL)
TYPES_BEFORE_6_4 = (CALL, REGS, REGS_PARTIAL, UNDEFINED)
SIZEOF_ORC_ENTRY = 6
ORCS_MAX = 1 << 22
DAMAGED_PART = 16
"""A table is rejected if more than one in this many entries is out of order."""
PAGE_SIZE = 4096
CALL_REL32 = 0xE8
CALL_SEARCH = 4096
"""Number of bytes of a stack to search for a call."""
WORD = (1 << 64) - 1
_PT_REGS = {name: 8 * i for i, name in enumerate(fmt.pt_regs.names or ())}
"""Register -> offset in ``struct pt_regs``, in bytes."""
IRET_FRAME = _PT_REGS["rip"]
"""IRET_FRAME_OFFSET: offset in ``struct pt_regs`` of the part that the processor itself saves."""
INACTIVE_TASK_FRAME = {"bp": 40, "ret_addr": 48}
"""Used if the layout does not have it; unchanged since Linux 5.8."""


class OrcEntry(NamedTuple):
    """``struct orc_entry`` of any kernel."""

    sp_reg: str
    sp_offset: int
    bp_reg: str
    bp_offset: int
    kind: str
    signal: bool


FRAME_POINTER = OrcEntry(BP, 16, PREV_SP, -16, CALL, signal=False)
"""orc_fp_entry: for code without an entry."""


@dataclass(frozen=True, slots=True)
class OrcFrame(KernelFrame):
    """A frame, with the data that leads to the next one.

    Attributes:
        bp: rbp.
        regs: address of the ``struct pt_regs`` of an interrupted frame, None for a caller.
        full: whether all registers are there, or only rip to ss.
        known: registers of the CPU's note, for the first frame.
    """

    bp: int
    regs: int | None = None
    full: bool = False
    known: Mapping[str, int] | None = None


class OrcTable:
    """One pair of tables; if it is damaged, the intact part.

    Args:
        memory: kernel virtual memory.
        ips: address of the code addresses, int32 each, relative to itself.
        orcs: address of ``struct orc_entry[count]``.
        count: of entries.

    Raises:
        LayoutInvalid: it is no ORC table.
        MemoryFault: no part of it can be read.
    """

    def __init__(self, memory: Memory, ips: int, orcs: int, count: int) -> None:
        if not 0 < count <= ORCS_MAX:
            raise LayoutInvalid(f"an ORC table at {ips:#x} has {count:#x} entries, expected 1 to {ORCS_MAX:#x}")
        offsets, numbers = _readable_words(memory, ips, count)
        places = (offsets.astype(np.int64) + 4 * numbers).view(np.uint64) + np.uint64(ips)
        if not (places[1:] >= places[:-1]).all():
            ordered = _ascending(places.tolist())
            if DAMAGED_PART * (len(places) - len(ordered)) > len(places):
                raise LayoutInvalid(f"the ORC table at {ips:#x} is not in the order of addresses")
            places, numbers = places[ordered], numbers[ordered]
        self._memory, self._ips, self._orcs, self._count = memory, ips, orcs, count
        self._places, self._numbers = places, numbers

    def find(self, pc: int) -> bytes | None:
        """Return the entry for a code address, as bytes from memory.

        Raises:
            CorruptStructure: it is damaged or not in the dump.
            MemoryFault: it cannot be read.
        """
        at = int(np.searchsorted(self._places, np.uint64(pc), "right")) - 1
        number = int(self._numbers[at]) if at >= 0 else -1
        following = int(self._numbers[at + 1]) if at + 1 < len(self._numbers) else self._count
        if following != number + 1:
            what = f"not in the dump or not in the order of addresses, so that of {pc:#x} is not known"
            raise CorruptStructure(what, self._ips + 4 * (number + 1), "an ORC table's entry")
        return None if at < 0 else self._memory.read(self._orcs + SIZEOF_ORC_ENTRY * number, SIZEOF_ORC_ENTRY)


def _readable_words(memory: Memory, start: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return int32[n], the elements of an array that memory has, and int64[n], their indices; it reads page by page.

    Raises:
        MemoryFault: memory has none of them.
    """
    end, found, lost = start + 4 * count, list[bytes](), None
    numbers = list[NDArray[np.int64]]()
    try:
        return np.frombuffer(memory.read(start, 4 * count), "<i4"), np.arange(count, dtype=np.int64)
    except MemoryFault as fault:
        lost = fault.reading(f"an ORC table of {count} entries")
    for at in range(start & -PAGE_SIZE, end, PAGE_SIZE):
        low, high = max(at, start), min(at + PAGE_SIZE, end)
        try:
            found.append(memory.read(low, high - low))
        except MemoryFault:
            continue
        numbers.append(np.arange((low - start) // 4, (high - start) // 4, dtype=np.int64))
    if not found:
        raise lost from None
    return np.frombuffer(b"".join(found), "<i4"), np.concatenate(numbers)


def _ascending(places: Sequence[int]) -> NDArray[np.intp]:
    """Return the indices of the longest ascending sequence: as few addresses as possible are removed."""
    lasts, ends = list[int](), list[int]()  # for each length: a sequence's lowest last address, its index
    before = np.full(len(places), -1, np.intp)
    for i, place in enumerate(places):
        length = len(lasts) if not lasts or place >= lasts[-1] else bisect_right(lasts, place)
        before[i] = ends[length - 1] if length else -1
        lasts[length : length + 1], ends[length : length + 1] = [place], [i]
    kept = [ends[-1]] if ends else []
    while kept and before[kept[-1]] >= 0:
        kept.append(int(before[kept[-1]]))
    return np.array(kept[::-1], np.intp)


class OrcUnwinder(KernelUnwinder):
    """Unwinds kernel stacks by the kernel's ORC tables.

    Args:
        kernel: the dumped one.
        modules: the loaded ones.

    Raises:
        LayoutUnknown: the layout lacks the tables' symbols.
        LayoutInvalid, MemoryFault: they cannot be used.
    """

    def __init__(self, kernel: KernelView, modules: Sequence[ModuleText]) -> None:
        self._kernel, self._layout, self._modules = kernel, kernel.layout, modules
        start, stop = kernel.layout.symbol("__start_orc_unwind_ip"), kernel.layout.symbol("__stop_orc_unwind_ip")
        self._text = range(kernel.layout.symbol("_stext"), kernel.layout.symbol("_etext"))
        self._init_text = range(
            kernel.layout.find_symbol("_sinittext") or 0, kernel.layout.find_symbol("_einittext") or 0
        )
        self._core = OrcTable(kernel.memory, start, kernel.layout.symbol("__start_orc_unwind"), (stop - start) // 4)
        self._of_modules: dict[int, OrcTable | None] = {}
        members = {
            name: kernel.layout.member("orc_entry", name) for name in ("sp_offset", "bp_offset", "sp_reg", "bp_reg")
        }
        self._members, self._type = members, kernel.layout.member("orc_entry", "type")
        self._signal, self._end = (
            kernel.layout.find_member("orc_entry", "signal"),
            kernel.layout.find_member("orc_entry", "end"),
        )

    @override
    def switched_out(self, task: KernelAddr) -> OrcFrame:
        """thread.sp points to ``struct inactive_task_frame``."""
        sp = self._word(task + self._layout.member("task_struct", "thread.sp").offset)
        places = {name: self._in_frame(name) for name in INACTIVE_TASK_FRAME}
        size = self._layout.find_size("inactive_task_frame") or INACTIVE_TASK_FRAME["ret_addr"] + 8
        pc = self._word(sp + places["ret_addr"])
        exact = pc in (self._layout.find_symbol("ret_from_fork_asm"), self._layout.find_symbol("ret_from_fork"))
        return OrcFrame(pc, sp + size, "switch frame", exact, bp=self._word(sp + places["bp"]))

    def _in_frame(self, name: str) -> int:
        found = self._layout.find_member("inactive_task_frame", name)
        return INACTIVE_TASK_FRAME[name] if found is None else found.offset

    @override
    def running(self, note: CpuNote) -> OrcFrame:
        regs = note.regs
        return OrcFrame(regs["rip"], regs["rsp"], "crash note", exact=True, bp=regs["rbp"], known=regs)

    @override
    def caller(self, frame: KernelFrame) -> KernelFrame | KernelStackEnd:
        assert isinstance(frame, OrcFrame)  # noqa: S101 - of this class's own methods
        orc, found_by = self._entry(frame.lookup_pc), "ORC"
        if orc is None:
            orc, found_by = FRAME_POINTER, "frame pointer"
        elif orc.kind == UNDEFINED and frame.known is not None:
            found = self._found_call(frame)
            if found is not None:
                return found
        if orc.kind == END_OF_STACK:
            return KernelStackEnd(complete=True, why="the end of the stack")
        sp = self._previous_sp(frame, orc) if orc.kind != UNDEFINED else None
        if sp is None:
            return KernelStackEnd(complete=False, why=f"no way from {frame.pc:#x} to its caller is known")
        bp = self._previous_bp(frame, orc, sp)
        if orc.kind == CALL:
            following = OrcFrame(self._word(sp - 8), sp, found_by, orc.signal, bp=bp)
        else:
            regs = sp if orc.kind == REGS else sp - IRET_FRAME
            if self._saved(regs, "cs") & 3:
                return KernelStackEnd(complete=True, why="user mode")
            place = self._saved(regs, "rip"), self._saved(regs, "rsp")
            following = OrcFrame(*place, "exception frame", orc.signal, bp, regs, orc.kind == REGS)
        return following if following.pc else KernelStackEnd(complete=False, why=f"the return address at {sp:#x} is 0")

    def _found_call(self, frame: OrcFrame) -> OrcFrame | None:
        """Return the caller of a function without entries: the stack's first return address that follows a call of it.

        __crash_kexec() is such a function (STACK_FRAME_NON_STANDARD): in it, a CPU saves its registers before the crash
        kernel starts.
        """
        symbol = self._layout.find_symbol_at(frame.pc)
        if symbol is None or frame.pc not in self._text:
            return None
        for at in range(frame.sp, frame.sp + CALL_SEARCH, 8):
            place = self._word(at)
            if place in self._text and self._calls(place, symbol.start):
                return OrcFrame(place, at + 8, "call found on the stack", exact=False, bp=frame.bp)
        return None

    def _calls(self, place: int, function: int) -> bool:
        """Tell whether a call of a function ends at an address: e8 and the distance."""
        try:
            raw = self._kernel.memory.read((place - 5) & WORD, 5)
        except MemoryFault:
            return False
        return raw[0] == CALL_REL32 and (place + int.from_bytes(raw[1:], "little", signed=True)) & WORD == function

    def _previous_sp(self, frame: OrcFrame, orc: OrcEntry) -> int | None:
        if orc.sp_reg == SP:
            return frame.sp + orc.sp_offset
        if orc.sp_reg == BP:
            return frame.bp + orc.sp_offset
        if orc.sp_reg == SP_INDIRECT:
            return self._word(frame.sp) + orc.sp_offset
        if orc.sp_reg == BP_INDIRECT:
            return self._word(frame.bp + orc.sp_offset)
        return self._register(frame, orc.sp_reg) if orc.sp_reg in _PT_REGS else None

    def _previous_bp(self, frame: OrcFrame, orc: OrcEntry, sp: int) -> int:
        if orc.bp_reg == PREV_SP:
            return self._word(sp + orc.bp_offset)
        if orc.bp_reg == BP:
            return self._word(frame.bp + orc.bp_offset)
        return self._saved(sp, "rbp") if orc.kind == REGS else frame.bp

    def _register(self, frame: OrcFrame, name: str) -> int | None:
        """Return a register of an interrupted frame; None for a frame that made a call."""
        if frame.known is not None:
            return frame.known[name]
        return self._saved(frame.regs, name) if frame.regs is not None and frame.full else None

    def _saved(self, regs: int, name: str) -> int:
        """Return a register of a ``struct pt_regs``."""
        return self._word(regs + _PT_REGS[name])

    def _word(self, address: int) -> int:
        return self._kernel.uint(address & WORD, 8)

    def _entry(self, pc: int) -> OrcEntry | None:
        """Return the entry for a code address; None if no table has one."""
        table = self._core if pc in self._text or pc in self._init_text else self._of_module(pc)
        raw = None if table is None else table.find(pc)
        return None if raw is None else self._decoded(raw)

    def _of_module(self, pc: int) -> OrcTable | None:
        found = next((one for one in self._modules if one.range.start <= pc < one.range.end), None)
        if found is None:
            return None
        if found.module not in self._of_modules:
            self._of_modules[found.module] = self._module_table(found.module)
        return self._of_modules[found.module]

    def _module_table(self, module: int) -> OrcTable | None:
        names = ("orc_unwind_ip", "orc_unwind")
        try:
            ips, orcs = (self._word(module + self._layout.member("module", f"arch.{name}").offset) for name in names)
            count = self._kernel.memory.read(module + self._layout.member("module", "arch.num_orcs").offset, 4)
            return OrcTable(self._kernel.memory, ips, orcs, int.from_bytes(count, "little"))
        except (LayoutInvalid, LayoutUnknown, MemoryFault):
            return None

    def _decoded(self, raw: bytes) -> OrcEntry:
        sp_reg, bp_reg = (self._register_name(_bits(raw, self._members[name])) for name in ("sp_reg", "bp_reg"))
        sp_offset, bp_offset = (_bits(raw, self._members[name]) for name in ("sp_offset", "bp_offset"))
        number = _bits(raw, self._type)
        kind = self._types[number] if number < len(self._types) else UNDEFINED
        if self._end is not None and sp_reg == NOTHING:
            kind = END_OF_STACK if _bits(raw, self._end) else UNDEFINED
        signal = kind in (REGS, REGS_PARTIAL) if self._signal is None else bool(_bits(raw, self._signal))
        return OrcEntry(sp_reg, signed(sp_offset, 16), bp_reg, signed(bp_offset, 16), kind, signal)

    def _register_name(self, number: int) -> str:
        return self._registers[number] if number < len(self._registers) else NOTHING

    @cached_property
    def _registers(self) -> tuple[str, ...]:
        """Numbers of ORC_REG_*, from the entry for a function's first instruction, which must use rsp."""
        raw = self._core.find(self._layout.symbol("schedule"))
        number = 0 if raw is None else _bits(raw, self._members["sp_reg"])
        for names in (REGISTERS, REGISTERS_BEFORE):
            if names.index(SP) == number:
                return names
        raise LayoutInvalid(f"ORC has register {number} for the stack pointer of schedule(), expected 3 or 5")

    @cached_property
    def _types(self) -> tuple[str, ...]:
        return TYPES if self._type.bit_size == 3 else TYPES_BEFORE_6_4


def _bits(raw: bytes, member: Member) -> int:
    """Return a member of an entry; a bit field's word may reach beyond the entry."""
    value = int.from_bytes(raw[member.offset : member.offset + (member.size or 2)], "little")
    if member.bit_size is None:
        return value
    return value >> (member.bit_offset or 0) & ((1 << member.bit_size) - 1)


class X86_64KernelStacks(KernelStacks):
    """Kernel stacks of x86-64."""

    @override
    def unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        """Needs CONFIG_UNWINDER_ORC, which all distributions set."""
        return OrcUnwinder(kernel, modules)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        """orig_rax is -1 after an interrupt or an exception."""
        number = regs.get("orig_rax", -1) & 0xFFFF_FFFF
        if number >> 31:
            return None
        if regs.get("cs") == fmt.USER32_CS:
            arguments = tuple(regs[name] & 0xFFFF_FFFF for name in fmt.SYSCALL_ARGUMENTS32)
            return SystemCall(number, arguments, "ia32_sys_call_table", native=False)
        arguments = tuple(regs[name] for name in fmt.SYSCALL_ARGUMENTS)
        return SystemCall(number & ~fmt.X32_SYSCALL_BIT, arguments, native=not number & fmt.X32_SYSCALL_BIT)
