"""32-bit ARM: page-table entries of both forms, registers, and a core's notes.

Sources of truth: the Arm Architecture Reference Manual for Armv7-A (DDI 0406C), B3.5 "Short-descriptor translation
table format" and B3.6 "Long-descriptor translation table format"; arch/arm/include/asm/{pgtable-2level,pgtable-3level,
pgtable-2level-hwdef,pgtable-3level-hwdef,fpstate,thread_info,memory}.h, arch/arm/include/uapi/asm/ptrace.h,
arch/arm/include/asm/user.h, arch/arm/Kconfig (PAGE_OFFSET), Linux 6.1; QEMU's target/arm/arch_dump.c (struct
arm_elf_prstatus, struct arm_user_vfp_state), 7.2.
"""

from __future__ import annotations

import numpy as np

EM_ARM = 40

# Entries of the first level of two: PMD_TYPE_*, each for 1 MiB.
PMD_TYPE_MASK = 0x3
PMD_TYPE_TABLE = 0x1
PMD_TYPE_SECT = 0x2  # bit 0 is PXN then
PMD_TABLE_ADDR = 0xFFFF_FC00
PMD_SECT_ADDR = 0xFFF0_0000
PMD_SECT_SUPER = 1 << 18
SUPERSECTION_ADDR = 0xFF00_0000
SUPERSECTION_BITS = 0x00F0_0000
SUPERSECTION_HIGH = ((20, 4, 32), (5, 4, 36))
"""Where an entry has bits 32 to 39 of a supersection's address: lowest bit, width, lowest bit of the address."""
PTE_HWTABLE_OFF = 2048
"""Linux's own table is this far below the one that the processor walks."""

# Entries of Linux's table: L_PTE_*.
L_PTE_PRESENT = 1 << 0
L_PTE_ADDR = 0xFFFF_F000

# Long descriptors (LPAE); a page of the last level has PTE_TYPE_PAGE.
LPAE_VALID = 1 << 0
LPAE_TABLE_BIT = 1 << 1
LPAE_ADDR = (1 << 40) - (1 << 12)
L_PMD_SECT_NONE = 1 << 57
PMD_SECT_NG = 1 << 11
"""Set in every section of a process (set_pmd_at()), also in one that is not valid for the moment; swap entries of a
pmd are none of this architecture's."""
LPAE_RESERVED = ((1 << 12) - 1) << 40
"""Addresses have 40 bits; the bits above are zero."""

PAGE_OFFSETS = (0xC000_0000, 0xB000_0000, 0x8000_0000, 0x4000_0000)
"""PAGE_OFFSET by VMSPLIT_*: 3G, 3G_OPT, 2G, 1G."""
KERNEL_IMAGE_SIZE = 128 << 20
THREAD_SIZES = (8 << 10, 16 << 10)
"""Possible sizes of a kernel stack: twice as large with KASAN."""
THREAD_START_SP = 8
"""How far below its end a kernel stack begins."""
GATE_START, GATE_SIZE = 0xFFFF_0000, 4096
"""The vectors' page, which processes may read and run if the kernel has CONFIG_KUSER_HELPERS."""

# The processor's status word (CPSR).
PSR_MODE_MASK = 0x1F
PSR_USR_MODE = 0x10
PSR_T_BIT = 0x20
PSR_F_BIT = 0x40
PSR_I_BIT = 0x80

REGS = (*(f"r{i}" for i in range(11)), "fp", "ip", "sp", "lr", "pc", "cpsr", "orig_r0")
pt_regs = np.dtype([(name, "<u4") for name in REGS])
"""struct pt_regs, which is elf_gregset_t: uregs[18], by the names of regoffset_table[]."""

# struct elf_prstatus, 32-bit: where pr_pid and pr_reg are.
PRSTATUS_PID = 24
PRSTATUS_REGS = 72
PRSTATUS_SIZE = 148

NT_ARM_VFP = 0x400
VFP_REGS = 32
user_vfp = np.dtype([("fpregs", "<u8", (VFP_REGS,)), ("fpscr", "<u4")])
"""NT_ARM_VFP: struct user_vfp, ARM_VFPREGS_SIZE bytes; of a processor with 16 registers the others are zero."""
USER_FP_SIZE = 116
"""NT_PRFPREG: struct user_fp, the registers of the FPA."""
