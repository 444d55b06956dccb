"""s390x: page-table entry bits, the PSW, and register structures.

Sources of truth: z/Architecture Principles of Operation, SA22-7832-13, chapter 3 ("Dynamic Address Translation") and 4
("Program-Status Word"); arch/s390/include/asm/{pgtable,ptrace,processor,fpu-types,lowcore}.h,
arch/s390/include/uapi/asm/{ptrace,sigcontext,ucontext}.h, include/uapi/linux/elf.h (Linux 7.2); QEMU's
target/s390x/arch_dump.c (10.0); the ELF ABI s390x supplement, 1.6.1, "DWARF Register Number Mapping".
"""

from __future__ import annotations

import numpy as np

PAGE_SHIFT = 12
TABLE_ENTRIES_BITS = 11
"""A region or segment table has 2048 entries, 16 KiB; a page table has 256, 2 KiB."""
PTE_ENTRIES_BITS = 8
TEXT_OFFSET = 0x100000
"""Of _stext in the image, wherever that is: arch/s390/kernel/vmlinux.lds.S."""

# Page-table entries.
PAGE_PRESENT = 0x001  # software's
PAGE_PROTECT = 0x200
PAGE_INVALID = 0x400
PAGE_RESERVED = 0x800
"""Zero in a present entry, else the hardware raises a translation-specification exception. Swap entries may use it."""
PAGE_EMPTY = PAGE_INVALID
PAGE_ORIGIN = ~0xFFF & (1 << 64) - 1

# Swap entries: mk_swap_pte(), mk_swap_rste().
SWP_OFFSET_SHIFT = 12
SWP_TYPE_MASK = 0x1F
SWP_TYPE_SHIFT = 2
SWP_TYPE_SHIFT_RSTE = 6

# Region- and segment-table entries.
ENTRY_TYPE_MASK = 0x00C
ENTRY_COMM = 0x010
"""Common region or segment; in newer kernels, an invalid entry with this bit is a swap entry."""
ENTRY_INVALID = 0x020
ENTRY_LARGE = 0x400
"""FC of a region-third- or segment-table entry: it leads to a page of 2 GiB or 1 MiB."""
REGION_LENGTH = 0x003
REGION_OFFSET = 0x0C0
REGION_ORIGIN = ~0xFFF & (1 << 64) - 1
SEGMENT_ORIGIN = ~0x7FF & (1 << 64) - 1
SEGMENT_RESERVED = 0x0C0  # of an entry to a page table
TYPE_SHIFT = 2
TABLE_TYPES = {"pgd": 3, "p4d": 2, "pud": 1, "pmd": 0}
"""TT of the entries of a table: region-first (here pgd), region-second, region-third, segment."""

REGION2_SIZE = 1 << 42
"""Bytes that three levels of tables translate; four translate REGION1_SIZE."""
REGION1_SIZE = 1 << 53
THREAD_SIZES = (16 << 10, 64 << 10)
"""Possible sizes of a kernel stack."""
TASK_SIZE_MAX = (1 << 64) - (1 << PAGE_SHIFT)
TASK_SIZE_31 = 1 << 31
LOWCORE_ADDRESS = (1 << 31) - 1
"""Prefix registers have 31 bits, and the identity mapping begins at a multiple of 2 GiB: with this mask, the address
of a lowcore is what the prefix register has."""
ASCE_ORIGIN = ~0xFFF & (1 << 64) - 1

# The PSW's mask.
PSW_MASK_PER = 0x4000_0000_0000_0000
PSW_MASK_PSTATE = 0x0001_0000_0000_0000
PSW_MASK_WAIT = 0x0002_0000_0000_0000
PSW_MASK_RI = 0x0000_0080_0000_0000
PSW_MASK_EA = 0x0000_0001_0000_0000
PSW_MASK_BA = 0x0000_0000_8000_0000
PSW_MASK_USER = 0x0000_FF01_8000_0000
PSW_USER_BITS = 0x0705_0000_0000_0000
"""DAT, interrupts and machine checks enabled, key 0, problem state: always so in user code."""
PSW_RESERVED = 0xB808_007E_7FFF_FFFF
"""Bits 0, 2 to 4, 12, 25 to 30 and 33 to 63."""

GPRS = tuple(f"r{i}" for i in range(16))
ACRS = tuple(f"acr{i}" for i in range(16))
FREGS = tuple(f"f{i}" for i in range(16))

s390_regs = np.dtype(
    [
        *((name, ">u8") for name in ("pswm", "pswa", *GPRS)),
        *((name, ">u4") for name in ACRS),
        ("orig_r2", ">u8"),
    ]
)
"""elf_gregset_t."""

pt_regs = np.dtype(
    [
        *((name, ">u8") for name in ("args", "pswm", "pswa", *GPRS, "orig_r2")),
        *((name, ">u4") for name in ("int_code", "int_parm")),
    ]
)
"""struct pt_regs, up to int_parm; more follows."""
PT_REGS_SIZE = 192
PIF_SYSCALL = 1 << 0  # of pt_regs.flags
INT_CODE_TDB = 0x200
"""int_code of a program check that has aborted a transaction."""

s390_fp_regs = np.dtype([("fpc", ">u4"), ("pad", ">u4"), *((name, ">u8") for name in FREGS)])
"""elf_fpregset_t."""

acrs = np.dtype([(name, ">u4") for name in ACRS])
"""thread_struct.acrs."""

# struct elf_prstatus: where pr_reg is.
PRSTATUS_REGS = 112
PRSTATUS_SIZE = 336

NR_FPRS = 16
NR_VXRS = 32
VXR_SIZE = 16
FPREGSET_SIZE = 136  # fpc, padding, the registers
VXRS_LOW_SIZE = 128
VXRS_HIGH_SIZE = 256
CTRS_SIZE = 128
CR1_OFFSET = 8  # in NT_S390_CTRS: the primary ASCE
TDB_SIZE = 256
GS_CB_SIZE = 32
RI_CB_SIZE = 64
FACILITY_VX = 129
FACILITY_LIST_SIZE = 32  # bytes of stfle_fac_list, at least

NT_S390_CTRS = 0x304
NT_S390_PREFIX = 0x305
NT_S390_LAST_BREAK = 0x306
NT_S390_SYSTEM_CALL = 0x307
NT_S390_TDB = 0x308
NT_S390_VXRS_LOW = 0x309
NT_S390_VXRS_HIGH = 0x30A
NT_S390_GS_CB = 0x30B
NT_S390_GS_BC = 0x30C
NT_S390_RI_CB = 0x30D

# DWARF register numbers: the floating-point registers come in pairs of even ones, and the program counter is "pswa".
DWARF_REGS = (
    *GPRS,
    *(f"f{i}" for i in (0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)),
    *("",) * 16,  # control registers
    *ACRS,
    *("pswm", "pswa"),
)
PRESERVED = (*(f"r{i}" for i in range(6, 14)), *(f"f{i}" for i in range(8, 16)))
"""ELF ABI supplement, "Registers"; r15 is the stack pointer."""
STACK_FRAME_OVERHEAD = 160
"""The CFA is this far above the caller's stack pointer."""

sigregs = np.dtype(
    [
        *((name, ">u8") for name in ("pswm", "pswa", *GPRS)),
        *((name, ">u4") for name in (*ACRS, "fpc", "pad")),
        *((name, ">u8") for name in FREGS),
    ]
)
"""_sigregs, uc_mcontext."""
SIGCONTEXT_NAMES = {name: name for name in ("pswm", "pswa", *GPRS, *ACRS, *FREGS)}
# svc __NR_sigreturn, svc __NR_rt_sigreturn: in the vDSO (since Linux 5.12), a handler's SA_RESTORER or on the stack.
SIGRETURN = b"\x0a\x77"
RT_SIGRETURN = b"\x0a\xad"
SIGFRAME_SREGS = 176
"""struct sigframe: offsetof(sregs), behind callee_used_stack and a struct sigcontext."""
RT_SIGFRAME_MCONTEXT = 336
"""struct rt_sigframe: offsetof(uc.uc_mcontext)."""

# Calls: instructions that put the return address into r14.
CALL_BASR = 0x0DE0
CALL_BASR_MASK = 0xFFF0
CALL_BRAS = 0xA7E5
CALL_BRASL = 0xC0E5
CALL_BAS = 0x4DE0
CALL_BAS_MASK = 0xFFF0
