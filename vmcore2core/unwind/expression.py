"""DWARF expressions, as call frame information uses them (DWARF 5, section 2.5).

If a value depends on an unknown register or on unknown memory, it is unknown, too: the result is None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from vmcore2core.formats._cabi import signed
from vmcore2core.formats.dwarf_cfi import DwOp
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cursor import Cursor, Read

STEPS_MAX = 1024  # DW_OP_bra can loop
STACK_MAX = 64

_CONSTANTS: dict[int, tuple[int, bool]] = {
    DwOp.DW_OP_const1u: (1, False),
    DwOp.DW_OP_const1s: (1, True),
    DwOp.DW_OP_const2u: (2, False),
    DwOp.DW_OP_const2s: (2, True),
    DwOp.DW_OP_const4u: (4, False),
    DwOp.DW_OP_const4s: (4, True),
    DwOp.DW_OP_const8u: (8, False),
    DwOp.DW_OP_const8s: (8, True),
}
_BINARY: dict[int, Callable[[int, int], int]] = {
    DwOp.DW_OP_and: operator.and_,
    DwOp.DW_OP_minus: operator.sub,
    DwOp.DW_OP_mul: operator.mul,
    DwOp.DW_OP_or: operator.or_,
    DwOp.DW_OP_plus: operator.add,
    DwOp.DW_OP_xor: operator.xor,
}
_SIGNED: dict[int, Callable[[int, int], int]] = {
    DwOp.DW_OP_eq: operator.eq,
    DwOp.DW_OP_ge: operator.ge,
    DwOp.DW_OP_gt: operator.gt,
    DwOp.DW_OP_le: operator.le,
    DwOp.DW_OP_lt: operator.lt,
    DwOp.DW_OP_ne: operator.ne,
}
_UNARY: dict[int, Callable[[int], int]] = {
    DwOp.DW_OP_abs: abs,
    DwOp.DW_OP_neg: operator.neg,
    DwOp.DW_OP_not: operator.invert,
}


class NotKnown(Exception):
    """The value depends on a register or memory that is not known."""


def evaluate(
    code: bytes, address: int, registers: Mapping[int, int], read: Read, order: ByteOrder, word: int, first: int | None
) -> int | None:
    """Return the value of an expression, or None if it depends on something that is not known.

    Args:
        code: the expression.
        address: where it lies, for errors.
        registers: known registers by DWARF number.
        read: user memory.
        order: byte order of the process.
        word: bytes of an address.
        first: the initial value on the stack: the CFA for register rules, or None for an empty stack.

    Raises:
        CorruptStructure: the expression is malformed, or does not end within bounds.
    """
    machine = _Machine(Cursor(code, address, "a DWARF expression", order, word), registers, read)
    if first is not None:
        machine.push(first)
    try:
        return machine.run()
    except NotKnown:
        return None


class _Machine:
    """The stack machine."""

    def __init__(self, cursor: Cursor, registers: Mapping[int, int], read: Read) -> None:
        self.cursor, self.registers, self.read = cursor, registers, read
        self.bits = 8 * cursor.word
        self.mask = (1 << self.bits) - 1
        self.stack: list[int] = []

    def run(self) -> int:
        steps = 0
        while not self.cursor.done:
            steps += 1
            if steps > STEPS_MAX:
                raise self.cursor.wrong(f"does not end after {STEPS_MAX} operations")
            self._step(self.cursor.uint(1))
        return self.pop()

    def push(self, value: int) -> None:
        if len(self.stack) >= STACK_MAX:
            raise self.cursor.wrong(f"more than {STACK_MAX} values are on the stack")
        self.stack.append(value & self.mask)

    def pop(self) -> int:
        if not self.stack:
            raise self.cursor.wrong("takes a value off an empty stack")
        return self.stack.pop()

    def pick(self, depth: int) -> int:
        if depth >= len(self.stack):
            raise self.cursor.wrong(f"picks value {depth} of {len(self.stack)}")
        return self.stack[-1 - depth]

    def signed(self, value: int) -> int:
        return signed(value, self.bits)

    def _step(self, op: int) -> None:
        cursor = self.cursor
        if DwOp.DW_OP_lit0 <= op <= DwOp.DW_OP_lit31:
            self.push(op - DwOp.DW_OP_lit0)
        elif DwOp.DW_OP_breg0 <= op <= DwOp.DW_OP_breg31:
            self._register(op - DwOp.DW_OP_breg0)
        elif op == DwOp.DW_OP_bregx:
            self._register(cursor.uleb128())
        elif op in _CONSTANTS:
            size, signed = _CONSTANTS[op]
            self.push(cursor.sint(size) if signed else cursor.uint(size))
        elif op == DwOp.DW_OP_constu:
            self.push(cursor.uleb128())
        elif op == DwOp.DW_OP_consts:
            self.push(cursor.sleb128())
        elif op == DwOp.DW_OP_addr:
            self.push(cursor.uint(cursor.word))
        elif op == DwOp.DW_OP_deref:
            self._load(cursor.word)
        elif op == DwOp.DW_OP_deref_size:
            self._load(min(cursor.uint(1), cursor.word))
        elif op != DwOp.DW_OP_nop and not (self._shuffle(op) or self._compute(op) or self._branch(op)):
            raise cursor.wrong(f"operation {op:#x} is not known")

    def _register(self, number: int) -> None:
        offset = self.cursor.sleb128()
        if number not in self.registers:
            raise NotKnown
        self.push(self.registers[number] + offset)

    def _load(self, size: int) -> None:
        raw = self.read(self.pop(), size)
        if raw is None:
            raise NotKnown
        self.push(int.from_bytes(raw, self.cursor.order))

    def _shuffle(self, op: int) -> bool:
        if op == DwOp.DW_OP_dup:
            self.push(self.pick(0))
        elif op == DwOp.DW_OP_drop:
            self.pop()
        elif op == DwOp.DW_OP_over:
            self.push(self.pick(1))
        elif op == DwOp.DW_OP_pick:
            self.push(self.pick(self.cursor.uint(1)))
        elif op == DwOp.DW_OP_swap:
            self.stack += [self.pop(), self.pop()]
        elif op == DwOp.DW_OP_rot:
            first, second, third = self.pop(), self.pop(), self.pop()
            self.stack += [first, third, second]
        else:
            return False
        return True

    def _compute(self, op: int) -> bool:
        if op in _UNARY:
            self.push(_UNARY[op](self.signed(self.pop())))
        elif op == DwOp.DW_OP_plus_uconst:
            self.push(self.pop() + self.cursor.uleb128())
        elif op in _BINARY:
            right, left = self.pop(), self.pop()
            self.push(_BINARY[op](left, right))
        elif op in _SIGNED:
            right, left = self.signed(self.pop()), self.signed(self.pop())
            self.push(int(_SIGNED[op](left, right)))
        elif op in (DwOp.DW_OP_shl, DwOp.DW_OP_shr, DwOp.DW_OP_shra):
            self._shift(op)
        elif op in (DwOp.DW_OP_div, DwOp.DW_OP_mod):
            self._divide(op)
        else:
            return False
        return True

    def _shift(self, op: int) -> None:
        count, value = min(self.pop(), self.bits), self.pop()
        if op == DwOp.DW_OP_shl:
            self.push(value << count)
        else:
            self.push((self.signed(value) if op == DwOp.DW_OP_shra else value) >> count)

    def _divide(self, op: int) -> None:
        right, left = self.pop(), self.pop()
        if not right:
            raise self.cursor.wrong("divides by zero")
        if op == DwOp.DW_OP_mod:
            self.push(left % right)
            return
        left, right = self.signed(left), self.signed(right)
        quotient = abs(left) // abs(right)
        self.push(quotient if (left < 0) == (right < 0) else -quotient)

    def _branch(self, op: int) -> bool:
        if op not in (DwOp.DW_OP_bra, DwOp.DW_OP_skip):
            return False
        cursor = self.cursor
        distance = cursor.sint(2)
        if op == DwOp.DW_OP_skip or self.pop():
            if not 0 <= cursor.at + distance <= len(cursor.data):
                raise cursor.wrong(f"branches by {distance} to outside of itself")
            cursor.at += distance
        return True
