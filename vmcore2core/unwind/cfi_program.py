"""Executes call frame instructions up to one program counter, which yields the rules there.

References: DWARF 5, section 6.4.2; libgcc's unwind-dw2.c: execute_cfa_program() (gcc 14).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.formats.dwarf_cfi import DwCfa
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cfi_rules import (
    WHERE,
    CfaRule,
    Expression,
    Fde,
    InRegister,
    Offset,
    Row,
    Rule,
    SameValue,
    Undefined,
)
from vmcore2core.unwind.cursor import Cursor, Read

REMEMBERED_MAX = 64

# arm64: tells whether return addresses are signed; here the address itself shows it (UnwindSpec.signed_bits).
_NO_RULE = (
    DwCfa.DW_CFA_nop,
    DwCfa.DW_CFA_AARCH64_negate_ra_state,
    DwCfa.DW_CFA_AARCH64_negate_ra_state_with_pc,
)
REGISTERS_MAX = 256


@dataclass
class _State:
    cfa: CfaRule | Expression | None = None
    rules: dict[int, Rule] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(self.cfa, dict(self.rules))


class CfiProgram:
    """Executes an FDE's instructions up to one program counter.

    Args:
        fde: the function's FDE.
        read: reads the memory that holds its expressions.
        order, word: byte order, and bytes of an address.
    """

    def __init__(self, fde: Fde, read: Read, order: ByteOrder, word: int) -> None:
        self.fde, self.cie, self.read, self.word = fde, fde.cie, read, word
        self.order: ByteOrder = order
        self.state = _State()
        self.initial: dict[int, Rule] = {}
        self.remembered: list[_State] = []
        self.location = fde.start

    def run(self, pc: int) -> Row:
        """Return the rules at a program counter in the function.

        Raises:
            CorruptStructure: the instructions make no sense.
        """
        fde, cie = self.fde, self.cie
        self._execute(cie.instructions, cie.instructions_at, pc)
        self.initial = dict(self.state.rules)
        self.location = fde.start
        self._execute(fde.instructions, fde.instructions_at, pc)
        if self.state.cfa is None:
            cursor = Cursor(b"", fde.instructions_at, WHERE, self.order, self.word)
            raise cursor.wrong("no rule for the canonical frame address")
        return Row(self.state.cfa, self.state.rules, cie.return_address, cie.signal_frame)

    def _execute(self, code: bytes, address: int, pc: int) -> None:
        cursor = Cursor(code, address, WHERE, self.order, self.word)
        while not cursor.done:
            opcode = cursor.uint(1)
            if opcode & fmt.DW_CFA_PRIMARY:
                primary, low = opcode & fmt.DW_CFA_PRIMARY, opcode & fmt.DW_CFA_LOW
            else:
                primary, low = opcode, 0
            advanced = self._advance(cursor, primary, low)
            if advanced is None:
                self._rule(cursor, primary, low)
            elif advanced > pc:
                return
            else:
                self.location = advanced

    def _advance(self, cursor: Cursor, op: int, low: int) -> int | None:
        """Return the location that an instruction advances to, or None if it does not advance."""
        if op == DwCfa.DW_CFA_set_loc:
            return cursor.encoded(self.cie.encoding, self.read)
        if op == DwCfa.DW_CFA_advance_loc:
            delta = low
        elif op in (DwCfa.DW_CFA_advance_loc1, DwCfa.DW_CFA_advance_loc2, DwCfa.DW_CFA_advance_loc4):
            delta = cursor.uint(1 << (op - DwCfa.DW_CFA_advance_loc1))
        else:
            return None
        return self.location + delta * self.cie.code_align

    def _rule(self, cursor: Cursor, op: int, low: int) -> None:
        if op == DwCfa.DW_CFA_GNU_args_size:
            cursor.uleb128()
        elif op in _NO_RULE:
            pass
        elif op == DwCfa.DW_CFA_remember_state:
            if len(self.remembered) >= REMEMBERED_MAX:
                raise cursor.wrong(f"more than {REMEMBERED_MAX} states are remembered")
            self.remembered.append(self.state.copy())
        elif op == DwCfa.DW_CFA_restore_state:
            if not self.remembered:
                raise cursor.wrong("restores a state, and none is remembered")
            self.state = self.remembered.pop()
        elif not (self._cfa_rule(cursor, op) or self._register_rule(cursor, op, low)):
            raise cursor.wrong(f"call frame instruction {op:#x} is not known")

    def _cfa_rule(self, cursor: Cursor, op: int) -> bool:
        data_align = self.cie.data_align
        if op == DwCfa.DW_CFA_def_cfa:
            self.state.cfa = CfaRule(cursor.uleb128(), cursor.uleb128())
        elif op == DwCfa.DW_CFA_def_cfa_sf:
            self.state.cfa = CfaRule(cursor.uleb128(), cursor.sleb128() * data_align)
        elif op == DwCfa.DW_CFA_def_cfa_register:
            # RISC-V's CIEs begin so: an offset that was never set is 0, as in libgcc and gdb.
            offset = 0 if self.state.cfa is None else self._cfa(cursor).offset
            self.state.cfa = CfaRule(cursor.uleb128(), offset)
        elif op == DwCfa.DW_CFA_def_cfa_offset:
            self.state.cfa = CfaRule(self._cfa(cursor).register, cursor.uleb128())
        elif op == DwCfa.DW_CFA_def_cfa_offset_sf:
            self.state.cfa = CfaRule(self._cfa(cursor).register, cursor.sleb128() * data_align)
        elif op == DwCfa.DW_CFA_def_cfa_expression:
            self.state.cfa = self._expression(cursor, is_value=True)
        else:
            return False
        return True

    def _cfa(self, cursor: Cursor) -> CfaRule:
        if not isinstance(self.state.cfa, CfaRule):
            raise cursor.wrong("changes a canonical frame address that is no register and offset")
        return self.state.cfa

    def _expression(self, cursor: Cursor, *, is_value: bool) -> Expression:
        size = cursor.uleb128()
        address = cursor.here
        return Expression(cursor.take(size), address, is_value)

    def _register_rule(self, cursor: Cursor, op: int, low: int) -> bool:
        align = self.cie.data_align
        if op == DwCfa.DW_CFA_offset:
            self._set(cursor, low, Offset(cursor.uleb128() * align))
            return True
        if op == DwCfa.DW_CFA_restore:
            self._restore(cursor, low)
            return True
        if op not in _OF_REGISTER:
            return False
        number = cursor.uleb128()
        if op == DwCfa.DW_CFA_restore_extended:
            self._restore(cursor, number)
        elif op == DwCfa.DW_CFA_undefined:
            self._set(cursor, number, Undefined())
        elif op == DwCfa.DW_CFA_same_value:
            self._set(cursor, number, SameValue())
        elif op == DwCfa.DW_CFA_register:
            self._set(cursor, number, InRegister(cursor.uleb128()))
        elif op in (DwCfa.DW_CFA_expression, DwCfa.DW_CFA_val_expression):
            self._set(cursor, number, self._expression(cursor, is_value=op == DwCfa.DW_CFA_val_expression))
        elif op == DwCfa.DW_CFA_GNU_negative_offset_extended:
            self._set(cursor, number, Offset(-cursor.uleb128() * align))
        else:
            signed = op in (DwCfa.DW_CFA_offset_extended_sf, DwCfa.DW_CFA_val_offset_sf)
            offset = (cursor.sleb128() if signed else cursor.uleb128()) * align
            is_value = op in (DwCfa.DW_CFA_val_offset, DwCfa.DW_CFA_val_offset_sf)
            self._set(cursor, number, Offset(offset, is_value))
        return True

    def _set(self, cursor: Cursor, number: int, rule: Rule) -> None:
        if number >= REGISTERS_MAX:
            raise cursor.wrong(f"register {number}, expected one below {REGISTERS_MAX}")
        self.state.rules[number] = rule

    def _restore(self, cursor: Cursor, number: int) -> None:
        if number in self.initial:
            self._set(cursor, number, self.initial[number])
        else:
            self.state.rules.pop(number, None)


_OF_REGISTER = frozenset(
    {
        DwCfa.DW_CFA_offset_extended,
        DwCfa.DW_CFA_restore_extended,
        DwCfa.DW_CFA_undefined,
        DwCfa.DW_CFA_same_value,
        DwCfa.DW_CFA_register,
        DwCfa.DW_CFA_expression,
        DwCfa.DW_CFA_offset_extended_sf,
        DwCfa.DW_CFA_val_offset,
        DwCfa.DW_CFA_val_offset_sf,
        DwCfa.DW_CFA_val_expression,
        DwCfa.DW_CFA_GNU_negative_offset_extended,
    }
)
