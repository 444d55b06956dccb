"""The CPUs' registers of a saved QEMU machine, in the form of notes that QEMU's dump-guest-memory writes.

References: QEMU's target/{i386,arm,riscv,s390x,ppc}/machine.c: vmstate_x86_cpu, vmstate_arm_cpu, vmstate_vfp,
vmstate_riscv_cpu, vmstate_s390_cpu, vmstate_ppc_cpu; target/{i386,arm,riscv,s390x,ppc}/arch_dump.c (7.2 to 11.1).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from vmcore2core.containers.vmstate import DeviceStates
from vmcore2core.containers.x86_cpus import CPUS_MAX, cpu_notes
from vmcore2core.elf.notes import Note
from vmcore2core.formats import arm64, elf_core, ppc64le, riscv64, s390x
from vmcore2core.formats import qemu_cpu as fmt

Fields = Mapping[str, bytes]
"""Name -> bytes, all numbers big-endian."""

PRSTATUS_PID = 32
"""In a 64-bit struct elf_prstatus of every machine."""


def saved_cpu_notes(devices: DeviceStates, at: int) -> tuple[Note, ...]:
    """Return the CPUs' notes in the order of their numbers; no notes if one CPU's state is incomplete.

    Args:
        devices: all devices of the stream.
        at: the end of memory.
    """
    instances = devices.instances(fmt.CPU)
    if not instances or instances != list(range(len(instances))) or len(instances) > CPUS_MAX:
        return ()
    cpus = [devices.fields(fmt.CPU, instance, at) for instance in instances]
    if all(fmt.X86_HAS in cpu for cpu in cpus):
        return _x86_notes(cpus)
    notes = [_notes(number, cpu) for number, cpu in enumerate(cpus)]
    return tuple(note for of_cpu in notes for note in of_cpu) if all(notes) else ()


def _numbers(fields: Fields, name: str, count: int = 1, size: int = 8) -> tuple[int, ...]:
    """Return the numbers of a field.

    Raises:
        KeyError: there is none of this size.
    """
    raw = fields[name]
    if len(raw) != count * size:
        raise KeyError(name)
    return tuple(int.from_bytes(raw[at : at + size], "big") for at in range(0, len(raw), size))


def _notes(number: int, cpu: Fields) -> tuple[Note, ...]:
    for machine, convert in (
        (fmt.ARM64_HAS, _arm64),
        (fmt.S390X_HAS, _s390x),
        (fmt.PPC64_HAS, _ppc64),  # env.gpr is riscv64's, too
        (fmt.RISCV64_HAS, _riscv64),
    ):
        if machine in cpu:
            try:
                return convert(number, cpu)
            except KeyError:
                return ()
    return ()


def _x86_notes(cpus: Sequence[Fields]) -> tuple[Note, ...]:
    try:
        registers = [_x86(cpu) for cpu in cpus]
    except KeyError:  # qemu-system-i386 has smaller ones
        return ()
    return cpu_notes(registers) if all(cpu["efer"] & fmt.EFER_LMA for cpu in registers) else ()


def _x86(cpu: Fields) -> dict[str, int]:
    """Return the registers by ``user_regs_struct``'s names, as ``cpu_notes`` takes them, and efer."""
    registers = dict(zip(fmt.X86_REGS, _numbers(cpu, "env.regs", len(fmt.X86_REGS)), strict=True))
    for name, field in fmt.X86_FIELDS.items():
        (registers[name],) = _numbers(cpu, field)
    for index, name in enumerate(fmt.X86_SEGMENTS):
        (selector,) = _numbers(cpu, f"env.segs[{index}].selector", size=4)
        registers[name] = selector & 0xFFFF
        (registers[f"{name}_base"],) = _numbers(cpu, f"env.segs[{index}].base")
    return registers


def _prstatus(number: int, size: int, at: int, registers: bytes, order: str = "<") -> Note:
    desc = bytearray(size)
    struct.pack_into(f"{order}I", desc, PRSTATUS_PID, number + 1)
    desc[at : at + len(registers)] = registers
    return Note("CORE", elf_core.NT_PRSTATUS, bytes(desc))


def _arm64(number: int, cpu: Fields) -> tuple[Note, ...]:
    """Return a CPU's notes; no NT_FPREGSET if it has SVE, because the stream does not tell its registers' size."""
    registers = (*_numbers(cpu, "env.xregs", 32), *_numbers(cpu, "env.pc"), *_numbers(cpu, "cpsr", size=4))
    prstatus = _prstatus(number, arm64.PRSTATUS_SIZE, arm64.PRSTATUS_REGS, struct.pack("<34Q", *registers))
    if fmt.ARM64_SVE in cpu or fmt.ARM64_FPSCR not in cpu or fmt.ARM64_FPCR in cpu:
        return (prstatus,)
    vectors = [half for name in fmt.ARM64_VECTORS for half in _numbers(cpu, name, 2)]
    (fpscr,) = _numbers(cpu, fmt.ARM64_FPSCR, size=4)
    fpregs = struct.pack("<64QII8x", *vectors, fpscr & fmt.ARM64_FPSR_MASK, fpscr & fmt.ARM64_FPCR_MASK)
    return prstatus, Note("CORE", elf_core.NT_FPREGSET, fpregs)


def _riscv64(number: int, cpu: Fields) -> tuple[Note, ...]:
    registers = (*_numbers(cpu, "env.pc"), *_numbers(cpu, "env.gpr", 32)[1:])
    return (_prstatus(number, riscv64.PRSTATUS_SIZE, riscv64.PRSTATUS_REGS, struct.pack("<32Q", *registers)),)


def _ppc64(number: int, cpu: Fields) -> tuple[Note, ...]:
    """Return a CPU's notes as QEMU writes them for big-endian interrupts; the fields are big-endian, too."""
    spr = _numbers(cpu, "env.spr", fmt.PPC64_NR_SPR)
    ccr = 0
    for field in _numbers(cpu, "env.crf", 8, 4):
        ccr = ccr << 4 | field & 0xF
    registers = struct.pack(
        ">39Q",
        *(*_numbers(cpu, "env.gpr", 32), *_numbers(cpu, "env.nip"), *_numbers(cpu, "env.msr"), 0),
        *(spr[fmt.PPC64_CTR], spr[fmt.PPC64_LR], spr[fmt.PPC64_XER], ccr),
    )
    halves = _numbers(cpu, fmt.PPC64_ALTIVEC, 64)
    vectors = struct.pack(">64Q", *(half for low in range(0, 64, 2) for half in (halves[low + 1], halves[low])))
    vmx = (vectors.ljust(ppc64le.QEMU_VSCR, b"\0") + cpu[fmt.PPC64_VSCR]).ljust(ppc64le.VMX_SIZE, b"\0")
    return (
        _prstatus(number, ppc64le.PRSTATUS_SIZE, ppc64le.PRSTATUS_REGS, registers, ">"),
        Note("CORE", elf_core.NT_FPREGSET, _joined(cpu, fmt.PPC64_FPU)),
        Note("CORE", ppc64le.NT_PPC_VMX, vmx),
        Note("CORE", ppc64le.NT_PPC_VSX, cpu[fmt.PPC64_VSX]),
    )


def _s390x(number: int, cpu: Fields) -> tuple[Note, ...]:
    """Return a CPU's notes; the fields are in its own byte order."""
    registers = _joined(cpu, fmt.S390X_GREGS)
    notes: tuple[Note, ...] = (
        _prstatus(number, s390x.PRSTATUS_SIZE, s390x.PRSTATUS_REGS, registers, ">"),
        Note("CORE", elf_core.NT_FPREGSET, cpu[fmt.S390X_FPC] + bytes(4) + _joined(cpu, fmt.S390X_FPRS)),
        Note("LINUX", s390x.NT_S390_PREFIX, cpu["env.psa"][4:]),
        Note("LINUX", s390x.NT_S390_CTRS, cpu["env.cregs"]),
    )
    if fmt.S390X_VREGS_LOW[0] in cpu:
        low, high = _joined(cpu, fmt.S390X_VREGS_LOW), _joined(cpu, fmt.S390X_VREGS_HIGH)
        notes += Note("LINUX", s390x.NT_S390_VXRS_LOW, low), Note("LINUX", s390x.NT_S390_VXRS_HIGH, high)
    return (*notes, Note("LINUX", s390x.NT_S390_GS_CB, cpu[fmt.S390X_GSCB])) if fmt.S390X_GSCB in cpu else notes


def _joined(cpu: Fields, names: Sequence[str]) -> bytes:
    return b"".join(cpu[name] for name in names)
