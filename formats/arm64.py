"""arm64: page-table entry bits, and register structures.

Sources of truth: the Arm Architecture Reference Manual (DDI 0487), D8.3 "VMSAv8-64 translation table format
descriptors"; arch/arm64/include/asm/{pgtable-hwdef,pgtable-prot,processor,ptrace,sysreg,mte}.h,
arch/arm64/include/uapi/asm/{ptrace,sigcontext,ucontext}.h, include/uapi/linux/{elf,prctl}.h, Linux 7.2; QEMU's
target/arm/arch_dump.c (struct aarch64_elf_prstatus), 10.0; Arm's register numbers for DWARF (aadwarf64, 2025Q1).
"""

from __future__ import annotations

import numpy as np

# Descriptors of a translation table.
PTE_VALID = 1 << 0
PTE_TABLE_BIT = 1 << 1
"""Set in an entry that leads to a table, and in one of the last level that is a page; clear in a block."""
PTE_NG = 1 << 11
PTE_PROT_NONE_OLD = 1 << 58
PMD_PRESENT_INVALID_OLD = 1 << 59
PTE_ADDR_LOW_48 = (1 << 48) - 1
PTE_ADDR_HIGH_64K = 0xF << 12
PTE_ADDR_HIGH_64K_SHIFT = 36
"""FEAT_LPA: bits 51 to 48 of an address are bits 15 to 12 of an entry."""
PTE_ADDR_LOW_LPA2 = (1 << 50) - 1
PTE_ADDR_HIGH_LPA2 = 0x3 << 8
PTE_ADDR_HIGH_LPA2_SHIFT = 42
"""FEAT_LPA2: bits 51 and 50 of an address are bits 9 and 8 of an entry, in the place of SH."""
PTE_RESERVED_48 = 0x3 << 48
"""Zero if FEAT_LPA2 is not in use."""
BLOCK_NT = 1 << 16
"""FEAT_BBM's mark of a block that is being changed; the address bits of a block below its size are zero otherwise."""
BLOCK_SHIFT_MAX_48 = {12: 30, 14: 25, 16: 29}
"""PAGE_SHIFT -> shift of the highest level that may have blocks."""
BLOCK_SHIFT_MAX_52 = {12: 39, 14: 36, 16: 42}
"""The same for physical addresses of 52 bits."""
ENTRY_SHIFT = 3

# Swap entries: __SWP_TYPE_SHIFT and __SWP_OFFSET_SHIFT of Linux 6.10, 5.19, and before.
SWP_SHIFTS, SWP_SHIFTS_5_19, SWP_SHIFTS_OLD = (6, 12), (3, 8), (2, 8)
SWP_TYPE_MASK = 0x1F
SWP_OFFSET_MASK = (1 << 50) - 1
SWP_ZERO = 1 << 4 | 1 << 5 | 1 << 11 | 3 << 62
"""Bits that are zero since Linux 6.10."""
TASK_SIZE_MAX = 1 << 52
TASK_SIZE_32_MAX = 1 << 32
THREAD_SIZES = (16 << 10, 32 << 10, 64 << 10)
"""Possible sizes of a kernel stack: 16 KiB or one page, and twice that with KASAN."""

# PSTATE as SPSR_EL1 has it.
PSR_MODE_MASK = 0xF
PSR_MODE32_BIT = 0x10
PSR_IL_BIT = 1 << 20
PSR_RESERVED = ~((1 << 36) - 1) & ((1 << 64) - 1)
"""No exception sets these: bits from 36 on."""
PSR_DAIF = 0x3C0
PSR_AA32_AIF = 0x1C0
PSR_AA32_DIT_BIT = 1 << 24
COMPAT_PSR_DIT_BIT = 1 << 21

user_pt_regs = np.dtype([(name, "<u8") for name in (*(f"x{i}" for i in range(31)), "sp", "pc", "pstate")])
"""struct user_pt_regs, which is elf_gregset_t."""

pt_regs = np.dtype(
    [*((name, "<u8") for name in user_pt_regs.names or ()), ("orig_x0", "<u8"), ("syscallno", "<i4")],
)
"""struct pt_regs up to syscallno (a u64 before Linux 4.14)."""
PT_REGS_SIZES = (288, 304, 320, 336)
"""sizeof(struct pt_regs) in all versions: 320 since Linux 6.14."""
NO_SYSCALL = -1

DWARF_REGS = (*(f"x{i}" for i in range(31)), "sp", "pc")
"""aadwarf64, "DWARF register names"."""
SIGNED_BITS = (52, 48, 47, 42, 39, 36)
"""Most bits of a process's addresses; the bits above, except bit 55, may be a pointer's signature."""
RT_SIGRETURN = b"\x68\x11\x80\xd2\x01\x00\x00\xd4"  # mov x8, #__NR_rt_sigreturn; svc #0
RT_SIGFRAME_MCONTEXT = 304  # from the stack pointer: struct rt_sigframe: offsetof(uc.uc_mcontext)
sigcontext = np.dtype([("fault_address", "<u8"), *((name, "<u8") for name in user_pt_regs.names or ())])
"""struct sigcontext up to pstate."""
CALL_BL, CALL_BL_MASK = 0x94000000, 0xFC000000
CALL_BLR, CALL_BLR_MASK = 0xD63F0000, 0xFFFFFC1F
CALL_BLRA, CALL_BLRA_MASK = 0xD63F0800, 0xFEFFF800  # blraa, blrab, blraaz, blrabz
CALLS = ((CALL_BL, CALL_BL_MASK), (CALL_BLR, CALL_BLR_MASK), (CALL_BLRA, CALL_BLRA_MASK))

# Instructions, most as (value, mask): DDI 0487, C4.1.
OP_BRANCH, OP_BRANCH_SHIFT = 5, 26  # of 3 bits: branches, exceptions, system instructions
OP_LOAD_STORE, OP_LOAD_STORE_MASK = 0x08000000, 0x0A000000
B, B_MASK = 0x14000000, 0xFC000000
RETURNS = (
    (0xD65F03C0, 0xFFFFFFFF),  # ret
    (0xD65F0BFF, 0xFFFFFBFF),  # retaa, retab
    (0xD61F0200, 0xFFFFFFDF),  # br x16, br x17
)
CONDITIONAL = {
    (0x54000000, 0xFF000000): 19,  # b.cond, bc.cond
    (0x34000000, 0x7E000000): 19,  # cbz, cbnz
    (0x36000000, 0x7E000000): 14,  # tbz, tbnz
}
"""Branches -> bits of the distance."""
SYSTEM, SYSTEM_MASK, SYSTEM_READS = 0xD5000000, 0xFFC00000, 1 << 21
SIGN_RETURN_ADDRESS = (0xD503233F, 0xD503237F)  # paciasp, pacibsp
SVC, SVC_MASK = 0xD4000001, 0xFFE0001F
ADD_IMMEDIATE, ADD_IMMEDIATE_MASK = 0x91000000, 0xBF800000  # of 64 bits, add and sub, flags not set
ADD_SUBTRACTS, ADD_SHIFTED = 1 << 30, 1 << 22
WRITE_SP = (
    (0x12000000, 0x5F800000),  # and, orr of an immediate
    (0x52000000, 0x7F800000),  # eor
    (0x0B200000, 0x3FE00000),  # add, sub of an extended register
    (0x91800000, 0xBF800000),  # addg, subg
    (0x04205000, 0xFFA0F000),  # addvl, addpl, addsvl, addspl
)
"""Those whose destination 31 is the stack pointer."""
SIGN, SIGN_MASK = 0xDAC10000, 0xFFFF0000  # pacia and its like, autia, xpaci
VECTOR, VECTOR_MASK = 0x0E000000, 0x0E000000
VECTOR_TO_GENERAL = (
    (0x1E200000, 0x5F20FC00),  # fmov, fcvtzs and their like
    (0x1E000000, 0x5F200000),  # the same of fixed-point numbers
    (0x0E002C00, 0xBFE0EC00),  # smov, umov
)
SIMD = 1 << 26
LITERAL, LITERAL_MASK = 0x18000000, 0x3B000000
PAIR, PAIR_MASK, PAIR_LOADS = 0x28000000, 0x38000000, 1 << 22
SINGLE, SINGLE_MASK, SINGLE_LOADS = 0x38000000, 0x38000000, 3 << 22
SINGLE_SCALED = 1 << 24
SINGLE_BY_REGISTER, SINGLE_BY_REGISTER_MASK = 1 << 21, 1 << 24 | 1 << 21  # and atomic ones
PREFETCH, PREFETCH_MASK = 0xC0800000, 0xC4C00000
STRUCTURE_WRITES_BACK, STRUCTURE_MASK = 0x0C800000, 0xBE800000
NO_CALLER = (b"\x1d\x00\x80\xd2", b"\xfd\x03\x1f\xaa")
"""mov x29, #0 and mov x29, xzr: AAPCS64, 6.4.6; _start and glibc's clone() have it."""

COMPAT_REGS = (*(f"x{i}" for i in range(15)), "pc", "pstate", "orig_x0")
"""compat_elf_gregset_t by the names above: r0 to r14, pc, cpsr, orig_r0."""

# struct elf_prstatus: where pr_pid and pr_reg are.
PRSTATUS_PID = 32
PRSTATUS_REGS = 112
PRSTATUS_SIZE = 392

# Notes: include/uapi/linux/elf.h.
NT_ARM_TLS = 0x401
NT_ARM_HW_BREAK = 0x402
NT_ARM_HW_WATCH = 0x403
NT_ARM_SYSTEM_CALL = 0x404
NT_ARM_SVE = 0x405
NT_ARM_PAC_MASK = 0x406
NT_ARM_PACA_KEYS = 0x407
NT_ARM_PACG_KEYS = 0x408
NT_ARM_TAGGED_ADDR_CTRL = 0x409
NT_ARM_PAC_ENABLED_KEYS = 0x40A
NT_ARM_SSVE = 0x40B
NT_ARM_ZA = 0x40C
NT_ARM_ZT = 0x40D
NT_ARM_FPMR = 0x40E
NT_ARM_POE = 0x40F
NT_ARM_GCS = 0x410
NT_ARM_RANGE = range(0x400, 0x500)
"""Note types of arm and arm64, future ones included."""

CPU_REGSETS = (("CORE", 2), ("LINUX", NT_ARM_SVE))
"""Notes that QEMU writes behind each CPU's NT_PRSTATUS: NT_FPREGSET and NT_ARM_SVE."""

user_fpsimd_state = np.dtype([("vregs", "V16", (32,)), ("fpsr", "<u4"), ("fpcr", "<u4"), ("reserved", "<u4", (2,))])
"""struct user_fpsimd_state, which is elf_fpregset_t."""
FPSIMD_FPSR = 512  # offsetof(struct user_fpsimd_state, fpsr); fpcr follows

VFP_FPSCR_STAT_MASK, VFP_FPSCR_CTRL_MASK = 0xF800009F, 0x07F79F00
"""The bits of AArch32's FPSCR that are from FPSR and from FPCR: arch/arm64/include/asm/fpsimd.h."""

user_sve_header = np.dtype(
    [("size", "<u4"), ("max_size", "<u4"), ("vl", "<u2"), ("max_vl", "<u2"), ("flags", "<u2"), ("reserved", "<u2")]
)
"""struct user_sve_header; struct user_za_header is the same."""
SVE_VQ_BYTES = 16
SVE_VL_MAX = 256
"""Longest vectors of SVE and of SME in the architecture, in bytes."""
SVE_PT_REGS_SVE = 1
SVE_PT_VL_INHERIT = 2
SVE_NUM_ZREGS = 32
SVE_NUM_PREGS = 16
SVE_FPSR_FPCR = 8
FP_STATE_SVE = 2  # enum fp_type
ARM64_VEC_SVE, ARM64_VEC_SME = 0, 1  # enum vec_type
SVCR_SM = 1 << 0
SVCR_ZA = 1 << 1
ZT_SIZE = 64
MAX_BRP_WRP = 16  # ARM_MAX_BRP, ARM_MAX_WRP
PTRAUTH_ADDRESS_KEYS = 64  # of struct ptrauth_keys_user: apia, apib, apda, apdb
PTRAUTH_GENERIC_KEY = 16  # apga, behind them
PAC_MASK_TOP = 55  # bit 55 tells the halves of the address space apart
SCTLR_ENABLED_KEYS = {1 << 31: 1 << 0, 1 << 30: 1 << 1, 1 << 27: 1 << 2, 1 << 13: 1 << 3}
"""SCTLR_EL1.{EnIA,EnIB,EnDA,EnDB} -> PR_PAC_{APIA,APIB,APDA,APDB}KEY."""
PR_TAGGED_ADDR_ENABLE = 1
PR_MTE_TAG_SHIFT = 3
MTE_CTRL_EXCL = 0xFFFF
MTE_CTRL_FLAGS = {1 << 16: 1 << 1, 1 << 17: 1 << 2, 1 << 19: 1 << 19}
"""MTE_CTRL_{TCF_SYNC,TCF_ASYNC,STORE_ONLY} -> PR_MTE_{TCF_SYNC,TCF_ASYNC,STORE_ONLY}."""

VM_MTE_BIT, VM_MTE_BIT_OLD = 36, 32
"""VM_HIGH_ARCH_BIT_4 since Linux 6.12, VM_HIGH_ARCH_BIT_0 before."""

# struct arch_hw_breakpoint_ctrl: a word of bit fields -> lowest bit there, width, and lowest bit in DBGBCR, DBGWCR.
HW_BREAKPOINT_CTRL = {"len": (19, 8, 5), "type": (27, 2, 3), "privilege": (29, 2, 1), "enabled": (31, 1, 0)}
"""Name -> lowest bit in the word of bit fields, width, and lowest bit in DBGBCR<n>_EL1 or DBGWCR<n>_EL1."""

# Bits of thread_info.flags: arch/arm64/include/asm/thread_info.h.
TIF_FOREIGN_FPSTATE_GENERIC = 16
TIF = {"SVE": 23, "SVE_VL_INHERIT": 24, "TAGGED_ADDR": 26, "SME": 27, "SME_VL_INHERIT": 28}
"""Since each was added."""
TIF_GENERIC = {"SVE": 20, "SVE_VL_INHERIT": 21, "TAGGED_ADDR": 23, "SME": 24, "SME_VL_INHERIT": 25}
"""Since "arm64: Use generic TIF bits for common thread flags": TIF_FOREIGN_FPSTATE is 16; it was 3 or 4."""

# sys_reg(op0, op1, CRn, CRm, op2) of ID registers, and the fields that tell what a processor has.
SYS_REG_OP0_3 = 3 << 19
SYS_REG_END = 4 << 19
SYS_REG_STEP = 1 << 5
ID_AA64PFR1_EL1 = 0x180420
ID_AA64PFR2_EL1 = 0x180440
ID_AA64DFR0_EL1 = 0x180500
ID_AA64ISAR1_EL1 = 0x180620
ID_AA64ISAR2_EL1 = 0x180640
ID_AA64MMFR3_EL1 = 0x180760
ID_REGISTERS = frozenset(
    (ID_AA64PFR1_EL1, ID_AA64PFR2_EL1, ID_AA64DFR0_EL1, ID_AA64ISAR1_EL1, ID_AA64ISAR2_EL1, ID_AA64MMFR3_EL1)
)
FEATURE_FIELDS = {
    "mte2": ((ID_AA64PFR1_EL1, 8, 2),),
    "sme2": ((ID_AA64PFR1_EL1, 24, 2),),
    "gcs": ((ID_AA64PFR1_EL1, 44, 1),),
    "fpmr": ((ID_AA64PFR2_EL1, 32, 1),),
    "address_auth": ((ID_AA64ISAR1_EL1, 4, 1), (ID_AA64ISAR1_EL1, 8, 1), (ID_AA64ISAR2_EL1, 12, 1)),
    "generic_auth": ((ID_AA64ISAR1_EL1, 24, 1), (ID_AA64ISAR1_EL1, 28, 1), (ID_AA64ISAR2_EL1, 8, 1)),
    "poe": ((ID_AA64MMFR3_EL1, 16, 1),),
}
"""Feature -> (register, lowest bit of a field of 4 bits, least value); any one of them shows the feature."""
