"""Frames of a user stack, and a process as unwinding sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cursor import Read
from vmcore2core.unwind.image import Image
from vmcore2core.unwind.symbols import Origin

LIMIT = 256


class Found(Enum):
    """How a frame was found."""

    REGISTERS = "registers"
    """The thread's own registers."""
    CFI = "CFI"
    SIGNAL_CFI = "signal frame, CFI"
    """What a signal interrupted, by the call frame information of the trampoline."""
    SIGNAL = "signal frame"
    """What a signal interrupted, by ucontext.uc_mcontext on the stack."""
    STACK_POINTER = "return address at the stack pointer"
    FRAME_POINTER = "frame pointer"
    BACK_CHAIN = "back chain"
    CODE = "instructions"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        pc: program counter: of the next instruction to run when control comes back to this frame.
        sp: stack pointer.
        found: how it was found.
        exact: whether ``pc`` is where it was interrupted, not a return address (which may belong to the next function).
        trampoline: whether it is the return from a signal handler.
        registers: those that are known, by DWARF number.
        cfi_origin: where the call frame information was that it was found by, or None where there was none.
    """

    pc: int
    sp: int
    found: Found
    exact: bool
    trampoline: bool
    registers: Mapping[int, int]
    cfi_origin: Origin | None = None

    @property
    def lookup_pc(self) -> int:
        """An address that is certainly within the function."""
        return self.pc if self.exact or self.trampoline else max(self.pc - 1, 0)


@dataclass(frozen=True, slots=True)
class Backtrace:
    """The frames of one thread, innermost first.

    Attributes:
        complete: whether the last one is the outermost.
        end: why there are no more, as one sentence.
    """

    frames: tuple[Frame, ...]
    complete: bool
    end: str


class Space(Protocol):
    """A process, as unwinding sees it."""

    order: ByteOrder

    @property
    def read(self) -> Read:
        """User memory."""
        ...

    def instructions(self, address: int, size: int) -> bytes | None:
        """Return instructions: of memory, else of the file that is mapped."""
        ...

    def executable(self, address: int) -> bool:
        """Tell whether code can be at an address."""
        ...

    def generated(self, address: int) -> bool:
        """Tell whether code at an address is of no file: a program has made it as it ran (JIT)."""
        ...

    def same_mapping(self, first: int, second: int) -> bool:
        """Tell whether two addresses are in one mapping."""
        ...

    def image(self, address: int) -> Image | None:
        """Return the ELF image that an address belongs to."""
        ...


@dataclass(frozen=True, slots=True)
class End:
    """Why there are no more frames; ``complete`` where the last one is the outermost."""

    complete: bool
    why: str
