"""Call frame information out of .eh_frame: from a program counter to the rules for its frame.

References: DWARF 5, section 6.4; LSB Core 5.0, chapter 10.6; libgcc's unwind-dw2.c: execute_cfa_program() and
unwind-dw2-fde.h (gcc 14).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.formats.dwarf_cfi import DwCfa
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cursor import Cursor, Read

WHERE = ".eh_frame"
ENTRY_MAX = 1 << 16  # bytes of a CIE or FDE; the longest ones of big programs have some 10 KiB
REMEMBERED_MAX = 64

# Whether a return address is signed, arm64's instructions say; an address shows it by itself (UnwindSpec.signed_bits).
_NO_RULE = (
    DwCfa.DW_CFA_nop,
    DwCfa.DW_CFA_AARCH64_negate_ra_state,
    DwCfa.DW_CFA_AARCH64_negate_ra_state_with_pc,
)
REGISTERS_MAX = 256


@dataclass(frozen=True, slots=True)
class Undefined:
    """The register's value in the caller cannot be recovered; for the return address: there is no caller."""


@dataclass(frozen=True, slots=True)
class SameValue:
    """The caller has the same value."""


@dataclass(frozen=True, slots=True)
class Offset:
    """Saved at CFA + ``offset``; with ``is_value``, CFA + ``offset`` itself is the value."""

    offset: int
    is_value: bool = False


@dataclass(frozen=True, slots=True)
class InRegister:
    """In another register."""

    number: int


@dataclass(frozen=True, slots=True)
class Expression:
    """A DWARF expression gives where it is saved; with ``is_value``, the value."""

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
        rules: by DWARF register number; a register that is not there has no rule.
        return_address: the column that is the return address.
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


class EhFrame:
    """Entries of one .eh_frame section, read where they lie.

    Args:
        read: user memory.
        order: byte order of the process.
        word: bytes of an address.

    Attributes:
        cie_id: what a CIE has where an FDE leads to its own.
        bias: what is added to the start of a function.
    """

    cie_id = fmt.CIE_ID
    bias = 0

    def __init__(self, read: Read, order: ByteOrder, word: int) -> None:
        self.read, self.word = read, word
        self.order: ByteOrder = order
        self._cies: dict[int, Cie] = {}

    def cie_address(self, at: int, distance: int) -> int:
        """Return the address of the CIE that the word at ``at`` of an FDE leads to."""
        return at - distance

    def fde(self, address: int) -> Fde | None:
        """Return the FDE at a user address, or None where some of it is not known.

        Raises:
            CorruptStructure: there is none, or it is malformed.
        """
        cursor = self._entry(address)
        if cursor is None:
            return None
        at = cursor.here
        distance = cursor.uint(4)
        if distance == self.cie_id:
            raise cursor.wrong("a CIE stands here, expected an FDE")
        cie = self.cie(self.cie_address(at, distance))
        if cie is None:
            return None
        start = cursor.encoded(cie.encoding, self.read) + self.bias
        size = cursor.encoded(cie.encoding & fmt.DW_EH_PE_FORMAT)
        if cie.augmented:
            cursor.take(cursor.uleb128())
        end = start + size
        if not 0 < size <= 1 << 8 * self.word or end > 1 << 8 * self.word:
            raise cursor.wrong(f"describes {size:#x} bytes of code at {start:#x}")
        instructions_at = cursor.here
        return Fde(cie, start, end, cursor.take(len(cursor.data) - cursor.at), instructions_at)

    def _entry(self, address: int) -> Cursor | None:
        """Return a cursor over an entry, its length skipped, or None where some of it is not known."""
        head = self.read(address, 12)
        if head is None:  # the last entry of a section may be shorter
            head = self.read(address, 4)
        if head is None:
            return None
        length, skip = int.from_bytes(head[:4], self.order), 4
        if length == fmt.DWARF64_ESCAPE and len(head) == 12:
            length, skip = int.from_bytes(head[4:12], self.order), 12
        cursor = Cursor(b"", address, WHERE, self.order, self.word)
        if not 4 <= length <= ENTRY_MAX:
            raise cursor.wrong(f"an entry of {length:#x} bytes, expected 4 to {ENTRY_MAX:#x}")
        data = self.read(address + skip, length)
        return Cursor(data, address + skip, WHERE, self.order, self.word) if data is not None else None

    def cie(self, address: int) -> Cie | None:
        """Return the CIE at a user address, or None where some of it is not known; raises as ``fde``."""
        if address not in self._cies:
            cie = self._parse_cie(address)
            if cie is None:
                return None
            self._cies[address] = cie
        return self._cies[address]

    def _parse_cie(self, address: int) -> Cie | None:
        cursor = self._entry(address)
        if cursor is None:
            return None
        if cursor.uint(4) != self.cie_id:
            raise cursor.wrong("an FDE stands here, expected a CIE")
        version = cursor.uint(1)
        if version not in fmt.CIE_VERSIONS:
            raise cursor.wrong(f"CIE version {version}, expected one of {fmt.CIE_VERSIONS}")
        augmentation = cursor.string()
        if version == 4 and (cursor.uint(1), cursor.uint(1)) != (self.word, 0):
            raise cursor.wrong(f"addresses of another size, expected {self.word} bytes without segments")
        if augmentation.startswith(b"eh"):  # gcc 2
            cursor.take(self.word)
            augmentation = augmentation[2:]
        code_align, data_align = cursor.uleb128(), cursor.sleb128()
        column = cursor.uint(1) if version == 1 else cursor.uleb128()
        encoding: int = fmt.EhFormat.DW_EH_PE_absptr
        augmented = augmentation.startswith(b"z")
        if augmented:
            encoding = self._augmentation(cursor, augmentation, encoding)
        elif augmentation.strip(b"S"):
            raise cursor.wrong(f"augmentation {augmentation!r} is not known")
        at = cursor.here
        return Cie(
            code_align=code_align,
            data_align=data_align,
            return_address=column,
            encoding=encoding,
            augmented=augmented,
            signal_frame=b"S" in augmentation,
            instructions=cursor.take(len(cursor.data) - cursor.at),
            instructions_at=at,
        )

    def _augmentation(self, cursor: Cursor, augmentation: bytes, encoding: int) -> int:
        """Read a CIE's augmentation data; return the encoding of its FDEs' pointers."""
        end = cursor.uleb128() + cursor.at
        if end > len(cursor.data):
            raise cursor.wrong("the augmentation data are longer than the entry")
        for letter in augmentation[1:].decode("latin-1"):
            if letter == "R":
                encoding = cursor.uint(1)
            elif letter == "L":
                cursor.uint(1)
            elif letter == "P":
                personality = cursor.uint(1)
                if personality != fmt.DW_EH_PE_omit:
                    cursor.encoded(personality & ~fmt.DW_EH_PE_indirect, data_base=0)
            elif letter not in "SB":  # B: aarch64's key for return addresses
                break  # the rest is not known, and cannot change what is before it
        cursor.at = end
        return encoding

    def row(self, fde: Fde, pc: int) -> Row:
        """Return the rules that hold at ``pc``.

        Raises:
            CorruptStructure: the instructions are malformed.
        """
        program = _Program(fde, self.read, self.order, self.word)
        return program.run(pc)


@dataclass
class _State:
    cfa: CfaRule | Expression | None = None
    rules: dict[int, Rule] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(self.cfa, dict(self.rules))


class _Program:
    """The run of an FDE's instructions up to one place."""

    def __init__(self, fde: Fde, read: Read, order: ByteOrder, word: int) -> None:
        self.fde, self.cie, self.read, self.word = fde, fde.cie, read, word
        self.order: ByteOrder = order
        self.state = _State()
        self.initial: dict[int, Rule] = {}
        self.remembered: list[_State] = []
        self.location = fde.start

    def run(self, pc: int) -> Row:
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
        """Return the location that an instruction moves on to, or None where it is not of that kind."""
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
            # RISC-V's CIEs begin so: an offset that nothing has set is 0, as libgcc and gdb have it.
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
