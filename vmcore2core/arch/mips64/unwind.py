"""How user stacks of n64, n32 and o32 unwind, and the frames that signals leave on them.

References: arch/mips/kernel/{signal,signal32,signal_n32,signal_o32}.c, arch/mips/vdso/sigreturn.S (Linux 6.1); the
MIPS psABI's registers that a call preserves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Literal

import numpy as np

from vmcore2core.arch.mips64.code import BEFORE, BEHIND, frame_at, frame_at_call, is_call
from vmcore2core.arch.parts import Unwind
from vmcore2core.arch.spec import CodeFrame, CoreMachine, SignalTrampoline, UnwindSpec
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override

Abi = Literal["n64", "n32", "o32"]
PIECE = 4096

_NAMES: Mapping[str, str] = MappingProxyType({"epc": "pc", **{name: name for name in fmt.GPRS}})


def abi_of(machine: CoreMachine) -> Abi:
    """Return the ABI of a core's machine."""
    if machine.elf_class == 64:
        return "n64"
    return "n32" if machine.e_flags & fmt.EF_MIPS_ABI2 else "o32"


def ends_with_call(code: bytes, byte_order: ByteOrder) -> bool:
    """Tell whether bytes end in a call and its delay slot: jal, jalr, or a branch that links."""
    word = int.from_bytes(code[-8:-4], byte_order) if len(code) >= 8 else 0
    return is_call(word)


def frames_by_code(
    read: Callable[[int, int], bytes | None], pc: int, start: int | None, exact: bool, *, order: ByteOrder, width: int
) -> Iterator[CodeFrame]:
    """A ``FramesByCode``; without ``start``, it finds only functions that have made a frame and saved $ra."""
    found = _frame_by_code(read, pc, start, exact, order, width)
    if found is not None:
        yield found


def _frame_by_code(
    read: Callable[[int, int], bytes | None], pc: int, start: int | None, exact: bool, order: ByteOrder, width: int
) -> CodeFrame | None:
    at = pc if exact else pc - 8
    if start is not None and start <= at < start + BEFORE:
        code = _known(read, start, at + BEHIND)
        found = frame_at(code, start, at - start, order, width, exact=exact) if len(code) > at - start + 4 else None
        if found is not None:
            return found
    if exact:
        return None
    first = at
    while at - first < BEFORE:
        piece = max((first - 1) & -PIECE, 0)
        if read(piece, first - piece) is None:
            break
        first = piece
    code = _known(read, first, at + BEHIND)
    return frame_at_call(code, first, at - first, order, width) if len(code) > at - first + 4 else None


def _known(read: Callable[[int, int], bytes | None], start: int, end: int) -> bytes:
    """Return memory from ``start`` up to ``end``, or up to the first unknown byte."""
    found = b""
    while start < end:
        stop = min((start & -PIECE) + PIECE, end)
        piece = read(start, stop - start)
        if piece is None:
            break
        found, start = found + piece, stop
    return found


@cache
def unwind_spec(abi: Abi, byte_order: ByteOrder) -> UnwindSpec:
    """Return how stacks of one kind of process unwind; n32 has registers of 64 bits and addresses of 32."""
    width = 4 if abi == "o32" else 8
    return UnwindSpec(
        word=8 if abi == "n64" else 4,
        registers=fmt.DWARF_REGS,
        return_address=fmt.DWARF_REGS.index("epc"),
        stack_pointer=fmt.SP,
        frame_pointer=None,
        preserved=fmt.CALLEE_SAVED if abi == "o32" else fmt.CALLEE_SAVED | {fmt.GP},
        trampolines=tuple(_trampolines(abi, byte_order)),
        call_size_max=8,
        ends_with_call=lambda code: ends_with_call(code, byte_order),
        link_register=fmt.RA,
        register_size=width,
        frames_by_code=partial(frames_by_code, order=byte_order, width=width),
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


class Mips64Unwind(Unwind):
    """How user stacks of MIPS64 unwind."""

    def __init__(self, byte_order: ByteOrder) -> None:
        self.byte_order = byte_order

    @override
    def spec(self, machine: CoreMachine) -> UnwindSpec:
        return unwind_spec(abi_of(machine), self.byte_order)
