"""arm64: how user stacks unwind."""

from __future__ import annotations

from vmcore2core.arch.parts import Unwind, code_of
from vmcore2core.arch.spec import CoreMachine, SignalTrampoline, UnwindSpec
from vmcore2core.formats import arm64 as fmt
from vmcore2core.overrides import override


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call instruction: bl, blr, or blr with authentication."""
    word = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    return any(word & mask == call for call, mask in fmt.CALLS)


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("pc"),
    stack_pointer=fmt.DWARF_REGS.index("sp"),
    frame_pointer=fmt.DWARF_REGS.index("x29"),
    preserved=frozenset(range(19, 30)),
    trampolines=tuple(
        SignalTrampoline(
            fmt.RT_SIGRETURN,
            entry,
            fmt.RT_SIGFRAME_MCONTEXT,
            None,
            fmt.sigcontext,
            {name: name for name in fmt.DWARF_REGS},
        )
        for entry in (0, 4)
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("x30"),
    signed_bits=fmt.SIGNED_BITS,
    record_ends_frame=False,
    frames_by_code=code_of("arm64"),
    has_cfi=True,
)


class Arm64Unwind(Unwind):
    """How user stacks of arm64 unwind."""

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Follows Procedure Call Standard for the Arm 64-bit Architecture, 6.1.1 and 6.4.6."""
        return _UNWIND if machine.elf_class == 64 else None
