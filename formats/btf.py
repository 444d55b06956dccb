"""BTF, the BPF Type Format: the kernel's own types, small enough to be in every kernel.

Sources of truth: include/uapi/linux/btf.h and Documentation/bpf/btf.rst (Linux 7.2).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

BTF_MAGIC = 0xEB9F
BTF_VERSION = 1
BTF_MAX_NAME_OFFSET = 0x00FF_FFFF
BTF_MAX_TYPES = 0x000F_FFFF


class BtfKind(IntEnum):
    """``BTF_INFO_KIND(info)``."""

    UNKN = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


MODIFIERS = frozenset({BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG})

# Bytes after struct btf_type: a fixed part, and a part for each of vlen.
EXTRA_FIXED = {BtfKind.INT: 4, BtfKind.ARRAY: 12, BtfKind.VAR: 4, BtfKind.DECL_TAG: 4}
EXTRA_PER_VLEN = {
    BtfKind.STRUCT: 12,
    BtfKind.UNION: 12,
    BtfKind.ENUM: 8,
    BtfKind.FUNC_PROTO: 8,
    BtfKind.DATASEC: 12,
    BtfKind.ENUM64: 12,
}

BITFIELD_SIZE_SHIFT = 24  # of btf_member.offset if kind_flag is set
BITFIELD_OFFSET_MASK = 0x00FF_FFFF


def btf_header(order: str) -> np.dtype[np.void]:
    """Return struct btf_header in byte order "<" or ">"."""
    return np.dtype(
        [
            ("magic", f"{order}u2"),
            ("version", "u1"),
            ("flags", "u1"),
            ("hdr_len", f"{order}u4"),
            ("type_off", f"{order}u4"),
            ("type_len", f"{order}u4"),
            ("str_off", f"{order}u4"),
            ("str_len", f"{order}u4"),
        ]
    )


TYPE_SIZE = 12  # struct btf_type: name_off, info, size or type
TYPE_FORMAT = "III"
MEMBER_FORMAT = "III"  # struct btf_member: name_off, type, offset
ARRAY_FORMAT = "III"  # struct btf_array: type, index_type, nelems
ENUM_FORMAT = "Ii"  # struct btf_enum: name_off, val
ENUM64_FORMAT = "III"  # struct btf_enum64: name_off, val_lo32, val_hi32


def info_kind(info: int) -> int:
    """Return BTF_INFO_KIND()."""
    return info >> 24 & 0x1F


def info_vlen(info: int) -> int:
    """Return BTF_INFO_VLEN()."""
    return info & 0xFFFF


def info_kflag(info: int) -> bool:
    """Return BTF_INFO_KFLAG()."""
    return bool(info >> 31)
