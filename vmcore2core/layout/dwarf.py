"""DWARF of a vmlinux as a layout source, by pyelftools: for kernels that have no BTF.

Decoding all of a kernel's DWARF takes minutes and gigabytes. This module reads the names of all units, and types from
the few units in ``asked.UNITS``, which have everything that conversion needs; members are decoded when they are needed.
Nothing is relocated: a vmlinux is linked already, and the .rela sections that some distributions keep are history.

References: DWARF 5, sections 5.7 (structures, bit fields), 5.5 (arrays), 7.5 (forms); for DWARF 4 and older, section
5.5.6 of DWARF 4.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo

from vmcore2core.arch import arch_for_machine
from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import Member
from vmcore2core.layout.asked import UNITS
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.dwarf_info import ULEB, VmlinuxDwarf, uleb
from vmcore2core.layout.vmlinux_file import VmlinuxFile
from vmcore2core.overrides import override

log = logging.getLogger(__name__)

NAME = "vmlinux DWARF"

UNITS_MAX = 1 << 16  # a vmlinux with everything built in has some 25,000
DEPTH_MAX = 32  # typedefs, arrays
ANONYMOUS_MAX = 256  # anonymous structures within one

STRUCT, UNION, TYPEDEF, ENUM = (
    "DW_TAG_structure_type",
    "DW_TAG_union_type",
    "DW_TAG_typedef",
    "DW_TAG_enumeration_type",
)
POINTER, ARRAY = "DW_TAG_pointer_type", "DW_TAG_array_type"
QUALIFIERS = frozenset(
    {
        "DW_TAG_const_type",
        "DW_TAG_volatile_type",
        "DW_TAG_restrict_type",
        "DW_TAG_atomic_type",
        "DW_TAG_LLVM_annotation",
    }
)

# pyelftools raises these on broken entries: it checks little itself.
BROKEN = (
    ELFError,
    DWARFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    EOFError,
)


class DwarfSource(LayoutSource):
    """Layout answers from the DWARF of a vmlinux: members, sizes, enumerators.

    A broken entry counts as not known, and a warning says so.

    Args:
        file: the vmlinux.
        units: names of the compilation units that are decoded, in order of preference; without them, ``asked.UNITS``
            and what the machine has of its own.

    Raises:
        LayoutInvalid: it has no DWARF, or none of these units.
    """

    def __init__(self, file: VmlinuxFile, units: tuple[str, ...] | None = None) -> None:
        self.name = NAME
        self._path = file.path
        if units is None:
            arch = arch_for_machine(file.e_machine, file.byte_order)
            units = (*UNITS, *(arch.type_units if arch is not None else ()))
        for section in (".debug_info", ".debug_abbrev"):
            if file.section(section) is None:
                raise LayoutInvalid(f"{file.path} has no {section}")
        try:
            found = _find_units(VmlinuxDwarf(file), units)
        except BROKEN as error:
            raise LayoutInvalid(f"{file.path}: its DWARF units cannot be read: {_why(error)}") from error
        if not found:
            raise LayoutInvalid(f"{file.path} has no DWARF of {', '.join(units)}")
        self._units = [_Unit(found[name]) for name in units if name in found]
        self._little = file.byte_order == "little"
        self._structs: dict[str, DIE | None] = {}
        self._warned = False

    @override
    def member(self, struct: str, path: str) -> Member | None:
        try:
            return self._path_in(struct, path)
        except BROKEN as error:
            self._broken(f"struct {struct}", error)
            return None

    @override
    def size(self, struct: str) -> int | None:
        try:
            found = self._struct(struct)
            return None if found is None else _number(found, "DW_AT_byte_size")
        except BROKEN as error:
            self._broken(f"struct {struct}", error)
            return None

    @override
    def constant(self, name: str) -> int | None:
        """An enumerator."""
        for unit in self._units:
            try:
                if name in unit.enumerators:
                    return unit.enumerators[name]
            except BROKEN as error:
                self._broken("an enumeration", error)
        return None

    def _broken(self, what: str, error: Exception) -> None:
        level, self._warned = logging.DEBUG if self._warned else logging.WARNING, True
        log.log(level, "%s: the DWARF of %s cannot be read: %s", self._path, what, _why(error))

    def _struct(self, name: str) -> DIE | None:
        """Return the definition of a struct, a union or a typedef of one."""
        if name not in self._structs:
            self._structs[name] = None
            for unit in self._units:
                found = next(
                    (unit.types[tag, name] for tag in (STRUCT, UNION, TYPEDEF) if (tag, name) in unit.types), None
                )
                found = None if found is None else _resolved(found)
                if found is not None and found.tag in (STRUCT, UNION) and "DW_AT_declaration" not in found.attributes:
                    self._structs[name] = found
                    break
        return self._structs[name]

    def _path_in(self, struct: str, path: str) -> Member | None:
        inside = self._struct(struct)
        bits, last = 0, None
        for name in path.split("."):
            found = None if inside is None or inside.tag not in (STRUCT, UNION) else self._member(inside, name, set())
            if found is None:
                return None
            last, offset = found
            bits += offset
            inside = _resolved(last)
        assert last is not None  # noqa: S101 - split() gives one name at least
        size, bit_size, type_name = _size_of(last, 0), _number(last, "DW_AT_bit_size"), _type_name(last, 0)
        if bit_size is not None:
            unit = 8 * (size or 4)
            return Member(bits // unit * unit // 8, self.name, size or 4, bits % unit, bit_size, type_name)
        return Member(bits // 8, self.name, size, None, None, type_name)

    def _member(self, inside: DIE, name: str, seen: set[int]) -> tuple[DIE, int] | None:
        """Return a member, also of anonymous structures, and its offset in bits; ``seen`` are structures without it."""
        seen.add(inside.offset)
        anonymous = []
        for child in _children(inside):
            if child.tag != "DW_TAG_member":
                continue
            if "DW_AT_name" not in child.attributes:
                anonymous.append(child)
            elif _name(child) == name:
                return child, self._bit_offset(child)
        for child in anonymous if len(seen) < ANONYMOUS_MAX else ():
            below = _resolved(child)
            if below is not None and below.tag in (STRUCT, UNION) and below.offset not in seen:
                found = self._member(below, name, seen)
                if found is not None:
                    return found[0], found[1] + self._bit_offset(child)
        return None

    def _bit_offset(self, member: DIE) -> int:
        """Return a member's offset in bits from the start of its structure; 0 in a union, which has no offsets."""
        whole = _number(member, "DW_AT_data_bit_offset")
        if whole is not None:
            return whole
        location = member.attributes.get("DW_AT_data_member_location")
        bits = 0 if location is None else 8 * _location(location.value)
        within, bit_size = _number(member, "DW_AT_bit_offset"), _number(member, "DW_AT_bit_size")
        if within is None or bit_size is None:
            return bits
        # Until DWARF 4, counted from the most significant bit of a unit of storage.
        storage = _number(member, "DW_AT_byte_size") or _size_of(member, 0)
        if storage is None:
            raise ValueError("a bit field of unknown storage size")
        return bits + (8 * storage - within - bit_size if self._little else within)


class _Unit:
    """The types of one compilation unit, indexed at the first question."""

    def __init__(self, unit: CompileUnit) -> None:
        self._unit = unit

    @cached_property
    def _entries(self) -> list[DIE]:
        tags = (STRUCT, UNION, TYPEDEF, ENUM)
        return [die for die in _children(self._unit.get_top_DIE()) if die.tag in tags]

    @cached_property
    def types(self) -> dict[tuple[str, str], DIE]:
        """(tag, name) -> the first definition."""
        found: dict[tuple[str, str], DIE] = {}
        for die in self._entries:
            if "DW_AT_name" in die.attributes and "DW_AT_declaration" not in die.attributes:
                found.setdefault((str(die.tag), _name(die)), die)
        return found

    @cached_property
    def enumerators(self) -> dict[str, int]:
        """Name -> value."""
        found: dict[str, int] = {}
        for die in self._entries:
            for child in _children(die) if die.tag == ENUM else ():
                value = _number(child, "DW_AT_const_value")
                if child.tag == "DW_TAG_enumerator" and value is not None:
                    found.setdefault(_name(child), value)
        return found


def _find_units(dwarf: DWARFInfo, names: tuple[str, ...]) -> dict[str, CompileUnit]:
    """Return the compilation units with these names.

    Builds outside of the source tree put its path before a name. arch/x86/mm/mmap.c must not match mm/mmap.c.
    """
    found: dict[str, tuple[int, CompileUnit]] = {}
    for number, unit in enumerate(dwarf.iter_CUs()):
        if number >= UNITS_MAX:
            break
        path = f"/{_name(unit.get_top_DIE())}"
        for name in names:
            if path.endswith(f"/{name}") and (name not in found or len(path) < found[name][0]):
                found[name] = len(path), unit
    return {name: unit for name, (_, unit) in found.items()}


def _children(die: DIE) -> Iterator[DIE]:
    """Yield the children of an entry.

    Every step goes forward in the unit, even if DW_AT_sibling points back, so this ends.
    """
    if not die.has_children:
        return
    at = die.offset + die.size
    while True:
        child = die.cu.get_DIE_from_refaddr(at)
        if child.is_null():
            return
        yield child
        at = _after(child)


def _after(die: DIE) -> int:
    """Return the offset of the entry behind an entry and all of its descendants."""
    at, level = _skip(die)
    while level:
        below = die.cu.get_DIE_from_refaddr(at)
        at, deeper = _skip(below)
        level += -1 if below.is_null() else deeper
    return at


def _skip(die: DIE) -> tuple[int, int]:
    """Return the offset to continue at after an entry, and how many levels that is below it."""
    sibling = die.attributes.get("DW_AT_sibling")
    if not die.has_children or sibling is None:
        return die.offset + die.size, int(bool(die.has_children))
    at = int(sibling.value) + (0 if sibling.form == "DW_FORM_ref_addr" else die.cu.cu_offset)
    if at <= die.offset:
        raise ValueError(f"DW_AT_sibling of the entry at {die.offset:#x} leads back to {at:#x}")
    return at, 0


def _name(die: DIE) -> str:
    name = die.attributes.get("DW_AT_name")
    return name.value.decode("utf-8", "replace") if name is not None and isinstance(name.value, bytes) else ""


def _number(die: DIE, attribute: str) -> int | None:
    """Return an attribute's value if it is a plain number."""
    found = die.attributes.get(attribute)
    return found.value if found is not None and isinstance(found.value, int) else None


def _location(value: Any) -> int:  # noqa: ANN401 - a number, or the bytes of an expression
    """Return DW_AT_data_member_location in bytes: until DWARF 3 it is the expression DW_OP_plus_uconst N."""
    if isinstance(value, int):
        return value
    expression = bytes(value)
    if re.fullmatch(b"\x23" + ULEB, expression) is None:
        raise ValueError(f"DW_AT_data_member_location is the expression {expression.hex()}, expected DW_OP_plus_uconst")
    return uleb(expression[1:])


def _type(die: DIE) -> DIE | None:
    """Return the entry that DW_AT_type refers to; None for void."""
    return die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None


def _resolved(die: DIE) -> DIE | None:
    """Return a type, or a member's type, without typedefs and qualifiers."""
    found: DIE | None = die
    for _ in range(DEPTH_MAX):
        if found is None or found.tag not in (QUALIFIERS | {TYPEDEF, "DW_TAG_member"}):
            return found
        found = _type(found)
    return None


def _size_of(die: DIE, depth: int) -> int | None:
    """Return the size of a type, or of a member's type, in bytes."""
    found = _resolved(die)
    if found is None or depth > DEPTH_MAX:
        return None
    size = _number(found, "DW_AT_byte_size")
    if size is not None:
        return size
    if found.tag == POINTER:
        return int(found.cu["address_size"])
    if found.tag != ARRAY or "DW_AT_type" not in found.attributes:
        return None
    element = _type(found)
    size = None if element is None else _size_of(element, depth + 1)
    for count in _counts(found):
        size = None if size is None else size * count
    return size


def _counts(array: DIE) -> list[int]:
    """Return the lengths of an array's dimensions; 0 for a flexible one."""
    counts = []
    for child in _children(array):
        if child.tag == "DW_TAG_subrange_type":
            count, upper = _number(child, "DW_AT_count"), _number(child, "DW_AT_upper_bound")
            counts.append(count if count is not None else 0 if upper is None else upper + 1)
    return counts


def _type_name(die: DIE, depth: int) -> str | None:
    """Return the C type of a member, as ``BtfSource`` writes it."""
    found = _type(die) if die.tag in (QUALIFIERS | {"DW_TAG_member"}) else die
    if found is None or depth > DEPTH_MAX:
        return None if found else "void"
    if found.tag in QUALIFIERS:
        return _type_name(found, depth + 1)
    if found.tag in (POINTER, ARRAY):
        target = _type(found)
        name = "void" if target is None else _type_name(target, depth + 1)
        return f"{name} *" if found.tag == POINTER else "".join([str(name), *(f"[{n}]" for n in _counts(found))])
    tag = {STRUCT: "struct ", UNION: "union ", ENUM: "enum "}.get(str(found.tag), "")
    return tag + (_name(found) or "(anonymous)")


def _why(error: Exception) -> str:
    return f"{error}" or type(error).__name__
