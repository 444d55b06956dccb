"""s390x: how user stacks unwind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vmcore2core.arch.parts import Unwind
from vmcore2core.arch.spec import CoreMachine, SignalTrampoline, UnwindSpec
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import s390x as fmt
from vmcore2core.overrides import override


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call: basr, bras, brasl or bas that write r14."""
    two, four, six = (int.from_bytes(code[-size:][:2], "big") if len(code) >= size else 0 for size in (2, 4, 6))
    return (
        # Register 0 means no branch.
        (two & fmt.CALL_BASR_MASK == fmt.CALL_BASR and two != fmt.CALL_BASR)
        or four == fmt.CALL_BRAS
        or four & fmt.CALL_BAS_MASK == fmt.CALL_BAS
        or six == fmt.CALL_BRASL
    )


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("pswa"),
    stack_pointer=fmt.DWARF_REGS.index("r15"),
    frame_pointer=None,
    preserved=frozenset(fmt.DWARF_REGS.index(name) for name in fmt.PRESERVED),
    trampolines=tuple(
        SignalTrampoline(code, 0, mcontext, None, fmt.sigregs, fmt.SIGCONTEXT_NAMES)
        for code, mcontext in (
            (fmt.SIGRETURN, fmt.SIGFRAME_SREGS),
            (fmt.RT_SIGRETURN, fmt.RT_SIGFRAME_MCONTEXT),
        )
    ),
    call_size_max=6,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("r14"),
    cfa_offset=fmt.STACK_FRAME_OVERHEAD,
)


class S390xUnwind(Unwind):
    """How user stacks of s390x unwind."""

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Follows the ELF ABI s390x supplement, 1.6.1: frames do not point to each other."""
        return _UNWIND if machine.elf_class == 64 else None

    @override
    def registers(self, notes: Sequence[Note]) -> Mapping[str, int]:
        """A leaf function may save general registers in floating-point ones."""
        for note in notes:
            if note.n_type == elf_core.NT_FPREGSET and len(note.desc) == fmt.FPREGSET_SIZE:
                record = np.frombuffer(note.desc, fmt.s390_fp_regs)[0]
                return {name: int(record[name]) for name in fmt.FREGS}
        return {}
