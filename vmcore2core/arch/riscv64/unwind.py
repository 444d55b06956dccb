"""RISC-V: how user stacks unwind."""

from __future__ import annotations

from vmcore2core.arch.parts import Unwind, code_of
from vmcore2core.arch.spec import CoreMachine, SignalTrampoline, UnwindSpec
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.overrides import override


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call instruction: jal, jalr or c.jalr that write ra."""
    whole = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    half = int.from_bytes(code[-2:], "little") if len(code) >= 2 else 0
    return (
        whole & fmt.CALL_JAL_MASK == fmt.CALL_JAL_RA
        or whole & fmt.CALL_JALR_MASK == fmt.CALL_JALR_RA
        or (half & fmt.CALL_C_JALR_MASK == fmt.CALL_C_JALR and half != fmt.CALL_C_JALR)
    )


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("pc"),
    stack_pointer=fmt.DWARF_REGS.index("sp"),
    frame_pointer=fmt.DWARF_REGS.index("s0"),
    preserved=frozenset(
        i for i, name in enumerate(fmt.DWARF_REGS) if name in ("gp", "tp") or (name[:1] == "s" and name[1:].isdigit())
    ),
    trampolines=tuple(
        SignalTrampoline(
            fmt.RT_SIGRETURN,
            entry,
            fmt.RT_SIGFRAME_MCONTEXT,
            None,
            fmt.user_regs_struct,
            {name: name for name in fmt.user_regs_struct.names or ()},
        )
        for entry in (0, 4)
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("ra"),
    frame_record=-16,
    frames_by_code=code_of("riscv64"),
    has_cfi=True,
    gdb_names={"s0": "fp"},
)


class Riscv64Unwind(Unwind):
    """How user stacks of RISC-V unwind."""

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Follows riscv-cc.adoc ("Register Convention", "Frame Pointer Convention"), psABI 1.0."""
        return _UNWIND if machine.elf_class == 64 else None
