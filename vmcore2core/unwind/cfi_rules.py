"""Call frame information at one program counter: a rule for the frame's address, and one for each register.

Reference: DWARF 5, section 6.4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

WHERE = ".eh_frame"


@dataclass(frozen=True, slots=True)
class Undefined:
    """The register's value in the caller cannot be recovered; for the return address: there is no caller."""


@dataclass(frozen=True, slots=True)
class SameValue:
    """The caller has the same value."""


@dataclass(frozen=True, slots=True)
class Offset:
    """The register is saved at CFA + ``offset``; with ``is_value``, its value is CFA + ``offset``."""

    offset: int
    is_value: bool = False


@dataclass(frozen=True, slots=True)
class InRegister:
    """The value is in another register."""

    number: int


@dataclass(frozen=True, slots=True)
class Expression:
    """A DWARF expression gives the address where it is saved; with ``is_value``, its value."""

    code: bytes
    address: int
    is_value: bool = False


Rule = Undefined | SameValue | Offset | InRegister | Expression


@dataclass(frozen=True, slots=True)
class CfaRule:
    """The canonical frame address is a register plus an offset."""

    register: int
    offset: int


@dataclass(frozen=True, slots=True)
class Row:
    """The rules of one place in a function.

    Attributes:
        cfa: how to find the canonical frame address.
        rules: rule by DWARF register number; registers that are absent have no rule.
        return_address: the column of the return address.
        signal_frame: whether this is a signal trampoline.
    """

    cfa: CfaRule | Expression
    rules: dict[int, Rule]
    return_address: int
    signal_frame: bool


@dataclass(frozen=True, slots=True)
class Cie:
    """A common information entry."""

    code_align: int
    data_align: int
    return_address: int
    encoding: int
    augmented: bool
    signal_frame: bool
    instructions: bytes
    instructions_at: int


@dataclass(frozen=True, slots=True)
class Fde:
    """A frame description entry: one function, ``[start, end)`` in user addresses."""

    cie: Cie
    start: int
    end: int
    instructions: bytes
    instructions_at: int
