"""How user stacks of n64, n32 and o32 unwind, and the frames that signals leave on them.

References: arch/mips/kernel/{signal,signal32,signal_n32,signal_o32}.c, arch/mips/vdso/sigreturn.S (Linux 6.1); the
MIPS psABI's registers that a call preserves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Literal

import numpy as np

from vmcore2core.arch.spec import SignalTrampoline, UnwindSpec
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder

Abi = Literal["n64", "n32", "o32"]

_NAMES: Mapping[str, str] = MappingProxyType({"epc": "pc", **{name: name for name in fmt.GPRS}})


def ends_with_call(code: bytes, byte_order: ByteOrder) -> bool:
    """Tell whether bytes end in a call and its delay slot: jal, jalr, or a branch that links."""
    word = int.from_bytes(code[-8:-4], byte_order) if len(code) >= 8 else 0
    return is_call(word)


def is_call(word: int) -> bool:
    """Tell whether an instruction puts a return address into $ra."""
    op = word >> 26
    if op == fmt.OP_SPECIAL:
        return word & 0x3F == fmt.FUNCT_JALR and word >> 11 & 31 == fmt.RA
    return op == fmt.OP_JAL or (op == fmt.OP_REGIMM and word >> 16 & 31 in fmt.REGIMM_LINKS)


@cache
def unwind_spec(abi: Abi, byte_order: ByteOrder) -> UnwindSpec:
    """Return how stacks of one kind of process unwind; n32 keeps registers of 64 bits, and addresses of 32."""
    return UnwindSpec(
        word=8 if abi == "n64" else 4,
        registers=fmt.DWARF_REGS,
        return_address=fmt.DWARF_REGS.index("epc"),
        stack_pointer=fmt.SP,
        frame_pointer=None,
        preserved=fmt.CALLEE_SAVED,
        trampolines=tuple(_trampolines(abi, byte_order)),
        call_size_max=8,
        ends_with_call=lambda code: ends_with_call(code, byte_order),
        link_register=fmt.RA,
        register_size=4 if abi == "o32" else 8,
    )


def _trampolines(abi: Abi, byte_order: ByteOrder) -> list[SignalTrampoline]:
    order = "<" if byte_order == "little" else ">"
    wide, narrow = fmt.sigcontext_64(order), fmt.sigcontext_32(order)
    ways: dict[Abi, tuple[tuple[int, int, np.dtype[np.void]], ...]] = {
        "n64": ((fmt.NR_N64_RT_SIGRETURN, fmt.RT_SIGFRAME_MCONTEXT_64, wide),),
        "n32": ((fmt.NR_N32_RT_SIGRETURN, fmt.RT_SIGFRAME_MCONTEXT_32, wide),),
        "o32": (
            (fmt.NR_O32_RT_SIGRETURN, fmt.RT_SIGFRAME_MCONTEXT_32, narrow),
            (fmt.NR_O32_SIGRETURN, fmt.SIGFRAME_SC_32, narrow),
        ),
    }
    return [
        SignalTrampoline(
            (fmt.LI_V0 | number).to_bytes(4, byte_order) + fmt.SYSCALL.to_bytes(4, byte_order),
            entry,
            mcontext,
            None,
            registers,
            _NAMES,
        )
        for number, mcontext, registers in ways[abi]
        for entry in (0, 4)
    ]
