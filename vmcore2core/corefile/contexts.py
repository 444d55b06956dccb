"""A thread's registers in a minidump's form (MDRawContext*), made from its core's notes.

If any register of a part is not known, ``context_flags`` omits that part, so that readers ignore it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from vmcore2core.formats import arm, arm64, elf_core, x86_64
from vmcore2core.formats import minidump as fmt
from vmcore2core.formats.elf import EM_386, EM_AARCH64, EM_ARM, EM_X86_64
from vmcore2core.process.model import ThreadSnapshot

FXSAVE_MXCSR = slice(24, 28)
X86_SEGMENTS = ("ds", "es", "fs", "gs")
AMD64_CONTROL = ("cs", "rsp", "rip", "eflags", "ss")
X86_CONTROL = ("ebp", "eip", "cs", "eflags", "esp", "ss")


class ContextForm(NamedTuple):
    """How a minidump describes a machine's threads.

    Attributes:
        architecture: MDCPUArchitecture.
        build: makes MDRawContext* of a thread.
        stack_pointer: the stack pointer's name in ``registers``.
        dtype: elf_gregset_t.
        red_zone: bytes below the stack pointer that a function may use.
    """

    architecture: int
    build: Callable[[ThreadSnapshot, Mapping[str, int]], bytes]
    stack_pointer: str
    dtype: np.dtype[np.void]
    red_zone: int = 0

    def registers(self, thread: ThreadSnapshot) -> dict[str, int]:
        """Return a thread's general registers by name."""
        row = np.frombuffer(thread.gregs[: self.dtype.itemsize], self.dtype)[0]
        return {name: int(row[name]) for name in self.dtype.names or ()}

    def context(self, thread: ThreadSnapshot) -> bytes:
        """Return a thread's MDRawContext*."""
        return self.build(thread, self.registers(thread))


def form_of(e_machine: int, elf_class: int) -> ContextForm | None:
    """Return the form of a process's threads, or None if minidumps of this machine are not supported."""
    return _FORMS.get((e_machine, elf_class))


def _regset(thread: ThreadSnapshot, name: str, n_type: int, size: int) -> bytes | None:
    """Return a note of a thread, or None if it is missing or shorter than ``size`` bytes."""
    found = (one.data for one in thread.regsets if (one.note_name, one.note_type) == (name, n_type))
    data = next(found, b"")
    return data[:size] if len(data) >= size else None


def _flags(thread: ThreadSnapshot, machine: int, parts: Iterable[tuple[int, Iterable[str]]]) -> int:
    """Return context_flags: the machine, and each part whose registers are all known."""
    unknown = set(thread.gregs_unknown)
    return machine | sum(flag for flag, names in parts if not unknown & set(names))


def _amd64(thread: ThreadSnapshot, registers: Mapping[str, int]) -> bytes:
    integer = [name for name in registers if name[0] == "r" and name not in ("rsp", "rip")]
    flags = _flags(
        thread,
        fmt.CONTEXT_AMD64,
        (
            (fmt.CONTEXT_CONTROL, AMD64_CONTROL),
            (fmt.CONTEXT_INTEGER, integer),
            (fmt.CONTEXT_SEGMENTS, X86_SEGMENTS),
        ),
    )
    fxsave = _regset(thread, elf_core.NOTE_CORE, elf_core.NT_FPREGSET, fmt.FXSAVE_SIZE)
    selectors = {name: registers[name] & 0xFFFF for name in ("cs", "ss", *X86_SEGMENTS)}
    return fmt.MDRawContextAMD64.build(
        {
            **registers,
            **selectors,
            "eflags": registers["eflags"] & 0xFFFF_FFFF,
            "context_flags": flags | (fmt.CONTEXT_FLOATING_POINT if fxsave is not None else 0),
            "mx_csr": 0 if fxsave is None else int.from_bytes(fxsave[FXSAVE_MXCSR], "little"),
            "flt_save": fxsave or bytes(fmt.FXSAVE_SIZE),
        }
    )


def _x86(thread: ThreadSnapshot, registers: Mapping[str, int]) -> bytes:
    flags = _flags(
        thread,
        fmt.CONTEXT_X86,
        (
            (fmt.CONTEXT_CONTROL, X86_CONTROL),
            (fmt.CONTEXT_INTEGER, ("edi", "esi", "ebx", "edx", "ecx", "eax")),
            (fmt.CONTEXT_SEGMENTS, X86_SEGMENTS),
        ),
    )
    x87 = _regset(thread, elf_core.NOTE_CORE, elf_core.NT_FPREGSET, fmt.X87_SIZE)
    fxsave = _regset(thread, elf_core.NOTE_LINUX, elf_core.NT_PRXFPREG, fmt.FXSAVE_SIZE)
    flags |= fmt.CONTEXT_FLOATING_POINT if x87 is not None else 0
    flags |= fmt.CONTEXT_X86_EXTENDED_REGISTERS if fxsave is not None else 0
    return fmt.MDRawContextX86.build(
        {
            **registers,
            "context_flags": flags,
            "float_save": x87 or bytes(fmt.X87_SIZE),
            "extended_registers": fxsave or bytes(fmt.FXSAVE_SIZE),
        }
    )


def _arm(thread: ThreadSnapshot, registers: Mapping[str, int]) -> bytes:
    flags = _flags(thread, fmt.CONTEXT_ARM, ((fmt.CONTEXT_ARM_INTEGER, arm.REGS[:17]),))
    vfp = _regset(thread, elf_core.NOTE_LINUX, arm.NT_ARM_VFP, arm.user_vfp.itemsize)
    row = np.frombuffer(vfp or bytes(arm.user_vfp.itemsize), arm.user_vfp)[0]
    return fmt.MDRawContextARM.build(
        {
            "context_flags": flags | (fmt.CONTEXT_ARM_FLOATING_POINT if vfp is not None else 0),
            "iregs": [registers[name] for name in arm.REGS[:16]],
            "cpsr": registers["cpsr"],
            "fpscr": int(row["fpscr"]),
            "regs": row["fpregs"].tobytes(),
        }
    )


def _arm64(thread: ThreadSnapshot, registers: Mapping[str, int]) -> bytes:
    names = arm64.user_pt_regs.names or ()
    flags = _flags(thread, fmt.CONTEXT_ARM64_OLD, ((fmt.CONTEXT_ARM_INTEGER, names),))
    size = arm64.user_fpsimd_state.itemsize
    simd = _regset(thread, elf_core.NOTE_CORE, elf_core.NT_FPREGSET, size)
    row = np.frombuffer(simd or bytes(size), arm64.user_fpsimd_state)[0]
    return fmt.MDRawContextARM64_Old.build(
        {
            "context_flags": flags | (fmt.CONTEXT_ARM_FLOATING_POINT if simd is not None else 0),
            "iregs": [registers[name] for name in names[:33]],
            "cpsr": registers["pstate"] & 0xFFFF_FFFF,
            "fpsr": int(row["fpsr"]),
            "fpcr": int(row["fpcr"]),
            "regs": row["vregs"].tobytes(),
        }
    )


_FORMS: Mapping[tuple[int, int], ContextForm] = MappingProxyType(
    {
        (EM_X86_64, 64): ContextForm(fmt.CPU_ARCHITECTURE_AMD64, _amd64, "rsp", x86_64.user_regs_struct, 128),
        (EM_386, 32): ContextForm(fmt.CPU_ARCHITECTURE_X86, _x86, "esp", x86_64.user_regs_struct32),
        (EM_ARM, 32): ContextForm(fmt.CPU_ARCHITECTURE_ARM, _arm, "sp", arm.pt_regs),
        (EM_AARCH64, 64): ContextForm(fmt.CPU_ARCHITECTURE_ARM64_OLD, _arm64, "sp", arm64.user_pt_regs),
    }
)
