"""Hand-made ORC tables of each form, for cases that the real stacks in tests/e2e do not have.

Tests arch/x86_64/unwind.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from tests.builders.kernelimage import TEXT, KernelImage, Table
from vmcore2core.addresses import AddressRange, KernelAddr
from vmcore2core.arch.kernel_stack import KernelFrame, KernelTrace, ModuleText
from vmcore2core.arch.x86_64.kernel_stack import OrcFrame, OrcUnwinder
from vmcore2core.containers.base import PageState
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.interfaces import Member, MemoryAndLayout, SymbolAt
from vmcore2core.layout.resolver import KernelLayout

DX, DI, BP, SP, R10, R13, BP_INDIRECT, SP_INDIRECT = range(2, 10)
PREV_SP = 1
SCHEDULE = TEXT + 0x800
FUNCTION = TEXT + 0x1000
MODULE = TEXT + 0x80_0000
"""Behind _etext."""

Entry = tuple[int, int, int, int, int, int]
"""place, sp_offset, bp_offset, sp_reg, bp_reg, and the upper byte: type and flags."""


class Orc(Table):
    """A layout whose ``struct orc_entry`` is that of one form: bit fields by name."""

    def __init__(self, table: Table, fields: dict[str, tuple[int, int]]) -> None:
        super().__init__(table.offsets, sizes=table.sizes, symbols=table.symbols)
        self.fields = fields

    def member(self, struct: str, path: str) -> Member | None:
        if struct == "orc_entry" and path in self.fields:
            return Member(4, "table", 4, *self.fields[path])
        return super().member(struct, path)

    def symbol_at(self, address: int) -> SymbolAt | None:
        return SymbolAt(b"function", FUNCTION, CALLER - FUNCTION) if FUNCTION <= address < CALLER else None


REGS = {"sp_reg": (0, 4), "bp_reg": (4, 4)}
NEW = {**REGS, "type": (8, 3), "signal": (11, 1)}
"""Since Linux 6.4: 0 undefined, 1 end of the stack, 2 call, 3 registers, 4 what the processor saves."""
MIDDLE = {**REGS, "type": (8, 2), "signal": (10, 1), "end": (11, 1)}
OLD = {**REGS, "type": (8, 2), "end": (10, 1)}
"""0 call, 1 registers, 2 what the processor saves."""


class Stack:
    """A kernel with tables of its own, and one stack."""

    def __init__(self, fields: dict[str, tuple[int, int]] = NEW) -> None:
        self.image, self.fields = KernelImage(), fields
        self.image.table.symbols |= {"_stext": TEXT, "_etext": TEXT + 0x10_0000, "schedule": SCHEDULE}
        self.image.table.offsets["orc_entry"] = {"sp_offset": (0, 2), "bp_offset": (2, 2)}
        self.image.table.offsets["task_struct"]["thread.sp"] = (2400, 8)
        self.image.table.offsets["module"] = {
            "arch.orc_unwind_ip": (16, 8),
            "arch.orc_unwind": (24, 8),
            "arch.num_orcs": (8, 4),
        }
        self.at = self.image.alloc(4096, 4096)
        self.modules: list[ModuleText] = []
        self.excluded: int | None = None

    def tables(self, entries: Sequence[Entry]) -> tuple[int, int, int]:
        """Put a pair of tables into memory: places, entries, count."""
        ips, orcs = self.image.alloc(4 * len(entries)), self.image.alloc(6 * len(entries))
        for i, (place, sp_offset, bp_offset, sp_reg, bp_reg, upper) in enumerate(entries):
            self.image.write(ips + 4 * i, struct.pack("<i", place - (ips + 4 * i)))
            self.image.write(orcs + 6 * i, struct.pack("<hhBB", sp_offset, bp_offset, sp_reg | bp_reg << 4, upper))
        return ips, orcs, len(entries)

    def kernel_table(self, *entries: Entry, sp: int = SP) -> Stack:
        call = 2 if self.fields is NEW else 0
        ips, orcs, count = self.tables([(SCHEDULE, 8, 0, sp, 0, call), *entries])
        symbols = self.image.table.symbols
        symbols |= {"__start_orc_unwind_ip": ips, "__stop_orc_unwind_ip": ips + 4 * count, "__start_orc_unwind": orcs}
        return self

    def module(self, *entries: Entry) -> Stack:
        ips, orcs, count = self.tables(entries)
        members: dict[str, int | bytes] = {"arch.orc_unwind_ip": ips, "arch.orc_unwind": orcs, "arch.num_orcs": count}
        address = self.image.make("module", members)
        self.modules.append(ModuleText(AddressRange(MODULE, MODULE + 0x1000), KernelAddr(address)))
        return self

    def unwinder(self) -> OrcUnwinder:
        states = {} if self.excluded is None else {(self.excluded - TEXT) // 4096: PageState.EXCLUDED}
        kernel = self.image.kernel(states=states)
        return OrcUnwinder(MemoryAndLayout(kernel.memory, _layout(self.image.table, self.fields)), self.modules)

    def trace(self, pc: int = FUNCTION + 5, *, bp: int = 0, limit: int = 64) -> KernelTrace:
        unwinder = self.unwinder()
        return unwinder.trace(OrcFrame(pc, self.at, "switch frame", exact=False, bp=bp), limit)


def _layout(table: Table, fields: dict[str, tuple[int, int]]) -> KernelLayout:
    return KernelLayout([Orc(table, fields)])


def places(trace: KernelTrace) -> list[int]:
    return [frame.pc for frame in trace.frames]


def pt_regs(rip: int, rsp: int, cs: int = 0x10, **more: int) -> list[int]:
    names = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss".split()
    values = {**more, "rip": rip, "rsp": rsp, "cs": cs}
    return [values.get(name, 0) for name in names]


CALLER = FUNCTION + 0x100
END = (CALLER, 0, 0, 0, 0, 1)


def test_a_call_is_followed_and_the_end_is_the_end() -> None:
    stack = Stack().kernel_table((FUNCTION, 32, -16, SP, PREV_SP, 2), END)
    stack.image.words(stack.at, 0, 0, 0x1234, CALLER + 9)
    trace = stack.trace()
    assert places(trace) == [FUNCTION + 5, CALLER + 9]
    last = trace.frames[-1]
    assert isinstance(last, OrcFrame)
    assert (last.sp, last.bp, last.exact, last.found_by) == (stack.at + 32, 0x1234, False, "ORC")
    assert (trace.end.complete, trace.end.why) == (True, "the end of the stack")


def test_a_return_address_behind_a_function_belongs_to_the_call() -> None:
    """A function that ends with a call to one that never returns."""
    stack = Stack().kernel_table((FUNCTION, 8, 0, SP, 0, 2), (CALLER - 1, 16, 0, SP, 0, 2), (CALLER, 0, 0, 0, 0, 0))
    stack.image.words(stack.at, CALLER, 7, 0)
    trace = stack.trace()
    assert places(trace) == [FUNCTION + 5, CALLER]
    assert trace.end.why == f"the return address at {stack.at + 24:#x} is 0"


def test_old_tables_have_other_types_and_the_end_in_a_bit() -> None:
    for fields, end in ((OLD, 1 << 2), (MIDDLE, 1 << 3)):
        stack = Stack(fields).kernel_table((FUNCTION, 8, 0, SP, 0, 0), (CALLER, 0, 0, 0, 0, end))
        stack.image.words(stack.at, CALLER + 9)
        trace = stack.trace()
        assert places(trace) == [FUNCTION + 5, CALLER + 9]
        assert trace.end.complete


def test_code_without_an_entry_in_old_tables_is_no_end() -> None:
    stack = Stack(OLD).kernel_table((FUNCTION, 0, 0, 0, 0, 0))
    trace = stack.trace()
    assert not trace.end.complete
    assert trace.end.why == f"no way from {FUNCTION + 5:#x} to its caller is known"


@pytest.mark.parametrize(("fields", "regs", "iret"), [(NEW, 3 | 8, 4 | 8), (OLD, 1, 2), (MIDDLE, 1 | 4, 2 | 4)])
def test_what_an_interrupt_interrupted_is_found_on_another_stack(
    fields: dict[str, tuple[int, int]], regs: int, iret: int
) -> None:
    entry, handler = FUNCTION + 0x300, FUNCTION + 0x200
    call = 2 if fields is NEW else 0
    stack = Stack(fields).kernel_table(
        (FUNCTION, 8, 0, SP, 0, call),
        (CALLER, 16, -16, SP, PREV_SP, call),
        (handler, 0, 0, SP, 0, regs),
        (entry, 0, 0, SP, 0, iret),
    )
    other = stack.image.alloc(512, 512)
    # FUNCTION was called by the handler, which has all registers of the entry, which was interrupted in CALLER.
    saved = pt_regs(entry, other, rbp=0x77)
    stack.image.words(stack.at, handler + 3, *saved)
    stack.image.words(other, CALLER, 0x10, 0, other + 64, 0)
    stack.image.words(other + 64, 0x99, 0xFFFF_FFFF_0000_0000)
    trace = stack.trace()
    assert places(trace) == [FUNCTION + 5, handler + 3, entry, CALLER, 0xFFFF_FFFF_0000_0000]
    assert [frame.exact for frame in trace.frames] == [False, False, True, True, False]
    assert [frame.found_by for frame in trace.frames[2:4]] == ["exception frame"] * 2
    found = [frame.bp for frame in trace.frames if isinstance(frame, OrcFrame)]
    assert found == [0, 0, 0x77, 0x77, 0x99]


def test_registers_of_user_mode_end_the_stack() -> None:
    stack = Stack().kernel_table((FUNCTION, 0, 0, SP, 0, 3 | 8))
    stack.image.words(stack.at, *pt_regs(0x40_1000, 0x7FFC_0000_0000, cs=0x33))
    trace = stack.trace()
    assert (places(trace), trace.end.complete, trace.end.why) == ([FUNCTION + 5], True, "user mode")


@pytest.mark.parametrize(
    ("sp_reg", "offset", "value"),
    [
        (BP, 16, None),
        (BP_INDIRECT, 8, "at"),
        (SP_INDIRECT, 8, "at"),
        (R10, 0, None),
        (R13, 0, None),
        (DI, 0, None),
        (DX, 0, None),
    ],
)
def test_the_callers_stack_is_where_a_register_says(sp_reg: int, offset: int, value: str | None) -> None:
    stack = Stack().kernel_table((FUNCTION, offset, 0, sp_reg, 0, 2), END)
    goal, bp = stack.at + 0x200, stack.at + 0x100
    regs = dict.fromkeys(("r10", "r13", "rdi", "rdx"), goal)
    if sp_reg == BP:
        bp = goal - offset
    stack.image.words(bp + 8, goal)
    stack.image.words(stack.at, goal - offset)
    stack.image.words(goal - 8, CALLER + 9)
    first = OrcFrame(FUNCTION + 5, stack.at, "crash note", exact=True, bp=bp, known={**regs, "rbp": bp})
    trace = stack.unwinder().trace(first)
    assert places(trace) == [FUNCTION + 5, CALLER + 9]
    assert trace.frames[-1].sp == goal
    assert value is None or sp_reg in (BP_INDIRECT, SP_INDIRECT)


def test_a_register_that_is_not_known_ends_the_stack() -> None:
    stack = Stack().kernel_table((FUNCTION, 0, 0, R10, 0, 2))
    assert not stack.trace().end.complete


def test_code_that_no_table_has_is_left_by_its_frame_pointer() -> None:
    """BPF's programs, for one."""
    stack = Stack().kernel_table((CALLER, 0, 0, 0, 0, 1))
    stack.image.words(stack.at + 0x40, 0x55, CALLER + 9)
    trace = stack.trace(0xFFFF_FFFF_C000_1000, bp=stack.at + 0x40)
    assert places(trace) == [0xFFFF_FFFF_C000_1000, CALLER + 9]
    assert trace.frames[1].found_by == "frame pointer"


def test_a_module_has_a_table_of_its_own() -> None:
    stack = Stack().kernel_table(END).module((MODULE, 24, 0, SP, 0, 2))
    stack.image.words(stack.at, 1, 2, CALLER + 9)
    assert places(stack.trace(MODULE + 0x20)) == [MODULE + 0x20, CALLER + 9]
    stack.modules[0] = ModuleText(stack.modules[0].range, KernelAddr(0xFFFF_FFFF_8F00_0000))
    assert not stack.trace(MODULE + 0x20).end.complete


def test_a_stack_that_leads_back_into_itself_ends() -> None:
    stack = Stack().kernel_table((FUNCTION, 0, 0, SP_INDIRECT, 0, 2))
    stack.image.words(stack.at - 8, FUNCTION + 5)
    stack.image.words(stack.at, stack.at)
    assert stack.trace().end.why == f"the stack comes back to {stack.at:#x}"


def test_a_stack_without_an_end_is_cut() -> None:
    stack = Stack().kernel_table((FUNCTION, 8, 0, SP, 0, 2))
    for i in range(64):
        stack.image.words(stack.at + 8 * i, FUNCTION + 5)
    trace = stack.trace(limit=10)
    assert (len(trace.frames), trace.end.why) == (10, "there are more than 10 frames")


def test_a_stack_that_leads_out_of_memory_says_where() -> None:
    stack = Stack().kernel_table((FUNCTION, 0, 0, BP, 0, 2))
    trace = stack.trace(bp=0x100)
    assert not trace.end.complete
    assert trace.end.why.startswith("the stack cannot be read: address 0xf8 ")


def test_a_task_that_never_ran_begins_where_it_would() -> None:
    stack = Stack().kernel_table((FUNCTION, 0, 0, 0, 0, 1))
    stack.image.table.symbols["ret_from_fork_asm"] = FUNCTION
    task = stack.image.make("task_struct", {"thread.sp": stack.at})
    stack.image.words(stack.at + 40, 0x66, FUNCTION)
    first = stack.unwinder().switched_out(KernelAddr(task))
    assert (first.pc, first.sp, first.bp, first.exact) == (FUNCTION, stack.at + 56, 0x66, True)
    assert stack.unwinder().trace(first).end.complete


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(LayoutInvalid, match="not in the order of addresses"):
        Stack().kernel_table((CALLER, 0, 0, 0, 0, 1), (FUNCTION, 0, 0, 0, 0, 1)).unwinder()
    stack = Stack().kernel_table(END)
    stack.image.table.symbols["__stop_orc_unwind_ip"] = TEXT
    with pytest.raises(LayoutInvalid, match="expected 1 to 0x400000"):
        stack.unwinder()
    del stack.image.table.symbols["__start_orc_unwind"]
    with pytest.raises(LayoutUnknown):
        stack.unwinder()


def damaged(stack: Stack, number: int, word: int) -> Stack:
    """Give the kernel's table another word."""
    stack.image.write(stack.image.table.symbols["__start_orc_unwind_ip"] + 4 * number, struct.pack("<i", word))
    return stack


def long_table(nr_functions: int) -> Stack:
    """A kernel of functions of 16 bytes, each of which has 8 bytes on the stack; behind them is the outermost."""
    functions = ((FUNCTION + 16 * i, 16, 0, SP, 0, 2) for i in range(nr_functions))
    return Stack().kernel_table(*functions, (FUNCTION + 16 * nr_functions, 0, 0, 0, 0, 1))


INNER, DAMAGED, OUTER = (FUNCTION + 16 * i + 9 for i in (8, 20, 40))


@pytest.mark.parametrize("word", [0x7FFF_FFFF, -0x8000_0000, 0])
def test_of_a_damaged_table_what_is_whole_is_used(word: int) -> None:
    stack = damaged(long_table(40), 21, word)
    stack.image.words(stack.at, 0, INNER, 0, OUTER)
    trace = stack.trace(INNER)
    assert (places(trace), trace.end.complete) == ([INNER, INNER, OUTER], True)
    stack.image.words(stack.at, 0, DAMAGED, 0, OUTER)
    trace = stack.trace(INNER)
    assert (places(trace), trace.end.complete) == ([INNER, DAMAGED], False)
    assert "not in the order of addresses" in trace.end.why
    stack.image.words(stack.at, 0, OUTER)
    # Whether the entry in front of it reaches to there is not known, as where the damaged one began is not.
    assert not stack.trace(DAMAGED - 16).end.complete
    assert stack.trace(DAMAGED + 16).end.complete


def test_entries_whose_pages_are_not_in_the_dump_are_not_known() -> None:
    stack, lost = long_table(3000), FUNCTION + 16 * 1500
    stack.excluded = stack.image.table.symbols["__start_orc_unwind_ip"] // 4096 * 4096 + 4096
    stack.image.words(stack.at, 0, INNER, 0, lost)
    trace = stack.trace(INNER)
    assert places(trace) == [INNER, INNER, lost]
    assert "not in the dump" in trace.end.why


def test_registers_have_other_numbers_since() -> None:
    """Linux 7.2 has 3 for rsp, 4 for rbp, 8 for the caller's rsp, 10 for what rbp points to."""
    for reg in (4, 10):
        stack = Stack().kernel_table((FUNCTION, 0x30, -16, reg, 8, 2), END, sp=3)
        stack.image.words(stack.at + 0x20, 0x88, CALLER + 9)
        stack.image.words(stack.at + 0x70, stack.at + 0x30)
        trace = stack.trace(bp=stack.at + (0x40 if reg == 10 else 0))
        assert places(trace) == [FUNCTION + 5, CALLER + 9]
        last = trace.frames[-1]
        assert isinstance(last, OrcFrame)
        assert last.bp == 0x88
    with pytest.raises(LayoutInvalid, match="register 6 for the stack pointer"):
        Stack().kernel_table(END, sp=6).trace(CALLER + 1)


def crashed(stack: Stack) -> KernelTrace:
    """Return the trace of a CPU whose note says FUNCTION, which has no entry."""
    first = OrcFrame(FUNCTION + 0x30, stack.at, "crash note", exact=True, bp=0x77, known={"rbp": 0x77})
    return stack.unwinder().trace(first)


def test_a_function_without_entries_was_called_by_the_first_call_of_it() -> None:
    stack = Stack().kernel_table((FUNCTION, 0, 0, 0, 0, 0), END)
    other, real = CALLER + 0x20, CALLER + 0x40
    stack.image.write(other - 5, b"\xe8" + struct.pack("<i", FUNCTION + 1 - other))
    stack.image.write(real - 5, b"\xe8" + struct.pack("<i", FUNCTION - real))
    stack.image.words(stack.at, FUNCTION + 0x30, other, 1, real)
    trace = crashed(stack)
    assert places(trace) == [FUNCTION + 0x30, real]
    assert (trace.frames[1].sp, trace.frames[1].found_by) == (stack.at + 32, "call found on the stack")
    assert trace.end.complete


def test_a_function_without_entries_that_nothing_called_ends_the_stack() -> None:
    stack = Stack().kernel_table((FUNCTION, 0, 0, 0, 0, 0), END)
    stack.image.words(stack.at, CALLER + 0x20)
    assert crashed(stack).end.why == f"no way from {FUNCTION + 0x30:#x} to its caller is known"


def test_a_frame_is_what_its_class_says() -> None:
    assert KernelFrame(10, 0, "ORC", exact=True).lookup_pc == 10
    assert KernelFrame(10, 0, "ORC", exact=False).lookup_pc == 9
