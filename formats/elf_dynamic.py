"""ELF images in memory: dynamic section, symbols, hash tables, section headers.

Each table is a numpy dtype by ``(class, byte order)``.

References: System V gABI, chapters "Dynamic Linking", "Symbol Table" and "Sections"; glibc's elf/elf.h (2.41); the GNU
hash table as binutils' bfd/elflink.c (2.44) writes it: elf_gnu_hash_process_symidx().
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.formats._cabi import NUMPY_ORDER, ByteOrder, ElfClass

PT_DYNAMIC = 2
PT_PHDR = 6
PT_GNU_EH_FRAME = 0x6474E550

DT_NULL = 0
DT_HASH = 4
DT_STRTAB = 5
DT_SYMTAB = 6
DT_STRSZ = 10
DT_GNU_HASH = 0x6FFFFEF5

SHT_NULL = 0
SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_NOTE = 7
SHT_NOBITS = 8
SHT_DYNSYM = 11
SHF_WRITE = 0x1
SHF_ALLOC = 0x2
SHF_EXECINSTR = 0x4
SHF_COMPRESSED = 0x800

ELFCOMPRESS_ZLIB = 1
ELFCOMPRESS_ZSTD = 2
NT_GNU_BUILD_ID = 3  # of notes named "GNU"

SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
SHN_ABS = 0xFFF1

STT_OBJECT = 1
STT_FUNC = 2
STT_SECTION = 3
STT_FILE = 4
STT_GNU_IFUNC = 10
STT_MASK = 0xF
STB_SHIFT = 4
STB_LOCAL = 0
STB_GLOBAL = 1

_VARIANTS: tuple[tuple[ElfClass, ByteOrder], ...] = ((32, "little"), (32, "big"), (64, "little"), (64, "big"))


def _shdr(elf_class: ElfClass, order: ByteOrder) -> np.dtype[np.void]:
    word, address = f"{NUMPY_ORDER[order]}u4", f"{NUMPY_ORDER[order]}u{elf_class // 8}"
    return np.dtype(
        [
            ("sh_name", word),
            ("sh_type", word),
            ("sh_flags", address),
            ("sh_addr", address),
            ("sh_offset", address),
            ("sh_size", address),
            ("sh_link", word),
            ("sh_info", word),
            ("sh_addralign", address),
            ("sh_entsize", address),
        ]
    )


def _sym(elf_class: ElfClass, order: ByteOrder) -> np.dtype[np.void]:
    half, word, address = (f"{NUMPY_ORDER[order]}u{n}" for n in (2, 4, elf_class // 8))
    value = [("st_value", address), ("st_size", address)]
    rest = [("st_info", "u1"), ("st_other", "u1"), ("st_shndx", half)]
    return np.dtype([("st_name", word), *rest, *value] if elf_class == 64 else [("st_name", word), *value, *rest])


def _chdr(elf_class: ElfClass, order: ByteOrder) -> np.dtype[np.void]:
    word, size = f"{NUMPY_ORDER[order]}u4", f"{NUMPY_ORDER[order]}u{elf_class // 8}"
    reserved = [("ch_reserved", word)] if elf_class == 64 else []
    return np.dtype([("ch_type", word), *reserved, ("ch_size", size), ("ch_addralign", size)])


SHDR_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType({v: _shdr(*v) for v in _VARIANTS})
"""Elf32_Shdr (40 bytes), Elf64_Shdr (64 bytes)."""

CHDR_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType({v: _chdr(*v) for v in _VARIANTS})
"""Elf32_Chdr (12 bytes), Elf64_Chdr (24 bytes): the head of a section that is SHF_COMPRESSED."""

SYM_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType({v: _sym(*v) for v in _VARIANTS})
"""Elf32_Sym (16 bytes), Elf64_Sym (24 bytes)."""

DYN_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType(
    {(c, o): np.dtype([(name, f"{NUMPY_ORDER[o]}u{c // 8}") for name in ("d_tag", "d_val")]) for c, o in _VARIANTS}
)
"""Elf32_Dyn (8 bytes), Elf64_Dyn (16 bytes)."""

HASH_DTYPE: Mapping[ByteOrder, np.dtype[np.void]] = MappingProxyType(
    {o: np.dtype([(name, f"{NUMPY_ORDER[o]}u4") for name in ("nbucket", "nchain")]) for o in NUMPY_ORDER}
)
"""The head of DT_HASH; nchain is the number of symbols."""

GNU_HASH_DTYPE: Mapping[ByteOrder, np.dtype[np.void]] = MappingProxyType(
    {
        o: np.dtype([(name, f"{NUMPY_ORDER[o]}u4") for name in ("nbuckets", "symoffset", "bloom_size", "bloom_shift")])
        for o in NUMPY_ORDER
    }
)
"""The head of DT_GNU_HASH; then Elf_Addr bloom[bloom_size], uint32_t buckets[nbuckets], and a chain word for each
symbol from symoffset on, whose lowest bit ends a chain."""

GNU_HASH_CHAIN_END = 1
