"""The dynamic linker's data for debuggers, and the auxiliary vector: numpy dtypes by ``(class, byte order)``.

References: glibc's elf/link.h (2.41): struct r_debug, struct link_map; System V gABI, "Dynamic Section";
include/uapi/linux/auxvec.h (v6.12).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from vmcore2core.formats._cabi import NUMPY_ORDER, ByteOrder, ElfClass

DT_DEBUG = 21

AT_NULL = 0
AT_PHDR = 3
AT_PHNUM = 5
AT_EXECFN = 31

_VARIANTS: tuple[tuple[ElfClass, ByteOrder], ...] = ((32, "little"), (32, "big"), (64, "little"), (64, "big"))


def _words(elf_class: ElfClass, order: ByteOrder, names: Sequence[str]) -> np.dtype[np.void]:
    return np.dtype([(name, f"{NUMPY_ORDER[order]}u{elf_class // 8}") for name in names])


R_DEBUG_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType(
    {v: _words(*v, ("r_version", "r_map", "r_brk", "r_state", "r_ldbase")) for v in _VARIANTS}
)
"""struct r_debug; the integers are padded to a word."""

LINK_MAP_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType(
    {v: _words(*v, ("l_addr", "l_name", "l_ld", "l_next", "l_prev")) for v in _VARIANTS}
)
"""The public part of struct link_map."""

AUXV_DTYPE: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType(
    {v: _words(*v, ("a_type", "a_val")) for v in _VARIANTS}
)
"""Elf32_auxv_t, Elf64_auxv_t."""
