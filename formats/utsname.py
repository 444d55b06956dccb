"""Machines by the names that ``uname -m`` prints, as a dump's header has them.

Sources of truth: arch/*/Makefile: UTS_MACHINE, and what kernels put there when they run (Linux 7.2).
"""

from __future__ import annotations

from vmcore2core.formats.elf import (
    EM_386,
    EM_AARCH64,
    EM_ARM,
    EM_IA_64,
    EM_LOONGARCH,
    EM_MIPS,
    EM_PPC,
    EM_PPC64,
    EM_RISCV,
    EM_S390,
    EM_X86_64,
)

MACHINES: dict[str, int] = {
    "x86_64": EM_X86_64,
    "aarch64": EM_AARCH64,
    "i386": EM_386,
    "i486": EM_386,
    "i586": EM_386,
    "i686": EM_386,
    "s390": EM_S390,
    "s390x": EM_S390,
    "ppc": EM_PPC,
    "ppc64": EM_PPC64,
    "ppc64le": EM_PPC64,
    "riscv32": EM_RISCV,
    "riscv64": EM_RISCV,
    "ia64": EM_IA_64,
    "mips": EM_MIPS,
    "mips64": EM_MIPS,
    "loongarch64": EM_LOONGARCH,
}
"""Name -> ELF machine number; 32-bit ARM has many names, which begin with "arm"."""

MACHINES_32 = frozenset(("i386", "i486", "i586", "i686", "mips", "ppc", "riscv32", "s390"))


def e_machine_of(name: str) -> int | None:
    """Return the ELF machine number of a name, or None."""
    return EM_ARM if name.startswith("arm") else MACHINES.get(name)


def is_32_bit(name: str) -> bool:
    """Tell whether a name belongs to a 32-bit kernel."""
    return name in MACHINES_32 or name.startswith("arm")
