"""Notes of a process's core file, for both classes and byte orders.

Sources of truth: include/linux/elfcore.h (struct elf_siginfo, elf_prstatus_common, elf_prpsinfo),
include/linux/elfcore-compat.h and arch/x86/include/asm/compat.h (32-bit processes), include/uapi/linux/elf.h (NT_*),
fs/binfmt_elf.c: fill_files_note(), fill_auxv_note() (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from construct import Bytes, Construct, Struct

from vmcore2core.formats._cabi import C_INTS, NUMPY_ORDER, ByteOrder, ElfClass, c_struct

NT_PRSTATUS = 1
NT_FPREGSET = 2
NT_PRPSINFO = 3
NT_AUXV = 6
NT_FILE = 0x46494C45
NT_PRXFPREG = 0x46E62B7F
NT_386_TLS = 0x200
NT_386_IOPERM = 0x201
NT_X86_XSTATE = 0x202
NT_X86_SHSTK = 0x204
NT_X86_XSAVE_LAYOUT = 0x205

NOTE_CORE = "CORE"
NOTE_LINUX = "LINUX"
NOTE_VMCORE2CORE = "vmcore2core"
NT_VMCORE2CORE = 0x564D_4332
"""Our own note ("VMC2"), the last: JSON that says what is missing and where everything comes from.

gdb and elfutils look at a note's type whatever its name: no other note uses this number.
"""

EM_X86_64 = 62
"""The machine whose registers have 64 bits in cores of either class: x32 processes have 32-bit ones."""

PR_FNAME_SIZE = 16
ELF_PRARGSZ = 80

_VARIANTS: tuple[tuple[ElfClass, ByteOrder], ...] = ((32, "little"), (32, "big"), (64, "little"), (64, "big"))


def _ulong(elf_class: ElfClass, order: ByteOrder) -> Construct[Any, Any]:
    return C_INTS[order].u64 if elf_class == 64 else C_INTS[order].u32


def _elf_prstatus_common(elf_class: ElfClass, order: ByteOrder) -> np.dtype[np.void]:
    form, long = NUMPY_ORDER[order], elf_class // 8
    return np.dtype(
        [
            *((name, f"{form}i4") for name in ("si_signo", "si_code", "si_errno")),
            ("pr_cursig", f"{form}i2"),
            ("padding", "V2"),
            *((name, f"{form}u{long}") for name in ("pr_sigpend", "pr_sighold")),
            *((name, f"{form}i4") for name in ("pr_pid", "pr_ppid", "pr_pgrp", "pr_sid")),
            *((name, f"{form}i{long}", 2) for name in ("pr_utime", "pr_stime", "pr_cutime", "pr_cstime")),
        ]
    )


UID_SIZES: Mapping[int, int] = MappingProxyType({32: 2, 64: 4})
"""Class -> bytes of __kernel_uid_t in most ABIs of it: 2 in ABIs as old as those of i386 and arm."""


def _prpsinfo(elf_class: ElfClass, order: ByteOrder, uid_size: int) -> Struct:
    ints = C_INTS[order]
    ulong, align = _ulong(elf_class, order), elf_class // 8
    uid = ints.u32 if uid_size == 4 else ints.u16
    return c_struct(
        ("pr_state", ints.u8, 1),
        ("pr_sname", Bytes(1), 1),
        ("pr_zomb", ints.u8, 1),
        ("pr_nice", ints.s8, 1),
        ("pr_flag", ulong, align),
        ("pr_uid", uid, uid_size),
        ("pr_gid", uid, uid_size),
        ("pr_pid", ints.s32, 4),
        ("pr_ppid", ints.s32, 4),
        ("pr_pgrp", ints.s32, 4),
        ("pr_sid", ints.s32, 4),
        ("pr_fname", Bytes(PR_FNAME_SIZE), 1),
        ("pr_psargs", Bytes(ELF_PRARGSZ), 1),
    )


elf_prstatus_common: Mapping[tuple[ElfClass, ByteOrder], np.dtype[np.void]] = MappingProxyType(
    {v: _elf_prstatus_common(*v) for v in _VARIANTS}
)
"""struct elf_prstatus_common; elf_gregset_t pr_reg of the architecture's size follows it."""

PrPsInfo: Mapping[tuple[ElfClass, ByteOrder, int], Struct] = MappingProxyType(
    {(*v, size): _prpsinfo(*v, size) for v in _VARIANTS for size in (2, 4)}
)
"""struct elf_prpsinfo, by class, byte order and bytes of a uid."""

FILE_HEADER: Mapping[tuple[ElfClass, ByteOrder], Struct] = MappingProxyType(
    {v: c_struct(("count", _ulong(*v), v[0] // 8), ("page_size", _ulong(*v), v[0] // 8)) for v in _VARIANTS}
)
"""How NT_FILE begins; ``count`` records of three longs follow, then ``count`` NUL-terminated names."""
