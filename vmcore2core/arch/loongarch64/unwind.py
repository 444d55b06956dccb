"""LoongArch: how user stacks unwind."""

from __future__ import annotations

from vmcore2core.arch.parts import Unwind, code_of
from vmcore2core.arch.spec import CoreMachine, SignalTrampoline, UnwindSpec
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.overrides import override


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call instruction: bl, or jirl that writes ra."""
    word = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    return word & fmt.CALL_BL_MASK == fmt.CALL_BL or word & fmt.CALL_JIRL_MASK == fmt.CALL_JIRL_RA


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("csr_era"),
    stack_pointer=fmt.DWARF_REGS.index("sp"),
    frame_pointer=fmt.DWARF_REGS.index("fp"),
    preserved=frozenset(
        i for i, name in enumerate(fmt.GPRS) if name in ("tp", "u0", "fp") or (name[0] == "s" and name != "sp")
    ),
    trampolines=tuple(
        SignalTrampoline(
            fmt.RT_SIGRETURN,
            entry,
            fmt.RT_SIGFRAME_MCONTEXT,
            None,
            fmt.sigcontext,
            {"csr_era": "sc_pc", **{name: name for name in fmt.GPRS}},
        )
        for entry in (0, 4)
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("ra"),
    frame_record=-16,
    frames_by_code=code_of("loongarch64"),
)


class Loongarch64Unwind(Unwind):
    """How user stacks of LoongArch unwind."""

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec:
        """Follows ladwarf.adoc and lapcs.adoc ("Register Convention")."""
        return _UNWIND
