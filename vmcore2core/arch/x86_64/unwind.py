"""x86-64: how user stacks unwind."""

from __future__ import annotations

from vmcore2core.arch.parts import Unwind
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.arch.x86.unwind import UNWIND_64, UNWIND_X32, unwind_32
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.formats.elf import EM_386, EM_X86_64
from vmcore2core.overrides import override

_UNWIND_32 = unwind_32(fmt.DWARF_REGS32)


class X86_64Unwind(Unwind):
    """How user stacks of x86-64 unwind."""

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec | None:
        known = {(EM_386, 32): _UNWIND_32, (EM_X86_64, 32): UNWIND_X32, (EM_X86_64, 64): UNWIND_64}
        return known.get((machine.e_machine, machine.elf_class))
