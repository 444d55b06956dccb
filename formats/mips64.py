"""MIPS, 64 bits: segments of the address space, page-table entries, register structures, instructions.

Sources of truth: arch/mips/include/asm/{addrspace,mach-generic/spaces,pgtable-bits,pgtable-64,processor,ptrace,
thread_info,cpu-info,inst,mipsregs}.h, arch/mips/include/uapi/asm/{ptrace,reg,sigcontext,ucontext,unistd}.h,
arch/mips/kernel/{ptrace,signal,signal32,signal_n32}.c, Linux 6.1; the MIPS64 manual's instruction set (release 2).

Of structures whose byte order is the kernel's, functions return the dtype: "<" is mips64el's, ">" mips64's.
"""

from __future__ import annotations

import numpy as np

# Segments. XKPHYS has a window of physical memory for each of eight cache attributes; CKSEG0 and CKSEG1 show the first
# 512 MiB, cached and uncached.
XKPHYS = 0x8000_0000_0000_0000
XKPHYS_CCAS = 8
XKPHYS_CCA_SHIFT = 59
XKPHYS_PABITS = 48  # the architecture has up to 59, no processor more than 49, and none more memory
CKSEG0 = 0xFFFF_FFFF_8000_0000
CKSEG1 = 0xFFFF_FFFF_A000_0000
CKSEG_SIZE = 512 << 20

# Page-table entries of the R4000 kind (enum pgtable_bits); those behind HUGE depend on the configuration.
PAGE_PRESENT = 1 << 0
GLOBAL_TO_CACHE = 3
"""_CACHE_SHIFT - _PAGE_GLOBAL_SHIFT: GLOBAL, VALID and DIRTY are always in front of the cache attribute."""
CACHE_BITS = 3
CACHE_SHIFT_USUAL = 11
"""With CONFIG_CPU_HAS_RIXI and huge pages, without soft-dirty bits."""
CACHE_SHIFTS = range(7, 14)

PGTABLE_LEVELS = {4096: (3, 4), 8192: (3,), 16384: (3,), 32768: (3,), 65536: (2, 3)}
"""Page size -> CONFIG_PGTABLE_LEVELS that a kernel may have (arch/mips/Kconfig), the usual one first."""
VA_BITS = 40
"""TASK_SIZE64 without CONFIG_MIPS_VA_BITS_48."""
PGD_TABLE_ORDER = {(4096, 3): 1}
"""(page size, levels) -> order of the top table if it is not 0; with 16 KiB, CONFIG_MIPS_VA_BITS_48 makes it 1."""

# Swap entries: mk_swap_pte(); bit 23 is _PAGE_SWP_EXCLUSIVE since Linux 6.3, and was no type in use before.
SWP_TYPE_SHIFT = 16
SWP_TYPE_MASK = 0x7F
SWP_OFFSET_SHIFT = 24

TASK_SIZE_MAX = 1 << 48
TASK_SIZE32 = 0x7FFF_8000
THREAD_SIZES = (16 << 10, 32 << 10, 64 << 10)
"""Possible sizes of a kernel stack: 16 KiB, or a page if that is larger."""
TOS_GAP = 32
"""Bytes that __KSTK_TOS() leaves above pt_regs."""

STATUS_KSU = 0x18
STATUS_USER = 0x10
CAUSE_EXCCODE = 0x7C
CAUSE_SYSCALL = 8 << 2

GPRS = tuple(
    "zero at v0 v1 a0 a1 a2 a3 a4 a5 a6 a7 t0 t1 t2 t3 s0 s1 s2 s3 s4 s5 s6 s7 t8 t9 k0 k1 gp sp fp ra".split()
)
"""$0 to $31 by n64's names (asm/regdef.h)."""
STATIC = (16, 17, 18, 19, 20, 21, 22, 23, 30)
"""$s0 to $s7 and $fp, which SAVE_SOME leaves out of pt_regs."""

_SPECIAL = ("lo", "hi", "epc", "badvaddr", "status", "cause")
GREGS = (*GPRS, *_SPECIAL)
ELF_GREGS_64 = (*GREGS, *[""] * 7)
"""elf_gregset_t of n64 and n32: 45 words of 64 bits (MIPS64_EF_R0 and so on)."""
ELF_GREGS_32 = (*[""] * 6, *GREGS, "")
"""elf_gregset_t of o32: 45 words of 32 bits (MIPS32_EF_R0 and so on)."""

PT_REGS_FIELDS = (*GPRS, "status", "hi", "lo", "badvaddr", "cause", "epc")
PT_REGS_SIZES = (304, 304 + 96)
"""sizeof(struct pt_regs), and with what CONFIG_CPU_CAVIUM_OCTEON has at its end."""


def pt_regs(order: str) -> np.dtype[np.void]:
    """Return struct pt_regs up to cp0_epc."""
    return np.dtype([(name, f"{order}u8") for name in PT_REGS_FIELDS])


# struct elf_prstatus: where pr_pid and pr_reg are.
PRSTATUS_PID = 32
PRSTATUS_REGS = 112
PRSTATUS_SIZE = 480


def elf_gregset(order: str) -> np.dtype[np.void]:
    """Return elf_gregset_t of n64, as the kernel's crash notes have it."""
    return np.dtype([(name, f"{order}u8") for name in GREGS])


def thread_info(order: str) -> np.dtype[np.void]:
    """Return struct thread_info up to flags; it is at the bottom of the kernel stack."""
    return np.dtype([("task", f"{order}u8"), ("flags", f"{order}u8")])


TIF_32BIT_REGS = 22
TIF_32BIT_ADDR = 23
TIF_32BIT_FPREGS = 27
TIF_HYBRID_FPREGS = 28
TIF_MSA_CTX_LIVE = 30
PF_USED_MATH = 0x2000  # include/linux/sched.h

EM_MIPS = 8
EF_MIPS_ABI2 = 0x20

# Notes.
NT_MIPS_DSP = 0x800
NT_MIPS_FP_MODE = 0x801
NT_MIPS_MSA = 0x802
NUM_FPU_REGS = 32
MSA_REG_SIZE = 16
NUM_DSP_REGS = 6
PR_FP_MODE_FR = 1 << 0
PR_FP_MODE_FRE = 1 << 1
MIPS_ASE_DSP = 0x10


def mips_fpu_struct(order: str, width: int) -> np.dtype[np.void]:
    """Return struct mips_fpu_struct, whose registers have ``width`` bytes: 16 with CONFIG_CPU_HAS_MSA, else 8."""
    return np.dtype([("fpr", "u1", (NUM_FPU_REGS, width)), ("fcr31", f"{order}u4"), ("msacsr", f"{order}u4")])


def mips_dsp_state(order: str) -> np.dtype[np.void]:
    """Return struct mips_dsp_state."""
    return np.dtype([("dspr", f"{order}u8", (NUM_DSP_REGS,)), ("dspcontrol", f"{order}u4"), ("pad", f"{order}u4")])


CPUINFO_FPU_ID = 24
"""Offset of fpu_id in ``cpuinfo_mips``."""


def cpuinfo_mips(order: str) -> np.dtype[np.void]:
    """Return struct cpuinfo_mips from ases to msa_id, which no configuration separates."""
    u4, u8 = f"{order}u4", f"{order}u8"
    return np.dtype(
        [
            *(("ases", u8), ("options", u8), ("udelay_val", u4), ("processor_id", u4)),
            *(("fpu_id", u4), ("fpu_csr31", u4), ("fpu_msk31", u4), ("msa_id", u4)),
        ]
    )


# Unwinding. DWARF register number -> name: $0 to $31, $f0 to $f31, hi, lo; the number behind them is epc's here.
DWARF_REGS = (*GPRS, *[""] * 32, "hi", "lo", "epc")
CALLEE_SAVED = frozenset(STATIC)
"""n64 and n32 have $gp as well."""

LI_V0 = 0x2402_0000
SYSCALL = 0x0000_000C
NR_N64_RT_SIGRETURN = 5211
NR_N32_RT_SIGRETURN = 6211
NR_O32_SIGRETURN = 4119
NR_O32_RT_SIGRETURN = 4193
RT_SIGFRAME_UC_64 = 152
"""struct rt_sigframe of n64: offsetof(rs_uc)."""
RT_SIGFRAME_MCONTEXT_64 = 192
"""struct rt_sigframe of n64: offsetof(rs_uc.uc_mcontext), from the stack pointer."""
RT_SIGFRAME_MCONTEXT_32 = 176
"""The same of struct rt_sigframe_n32, and of struct rt_sigframe32 (o32)."""
SIGFRAME_SC_32 = 24
"""struct sigframe32: offsetof(sf_sc)."""


def sigcontext_64(order: str) -> np.dtype[np.void]:
    """Return struct sigcontext of n64 and n32, up to sc_pc."""
    u8 = f"{order}u8"
    behind = ("mdhi", "hi1", "hi2", "hi3", "mdlo", "lo1", "lo2", "lo3", "pc")
    return np.dtype([*((name, u8) for name in GPRS), ("fpregs", u8, (32,)), *((name, u8) for name in behind)])


def sigcontext_32(order: str) -> np.dtype[np.void]:
    """Return struct sigcontext32, up to sc_regs."""
    u4, u8 = f"{order}u4", f"{order}u8"
    return np.dtype([("regmask", u4), ("status", u4), ("pc", u8), *((name, u8) for name in GPRS)])


# Instructions.
GP, SP, RA = 28, 29, 31
OP_SPECIAL, OP_REGIMM, OP_J, OP_JAL = 0x00, 0x01, 0x02, 0x03
FUNCT_JR, FUNCT_JALR = 0x08, 0x09
REGIMM_LINKS = range(0x10, 0x14)  # bltzal, bgezal, bltzall, bgezall
REGIMM_BRANCHES = (*range(4), *REGIMM_LINKS)
BRANCHES = (*range(0x04, 0x08), *range(0x14, 0x18))
"""beq, bne, blez, bgtz, and the same as branch-likely."""
LIKELY = frozenset(range(0x14, 0x18))
REGIMM_LIKELY = frozenset({0x02, 0x03, 0x12, 0x13})
OP_SW, OP_SD, OP_SWC2 = 0x2B, 0x3F, 0x3A
MAKE_FRAME, MAKE_FRAME_MASK = (0x67BD_8000, 0x27BD_8000), 0xFFFF_8000
"""daddiu $sp, $sp, -N; addiu for addresses of 32 bits."""
