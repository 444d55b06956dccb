"""pyelftools' DWARFInfo over a vmlinux: read piece by piece; abbreviations are decoded when they are needed.

pyelftools itself would spend 15 s and 500 MB on a kernel's abbreviations alone.

References: DWARF 5, sections 7.5.3 (abbreviations), 7.6 (LEB128).
"""

from __future__ import annotations

import io
import re
from inspect import signature
from typing import Any

from elftools.common.utils import struct_parse
from elftools.dwarf.abbrevtable import AbbrevDecl, AbbrevTable
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
from elftools.dwarf.structs import DWARFStructs

from vmcore2core.elf.readerfile import ReaderFile
from vmcore2core.layout.vmlinux_file import VmlinuxFile
from vmcore2core.overrides import override

BUFFER = 64 << 10

SECTIONS_OF_PYELFTOOLS = tuple(name for name in signature(DWARFInfo).parameters if name.endswith("_sec"))

ULEB = rb"[\x80-\xff]*[\x00-\x7f]"
# Code, tag, whether there are children; pairs of attribute and form, with a number after DW_FORM_implicit_const; 0, 0.
ABBREVIATION = re.compile(rb"(?!\0)(%b)%b[\0\1](?:(?!\0\0)%b(?:\x21%b|(?!\x21)%b))*\0\0" % ((ULEB,) * 5))


class _LazyAbbrevTable(AbbrevTable):
    """A unit's abbreviations, decoded when they are needed: a unit's name needs one of some 300.

    Args:
        structs: pyelftools' declarations.
        data: all of .debug_abbrev.
        offset: of this unit's abbreviations in it.
    """

    def __init__(self, structs: DWARFStructs, data: bytes, offset: int) -> None:
        self.structs = structs
        self.stream = io.BytesIO(data)
        self.offset = offset
        self._data = data
        self._places: dict[int, int] = {}
        self._decoded: dict[int, AbbrevDecl] = {}

    @override
    def get_abbrev(self, code: int) -> AbbrevDecl:
        """Return an abbreviation; raise KeyError if there is none."""
        if code not in self._decoded:
            while code not in self._places:
                found = ABBREVIATION.match(self._data, self.offset)
                if found is None:
                    raise KeyError(f"abbreviation {code} is not there")
                self._places.setdefault(uleb(found[1]), found.end(1))
                self.offset = found.end()
            self.stream.seek(self._places[code])
            declared = struct_parse(self.structs.Dwarf_abbrev_declaration, self.stream)
            self._decoded[code] = AbbrevDecl(code, declared)
        return self._decoded[code]


class VmlinuxDwarf(DWARFInfo):
    """DWARFInfo of a vmlinux that decodes abbreviations when they are needed."""

    def __init__(self, file: VmlinuxFile) -> None:
        self._tables: dict[int, AbbrevTable] = {}
        sections: dict[str, DebugSectionDescriptor | None] = dict.fromkeys(SECTIONS_OF_PYELFTOOLS)
        for name in ("debug_info", "debug_abbrev", "debug_str", "debug_line_str", "debug_str_offsets"):
            sections[f"{name}_sec"] = _section(file, f".{name}")
        super().__init__(DwarfConfig(file.byte_order == "little", "", file.elf_class // 8), **sections)
        self._abbreviations = self.debug_abbrev_sec.stream.read() if self.debug_abbrev_sec else b""

    @override
    def get_abbrev_table(self, offset: int) -> AbbrevTable:
        """Return the abbreviations at an offset of .debug_abbrev."""
        if offset not in self._tables:
            self._tables[offset] = _LazyAbbrevTable(self.structs, self._abbreviations, offset)
        return self._tables[offset]


def _section(file: VmlinuxFile, name: str) -> DebugSectionDescriptor | None:
    section = file.section(name)
    if section is None:
        return None
    stream: Any
    if section.compressed:
        data = file.data(section)
        stream, size = io.BytesIO(data), len(data)
    else:
        size = section.sh_size  # hundreds of MiB, of which only the needed parts are read
        part = ReaderFile(lambda offset, length: file.pread(section.sh_offset + offset, length), size)
        stream = io.BufferedReader(part, BUFFER)
    return DebugSectionDescriptor(stream, name, section.sh_offset, size, 0)


def uleb(data: bytes) -> int:
    """Return an unsigned LEB128 number."""
    return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data))
