"""Runs inside gdb and lldb: finds code without call frame information, and for lldb adds it to a copy of the file.

lldb takes no callers, but it reads call frame information. So each caller that vmcore2core found becomes rules for the
program counter of its frame, in a copy of the file that lacks call frame information there. The rules compare the stack
pointer with the frame's, so that they hold for this frame alone. Start scripts load this file from the folder of the
cores.

References: DWARF 5, sections 2.5, 6.4 and 7.7; System V ABI for x86-64, "DWARF Register Number Mapping".
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

EM_X86_64 = 62
SHT_PROGBITS, SHT_SYMTAB, SHT_DYNSYM = 1, 2, 11
STT_FUNC, STT_GNU_IFUNC = 2, 10
SECTIONS_MAX = 1 << 16
SECTION_MAX = 1 << 26
FILE_MAX = 1 << 40
NAME_MAX = 32
# Version 1; the section's address relative to the word; the number of entries; addresses relative to the table.
EH_FRAME_HDR = bytes((1, 0x1B, 0x03, 0x3B))
ADDRESS_MAX = 1 << 48
FUNCTION_MAX = 1 << 31
EHDR, SHDR, SYM = (struct.Struct(form) for form in ("<16s2HI3QI6H", "<2I4Q2I2Q", "<I2BH2Q"))
RSP, PRESERVED = 7, {"rbx": 3, "rbp": 6, "r12": 12, "r13": 13, "r14": 14, "r15": 15}
DW_CFA_ADVANCE_LOC4, DW_CFA_UNDEFINED, DW_CFA_REMEMBER_STATE, DW_CFA_RESTORE_STATE = 0x04, 0x07, 0x0A, 0x0B
DW_CFA_DEF_CFA_EXPRESSION, DW_CFA_VAL_EXPRESSION = 0x0F, 0x16
DW_OP_CONST8U, DW_OP_OVER, DW_OP_MUL, DW_OP_PLUS, DW_OP_EQ, DW_OP_LIT0, DW_OP_BREG0 = 14, 20, 30, 34, 41, 48, 112
# CIE: version 1, addresses as they are; CFA = rsp + 8, where the return address is at CFA - 8.
CIE = bytes((1, *b"zR\0", 1, 0x78, 16, 1, 0, 0x0C, RSP, 8, 0x80 | 16, 1))

Callers = Mapping[int, Mapping[int, Mapping[str, int]]]
"""Registers of callers by program counter, in the file's own addresses, and stack pointer of their frames."""


class Section(NamedTuple):
    """A section; ``header`` is where its header is in the file."""

    header: int
    name: bytes
    kind: int
    flags: int
    address: int
    offset: int
    size: int


def copied(file: Path, folder: Path, callers: Callers) -> Path:
    """Copy a file that vmcore2core rebuilt, with rules for the callers, and return the copy's path.

    If there is no caller, or if it is no file of x86-64 with a place for the rules, its own path is returned.

    Args:
        file: the incomplete file.
        folder: where the copy goes.
        callers: of the frames that run its code.

    Raises:
        OSError: it cannot be copied.
    """
    with file.open("rb") as source:
        sections = list(_sections(source, EM_X86_64)) if callers else []
        place = next((one for one in sections if _is_place(one)), None)
        if place is None:
            return file
        content = _content(source, place)
        functions = [
            one for part in sections if part.kind in (SHT_SYMTAB, SHT_DYNSYM) for one in _functions(source, part)
        ]
        content += rules(callers, described(content), dict(sorted(functions)))
        with (folder / file.name).open("wb") as target:
            size = source.seek(0, os.SEEK_END)
            _copy_data(source.fileno(), target.fileno(), size)
            at = size + -size % 8
            os.pwrite(target.fileno(), content, at)
            os.pwrite(target.fileno(), struct.pack("<2Q", at, len(content)), place.header + 24)
        return folder / file.name


def _sections(file: IO[bytes], machine: int | None = None) -> Iterator[Section]:
    """Yield the sections of a little-endian 64-bit file, of a machine if one is given; nothing of another file."""
    try:
        header = EHDR.unpack(file.read(EHDR.size))
        if header[0][:6] != b"\x7fELF\x02\x01" or machine not in (None, header[2]):
            return
        shoff, shentsize, shnum, shstrndx = header[6], *header[11:14]
        file.seek(min(shoff, FILE_MAX))
        table = file.read(shentsize * min(shnum, SECTIONS_MAX))
        rows = [SHDR.unpack_from(table, at) for at in range(0, len(table), shentsize)]
        file.seek(min(rows[shstrndx][4], FILE_MAX))
        names = file.read(min(rows[shstrndx][5], SECTION_MAX))
    except (struct.error, ValueError, IndexError):
        return
    for index, (name, kind, *place) in enumerate(rows):
        short = names[name : name + NAME_MAX].partition(b"\0")[0]
        yield Section(shoff + index * shentsize, short, kind, *place[:4])


def _is_place(section: Section) -> bool:
    """Tell whether it is the call frame information that vmcore2core has added, which is not mapped."""
    return (section.name, section.kind, section.flags) == (b".eh_frame", SHT_PROGBITS, 0)


def _content(file: IO[bytes], section: Section) -> bytes:
    file.seek(min(section.offset, FILE_MAX))
    return file.read(min(section.size, SECTION_MAX))


def _functions(file: IO[bytes], table: Section) -> Iterator[tuple[int, int]]:
    """Yield address and size of each function in a symbol table."""
    content = _content(file, table)
    for _, info, _, shndx, value, size in SYM.iter_unpack(content[: len(content) // SYM.size * SYM.size]):
        if info & 15 in (STT_FUNC, STT_GNU_IFUNC) and shndx:
            yield value, size


def _copy_data(source: int, target: int, size: int) -> None:
    """Copy a file with its holes."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data follows
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end and (piece := os.pread(source, min(end - at, 1 << 20), at)):
            at += os.pwrite(target, piece, at)
        if at < end:
            raise OSError("the file became shorter while it was copied")


def undescribed(file: Path, pcs: set[int]) -> set[int]:
    """Return the program counters, in the file's own addresses, for which a complete file lacks call frame information.

    A file whose table of call frame information is not of the usual form has it for all.
    """
    try:
        with file.open("rb") as source:
            sections = {one.name: one for one in _sections(source)} if pcs else {}
            hdr, frame = sections.get(b".eh_frame_hdr"), sections.get(b".eh_frame")
            if hdr is None or frame is None:
                return set()
            table, content = _content(source, hdr), _content(source, frame)
    except OSError:
        return set()
    if table[:4] != EH_FRAME_HDR:
        return set()
    rows = sorted((hdr.address + start, hdr.address + fde) for start, fde in struct.iter_unpack("<2i", _pairs(table)))
    return {pc for pc in pcs if not _is_described(pc - 1, rows, content, frame.address)}


def _pairs(table: bytes) -> bytes:
    return table[12 : 12 + (len(table) - 12) // 8 * 8]


def _is_described(pc: int, rows: list[tuple[int, int]], content: bytes, address: int) -> bool:
    """Tell whether the entry before an address reaches up to it, or is of another form than usual."""
    index = bisect_right(rows, (pc, ADDRESS_MAX)) - 1
    if index < 0:
        return False
    start, at = rows[index][0], rows[index][1] - address
    if not 0 <= at <= len(content) - 16:
        return True
    begin, size = struct.unpack_from("<iI", content, at + 8)
    return bool(begin + address + at + 8 != start or pc < start + size)


def described(content: bytes) -> list[tuple[int, int]]:
    """Return the ranges that an .eh_frame section of vmcore2core's describes, ascending."""
    ranges, at = [], 0
    while at + 24 <= len(content):
        length, cie = struct.unpack_from("<2I", content, at)
        if cie:
            start, size = struct.unpack_from("<2Q", content, at + 8)
            ranges.append((start, start + size))
        at += 4 + length
    return sorted(ranges)


def rules(callers: Callers, ranges: list[tuple[int, int]], functions: Mapping[int, int]) -> bytes:
    """Return entries of .eh_frame that lead to the callers.

    Args:
        callers: the callers.
        ranges: what has call frame information already, ascending.
        functions: sizes of the functions that have a symbol, by address, ascending.
    """
    entries = bytearray(_entry(0, CIE))
    for start, pcs in _by_function(_not_described(callers, ranges), functions).items():
        body = bytes((0,)) + _rules_of({pc: callers[pc] for pc in pcs}, start)
        entries += _entry(len(entries) + 4, struct.pack("<2Q", start, pcs[-1] + 2 - start) + body)
    return bytes(entries)


def _not_described(callers: Callers, ranges: list[tuple[int, int]]) -> Iterator[int]:
    """Yield the program counters without call frame information, ascending."""
    starts = [start for start, _ in ranges]
    for pc in sorted(pc for pc in callers if 2 <= pc < ADDRESS_MAX):
        index = bisect_right(starts, pc - 1) - 1
        if index < 0 or pc - 1 >= ranges[index][1]:
            yield pc


def _by_function(pcs: Iterator[int], functions: Mapping[int, int]) -> dict[int, list[int]]:
    """Return program counters by the start of their function: lldb counts from there.

    Where there is no symbol, lldb takes what an entry describes for a function. Each such program counter gets an entry
    of its own, that begins one byte before the call's last.
    """
    starts, found = list(functions), dict[int, list[int]]()
    for pc in pcs:
        index = bisect_right(starts, pc - 1) - 1
        size = functions[starts[index]] if index >= 0 and pc - starts[index] < FUNCTION_MAX else -1
        inside = size == 0 or (size > 0 and pc - 1 < starts[index] + size)
        found.setdefault(starts[index] if inside else pc - 2, []).append(pc)
    return found


def _rules_of(callers: Callers, start: int) -> bytes:
    """Return the instructions of an entry that begins at an address; rules hold from a call to the return address."""
    body, at = bytearray(), start
    for pc, frames in callers.items():
        first = max(pc - 1, at)
        body += struct.pack("<BIB", DW_CFA_ADVANCE_LOC4, first - at, DW_CFA_REMEMBER_STATE)
        body += _rules_at(frames)
        body += struct.pack("<BIB", DW_CFA_ADVANCE_LOC4, pc + 1 - first, DW_CFA_RESTORE_STATE)
        at = pc + 1
    return bytes(body)


def _rules_at(frames: Mapping[int, Mapping[str, int]]) -> bytes:
    """Return the rules at one program counter for frames by their stack pointer; elsewhere the CFA becomes 0."""
    cfa = {sp: registers["rsp"] for sp, registers in frames.items()}
    found = bytes((DW_CFA_DEF_CFA_EXPRESSION,)) + _block(bytes((DW_OP_BREG0 + RSP, 0)) + _chosen(cfa))
    for name, number in PRESERVED.items():
        if all(name in registers for registers in frames.values()):
            values = {cfa[sp]: registers[name] for sp, registers in frames.items()}  # the CFA is on the stack
            found += bytes((DW_CFA_VAL_EXPRESSION, number)) + _block(_chosen(values))
        else:
            found += bytes((DW_CFA_UNDEFINED, number))
    return found


def _chosen(values: Mapping[int, int]) -> bytes:
    """Return operations that push the value whose key is on top of the stack, or 0."""
    each = (
        struct.pack("<2BQ2BQ2B", DW_OP_OVER, DW_OP_CONST8U, key, DW_OP_EQ, DW_OP_CONST8U, value, DW_OP_MUL, DW_OP_PLUS)
        for key, value in values.items()
    )
    return bytes((DW_OP_LIT0,)) + b"".join(each)


def _entry(cie: int, content: bytes) -> bytes:
    padded = content + bytes(-len(content) % 8)  # DW_CFA_nop
    return struct.pack("<2I", len(padded) + 4, cie) + padded


def _block(content: bytes) -> bytes:
    """Return bytes, preceded by their number as ULEB128."""
    size, left = bytearray(), len(content)
    while left > 0x7F:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes((*size, left)) + content
