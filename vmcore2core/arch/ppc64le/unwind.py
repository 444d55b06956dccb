"""POWER: how user stacks unwind."""

from __future__ import annotations

from vmcore2core.arch.parts import Unwind, code_of
from vmcore2core.arch.spec import CoreMachine, SignalTrampoline, UnwindSpec
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.overrides import override


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a branch that sets the link register: bl, bcl, bctrl, blrl (Power ISA, 2.4)."""
    word = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    form = word >> 26
    if form == fmt.OP_BRANCH_REG:
        return bool(word & fmt.LK) and word >> 1 & 0x3FF in fmt.BRANCH_REG_XO
    # A call that restores the TOC pointer is followed by "ld r2,24(r1)" or a nop, to which it returns.
    return form in (fmt.OP_BRANCH, fmt.OP_BRANCH_CONDITIONAL) and bool(word & fmt.LK)


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("nip"),
    stack_pointer=fmt.DWARF_REGS.index("r1"),
    frame_pointer=fmt.DWARF_REGS.index("r31"),
    preserved=frozenset(fmt.DWARF_REGS.index(name) for name in fmt.PRESERVED),
    trampolines=tuple(
        SignalTrampoline(fmt.SIGTRAMP, entry, mcontext, None, fmt.pt_regs["little"], fmt.SIGCONTEXT_NAMES)
        for entry, mcontext in (
            (0, fmt.SIGNAL_FRAMESIZE + fmt.SIGFRAME_REGS),
            (4, fmt.SIGFRAME_REGS),
            (8, fmt.SIGFRAME_REGS),
        )
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("link"),
    back_chain=fmt.STACK_FRAME_LR_SAVE,
    frames_by_code=code_of("ppc64le"),
    has_cfi=True,
    gdb_names={"nip": "pc", "link": "lr"},
)


class Ppc64leUnwind(Unwind):
    """How user stacks of POWER unwind."""

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec | None:
        return _UNWIND if machine.elf_class == 64 else None
