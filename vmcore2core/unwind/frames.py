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
    """Found by the signal trampoline's call frame information: the code that the signal interrupted."""
    SIGNAL = "signal frame"
    """Found by ucontext.uc_mcontext on the stack: the code that the signal interrupted."""
    STACK_POINTER = "return address at the stack pointer"
    FRAME_POINTER = "frame pointer"
    BACK_CHAIN = "back chain"
    CODE = "instructions"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        pc: program counter: of the next instruction to run when control comes back to this frame.
        sp: stack pointer; where ``registers`` have none, it is somewhere above this address.
        found: how it was found.
        exact: whether ``pc`` is where it was interrupted, not a return address (which may belong to the next function).
        trampoline: whether it is the return from a signal handler.
        registers: the known registers, by DWARF number.
        cfi_origin: source of the call frame information that found this frame, or None if none was used.
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
        """An address that is certainly inside the function."""
        return self.pc if self.exact or self.trampoline else max(self.pc - 1, 0)


@dataclass(frozen=True, slots=True)
class Backtrace:
    """The frames of one thread, innermost first.

    Attributes:
        complete: whether the last frame is the outermost.
        end: why the stack ends there, as one sentence.
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
        """Return instructions from memory, else from the mapped file."""
        ...

    def executable(self, address: int) -> bool:
        """Tell whether code can be at an address."""
        ...

    def generated(self, address: int) -> bool:
        """Tell whether code at an address is in no file, because the program generated it (JIT)."""
        ...

    def same_mapping(self, first: int, second: int) -> bool:
        """Tell whether two addresses are in one mapping."""
        ...

    def image(self, address: int) -> Image | None:
        """Return the ELF image that an address belongs to."""
        ...


@dataclass(frozen=True, slots=True)
class End:
    """Why the stack ends; ``complete`` if the last frame is the outermost."""

    complete: bool
    why: str
