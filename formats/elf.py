"""ELF headers, program headers, section headers and note headers, for both classes and byte orders.

Each declaration is a mapping from ``(class, byte order)``, such as ``Ehdr[64, "little"]``; tables of program headers
are read with ``PHDR_DTYPE``, because a vmcore may have 65535 of them and more.

References: System V gABI, chapters "ELF Header" and "Program Header"; include/uapi/linux/elf.h and elf-em.h (v6.12).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from types import MappingProxyType
from typing import Any

import numpy as np
from construct import Bytes, Construct, Struct

from vmcore2core.formats._cabi import C_INTS, NUMPY_ORDER, ByteOrder, CMember, ElfClass, c_struct

ELFMAG = b"\x7fELF"

EI_CLASS = 4
EI_DATA = 5
EI_VERSION = 6
EI_OSABI = 7
EI_NIDENT = 16

ELFCLASS32 = 1
ELFCLASS64 = 2
ELFDATA2LSB = 1
ELFDATA2MSB = 2
EV_CURRENT = 1
ELFOSABI_NONE = 0

ELF_CLASSES: Mapping[int, ElfClass] = MappingProxyType({ELFCLASS32: 32, ELFCLASS64: 64})
"""e_ident[EI_CLASS] to the bits of an address."""

ELF_BYTE_ORDERS: Mapping[int, ByteOrder] = MappingProxyType({ELFDATA2LSB: "little", ELFDATA2MSB: "big"})
"""e_ident[EI_DATA] to the byte order."""

ET_NONE = 0
ET_REL = 1
ET_EXEC = 2
ET_DYN = 3
ET_CORE = 4

EM_NONE = 0
EM_386 = 3
EM_MIPS = 8
EM_PPC = 20
EM_PPC64 = 21
EM_S390 = 22
EM_ARM = 40
EM_SPARCV9 = 43
EM_IA_64 = 50
EM_X86_64 = 62
EM_AARCH64 = 183
EM_RISCV = 243
EM_LOONGARCH = 258

PT_NULL = 0
PT_LOAD = 1
PT_NOTE = 4
PT_AARCH64_MEMTAG_MTE = 0x7000_0002
"""Memory tags, two in each byte, for the memory at p_vaddr with p_memsz bytes."""

PN_XNUM = 0xFFFF
"""e_phnum when there are 65535 program headers or more: the number is in sh_info of section header 0."""

SHT_NULL = 0
SHN_UNDEF = 0


class PhdrFlags(IntFlag):
    """p_flags."""

    PF_X = 1
    PF_W = 2
    PF_R = 4


PF_X = PhdrFlags.PF_X
PF_W = PhdrFlags.PF_W
PF_R = PhdrFlags.PF_R


def _word(elf_class: ElfClass, order: ByteOrder) -> tuple[Construct[Any, Any], int]:
    """Return Elf_Addr, Elf_Off (and Elf64_Xword or Elf32_Word where they alternate) with its alignment."""
    ints = C_INTS[order]
    return (ints.u64, 8) if elf_class == 64 else (ints.u32, 4)


def _ehdr(elf_class: ElfClass, order: ByteOrder) -> Struct:
    half, word = C_INTS[order].u16, C_INTS[order].u32
    address, align = _word(elf_class, order)
    return c_struct(
        ("e_ident", Bytes(EI_NIDENT), 1),
        ("e_type", half, 2),
        ("e_machine", half, 2),
        ("e_version", word, 4),
        ("e_entry", address, align),
        ("e_phoff", address, align),
        ("e_shoff", address, align),
        ("e_flags", word, 4),
        ("e_ehsize", half, 2),
        ("e_phentsize", half, 2),
        ("e_phnum", half, 2),
        ("e_shentsize", half, 2),
        ("e_shnum", half, 2),
        ("e_shstrndx", half, 2),
    )


def _phdr(elf_class: ElfClass, order: ByteOrder) -> Struct:
    word = C_INTS[order].u32
    address, align = _word(elf_class, order)
    p_type: CMember = ("p_type", word, 4)
    p_flags: CMember = ("p_flags", word, 4)
    p_align: CMember = ("p_align", address, align)
    middle: tuple[CMember, ...] = (
        ("p_offset", address, align),
        ("p_vaddr", address, align),
        ("p_paddr", address, align),
        ("p_filesz", address, align),
        ("p_memsz", address, align),
    )
    if elf_class == 64:
        return c_struct(p_type, p_flags, *middle, p_align)
    return c_struct(p_type, *middle, p_flags, p_align)


def _shdr(elf_class: ElfClass, order: ByteOrder) -> Struct:
    word = C_INTS[order].u32
    address, align = _word(elf_class, order)
    return c_struct(
        ("sh_name", word, 4),
        ("sh_type", word, 4),
        ("sh_flags", address, align),
        ("sh_addr", address, align),
        ("sh_offset", address, align),
        ("sh_size", address, align),
        ("sh_link", word, 4),
        ("sh_info", word, 4),
        ("sh_addralign", address, align),
        ("sh_entsize", address, align),
    )


def _nhdr(order: ByteOrder) -> Struct:
    word = C_INTS[order].u32
    return c_struct(("n_namesz", word, 4), ("n_descsz", word, 4), ("n_type", word, 4))


def _phdr_dtype(elf_class: ElfClass, order: ByteOrder) -> np.dtype[np.void]:
    word = f"{NUMPY_ORDER[order]}u4"
    address = f"{NUMPY_ORDER[order]}u{elf_class // 8}"
    middle = [(name, address) for name in ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz")]
    if elf_class == 64:
        return np.dtype([("p_type", word), ("p_flags", word), *middle, ("p_align", address)])
    return np.dtype([("p_type", word), *middle, ("p_flags", word), ("p_align", address)])


_VARIANTS: tuple[tuple[ElfClass, ByteOrder], ...] = ((32, "little"), (32, "big"), (64, "little"), (64, "big"))

Ehdr: Mapping[tuple[ElfClass, ByteOrder], Struct] = MappingProxyType({v: _ehdr(*v) for v in _VARIANTS})
"""Elf32_Ehdr (52 bytes), Elf64_Ehdr (64 bytes)."""

Phdr: Mapping[tuple[ElfClass, ByteOrder], Struct] = MappingProxyType({v: _phdr(*v) for v in _VARIANTS})
"""Elf32_Phdr (32 bytes), Elf64_Phdr (56 bytes)."""

Shdr: Mapping[tuple[ElfClass, ByteOrder], Struct] = MappingProxyType({v: _shdr(*v) for v in _VARIANTS})
"""Elf32_Shdr (40 bytes), Elf64_Shdr (64 bytes)."""

Nhdr: Mapping[ByteOrder, Struct] = MappingProxyType({"little": _nhdr("little"), "big": _nhdr("big")})
"""Elf32_Nhdr and Elf64_Nhdr are the same 12 bytes; name and descriptor follow, each padded to NOTE_ALIGN."""

NOTE_ALIGN = 4
"""Linux pads note names and descriptors to 4 bytes in both classes, whatever p_align says."""

PHDR_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType(
    {v: _phdr_dtype(*v) for v in _VARIANTS}
)
"""Program header tables."""
