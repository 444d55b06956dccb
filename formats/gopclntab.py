"""Go's table of functions and lines, which every Go program has, stripped or not.

References: Go's src/debug/gosym/pclntab.go, src/runtime/symtab.go and src/internal/abi/symtab.go (go1.25).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.formats._cabi import NUMPY_ORDER, ByteOrder

GO_1_16 = 0xFFFFFFFA
GO_1_18 = 0xFFFFFFF0
GO_1_20 = 0xFFFFFFF1
"""pcHeader.magic, by the first version that writes it."""

HEADER_WORDS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        GO_1_16: ("nfunc", "nfiles", "funcnameOffset", "cuOffset", "filetabOffset", "pctabOffset", "pclnOffset"),
        **dict.fromkeys(
            (GO_1_18, GO_1_20),
            (
                "nfunc",
                "nfiles",
                "textStart",
                "funcnameOffset",
                "cuOffset",
                "filetabOffset",
                "pctabOffset",
                "pclnOffset",
            ),
        ),
    }
)
"""The words behind pcHeader's first 8 bytes: magic, two zeros, minLC, ptrSize."""

NOTE_NAME = b"Go\0\0"
"""Owner of the note that Go's linker writes (.note.go.buildid), padded."""

HEADER_HEAD = 8
MIN_LC = (1, 2, 4)


def functab_dtype(magic: int, order: ByteOrder, word: int) -> np.dtype[np.void]:
    """Return an entry of functab: a function's start and the offset of its ``_func``, from functab's own start."""
    size = word if magic == GO_1_16 else 4  # since 1.18, starts count from textStart
    return np.dtype([("entry", f"{NUMPY_ORDER[order]}u{size}"), ("funcoff", f"{NUMPY_ORDER[order]}u{size}")])


def nameoff_at(magic: int, word: int) -> int:
    """Return where ``_func.nameOff`` is, an int32_t."""
    return word if magic == GO_1_16 else 4


FUNC_FLAG_TOP_FRAME = 1
FUNC_FLAG_SP_WRITE = 2
"""Bits of ``_func.flag``: the outermost function of a stack; one that goes to another stack (runtime.mcall)."""


def flag_at(magic: int) -> int | None:
    """Return where ``_func.flag`` is, a uint8; None if this version has none."""
    return {GO_1_18: 37, GO_1_20: 41}.get(magic)
