"""struct elf_prstatus, the body of an NT_PRSTATUS note."""

from __future__ import annotations

import struct


def elf_prstatus(pid: int, gregs: bytes, *, order: str = "<", fpvalid: int = 0) -> bytes:
    """Pack struct elf_prstatus of a 64-bit machine: pr_pid at 32, pr_reg at 112, pr_fpvalid, padding."""
    return bytes(32) + struct.pack(f"{order}i", pid) + bytes(76) + gregs + struct.pack(f"{order}i4x", fpvalid)


def elf_prstatus_32(pid: int, gregs: bytes, *, fpvalid: int = 0) -> bytes:
    """Pack struct elf_prstatus of a 32-bit machine: pr_pid at 24, pr_reg at 72, pr_fpvalid."""
    return bytes(24) + struct.pack("<i", pid) + bytes(44) + gregs + struct.pack("<i", fpvalid)
