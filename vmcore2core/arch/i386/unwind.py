"""i386: how user stacks unwind."""

from __future__ import annotations

from vmcore2core.arch.parts import Unwind
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.arch.x86.unwind import unwind_32
from vmcore2core.formats import i386 as fmt
from vmcore2core.overrides import override

_UNWIND = unwind_32(fmt.DWARF_REGS)


class I386Unwind(Unwind):
    """How user stacks of i386 unwind."""

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec | None:
        return _UNWIND
