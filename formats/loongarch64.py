"""loongarch64: page-table entry bits, direct-mapped windows, and register structures.

Sources of truth: arch/loongarch/include/asm/{addrspace,loongarch,pgtable-bits,pgtable,processor,ptrace,thread_info}.h,
arch/loongarch/include/uapi/asm/{ptrace,sigcontext,ucontext}.h, Linux 7.2; QEMU's target/loongarch/arch_dump.c, 11.1;
the psABI's register numbers for DWARF (ladwarf.adoc, 2.01).
"""

from __future__ import annotations

import numpy as np

# Direct-mapped windows: the upper 16 bits of an address, the lower 48 are physical.
CACHE_BASE = 0x9000_0000_0000_0000  # CSR_DMW1_BASE: the linear mapping, and the kernel image in it
DMW_PABITS = 48
TO_PHYS_MASK = (1 << DMW_PABITS) - 1

# Page-table entries. Those of upper levels are kernel addresses of tables, or huge pages.
PAGE_GLOBAL = 1 << 6
PAGE_HUGE = 1 << 6  # above the last level
PAGE_PRESENT = 1 << 7
PAGE_PROTNONE = 1 << 10
PAGE_HGLOBAL = 1 << 12  # a huge page's PAGE_GLOBAL, within what would be its address
PAGE_PRESENT_INVALID = 1 << 60  # of a huge page that is being changed
PFN_END_SHIFT = 48
LEAF_RESERVED = 0x07FF_0000_0000_0000
"""Bits 48 to 58 of a leaf; 59 was _PAGE_DEVMAP."""

PGTABLE_LEVELS = {4096: (3, 4), 16384: (3, 2), 65536: (2, 3)}
"""Page size -> CONFIG_PGTABLE_LEVELS that a kernel may have (arch/loongarch/Kconfig), the older choice first."""

# Swap entries: mk_swap_pte(); bit 23 is _PAGE_SWP_EXCLUSIVE.
SWP_TYPE_SHIFT = 16
SWP_TYPE_MASK = 0x7F
SWP_OFFSET_SHIFT = 24

TASK_SIZE_MAX = 1 << 48
THREAD_SIZES = (16 << 10, 64 << 10)
"""Possible sizes of a kernel stack: 16 KiB, and a page of 64 KiB."""

# CSR.PRMD as an exception from user mode saves it: PPLV is 3, and interrupts were on.
PRMD_PPLV = 3
PRMD_PIE = 1 << 2
PRMD_RESERVED = ((1 << 64) - 1) & ~0xF

GPRS = tuple(
    "zero ra tp sp a0 a1 a2 a3 a4 a5 a6 a7 t0 t1 t2 t3 t4 t5 t6 t7 t8 u0 fp s0 s1 s2 s3 s4 s5 s6 s7 s8".split()
)
"""r0 to r31 by the kernel's names (asm/regdef.h); r0 of a saved frame has what do_syscall() keeps there."""

user_pt_regs = np.dtype(
    [(n, "<u8") for n in (*GPRS, "orig_a0", "csr_era", "csr_badv", *(f"reserved{i}" for i in range(10)))]
)
"""struct user_pt_regs, elf_gregset_t; gpr_get() leaves ``reserved`` zero, loongarch_dump_regs64() puts CSRs there."""
RESERVED = (user_pt_regs.names or ())[-10:]

pt_regs = np.dtype(
    [
        (name, "<u8")
        for name in (
            *(user_pt_regs.names or ())[:-10],
            *("csr_crmd", "csr_prmd", "csr_euen", "csr_ecfg", "csr_estat"),
        )
    ]
)
"""struct pt_regs, which ends where the stack ends."""

# struct elf_prstatus: where pr_pid and pr_reg are; struct user_fp_state, as NT_PRFPREG has it.
PRSTATUS_PID = 32
PRSTATUS_REGS = 112
PRSTATUS_SIZE = 480
CRMD_REGS, PRMD_REGS = (RESERVED.index(name) for name in ("reserved0", "reserved1"))
"""Where loongarch_dump_regs64() puts csr_crmd and csr_prmd: indices into ``RESERVED``."""
FPREGSET_SIZE = 268

# struct loongarch_fpu: union fpureg fpr[32], fcc, fcsr, ftop; struct loongarch_lbt: scr0 to scr3, eflags.
NUM_FPU_REGS = 32
FPUREG_SIZE = 32
loongarch_fpu = np.dtype([("fpr", "u1", (NUM_FPU_REGS, FPUREG_SIZE)), ("fcc", "<u8"), ("fcsr", "<u4"), ("ftop", "<u4")])
loongarch_lbt = np.dtype([("scr", "<u8", (4,)), ("eflags", "<u8")])
arch_hw_breakpoint = np.dtype([("address", "<u8"), ("mask", "<u8"), ("ctrl", "<u4"), ("pad", "<u4")])
"""struct arch_hw_breakpoint; ``ctrl`` has len in bits 28 and 29, type in 30 and 31."""

NT_LOONGARCH_LSX = 0xA02
NT_LOONGARCH_LASX = 0xA03
NT_LOONGARCH_LBT = 0xA04
NT_LOONGARCH_HW_BREAK = 0xA05
NT_LOONGARCH_HW_WATCH = 0xA06

PF_USED_MATH = 0x2000  # include/linux/sched.h

# Bits of thread_info.flags: they were renumbered once (Linux 6.18), but keep their distances from TIF_FIXADE.
TIF_USEDFPU = {11: 8, 19: 17}
"""Possible bit of TIF_FIXADE, which INIT_THREAD_INFO sets -> bit of TIF_USEDFPU."""
TIF_LSX_CTX_LIVE = 6
TIF_LASX_CTX_LIVE = 7

# DWARF register number -> name: r0 to r31, f0 to f31; the number behind them is the program counter's here.
DWARF_REGS = (*GPRS, *("",) * 32, "csr_era")
RT_SIGFRAME_MCONTEXT = 304  # from the stack pointer: struct rt_sigframe: offsetof(rs_uctx.uc_mcontext)
RT_SIGRETURN = b"\x0b\x2c\x82\x03\x00\x00\x2b\x00"  # li.w $a7, __NR_rt_sigreturn; syscall 0
sigcontext = np.dtype([("sc_pc", "<u8"), *((name, "<u8") for name in GPRS)])
"""struct sigcontext, up to sc_regs."""

CALL_BL = 0x5400_0000
CALL_BL_MASK = 0xFC00_0000
CALL_JIRL_RA = 0x4C00_0001  # jirl $ra, rj, offset
CALL_JIRL_MASK = 0xFC00_001F

# Instructions: LoongArch Reference Manual, volume 1, appendix B. Opcodes have 6 bits of branches, 8 of ldptr and its
# like, 10 of other loads and stores.
OP_JIRL, OP_B, OP_BL = 0x13, 0x14, 0x15
OPS_BRANCH_21 = range(0x10, 0x13)  # beqz, bnez, bceqz and bcnez
OPS_BRANCH_16 = range(0x16, 0x1C)  # beq, bne, blt, bge, bltu, bgeu
OP_ADDI_D, OP_LD_D, OP_ST_D, OP_LDPTR_D, OP_STPTR_D = 0x00B, 0x0A3, 0x0A7, 0x26, 0x27
OP_ADDU16I_D = 0x04
OR_ZERO, OR_ZERO_MASK = 0x0015_0000, 0xFFFF_FC00  # or rd, rj, $zero: move
BREAK, BREAK_MASK = 0x002A_0000, 0xFFFF_8000
OPS_WITHOUT_RD = frozenset({0x0A4, 0x0A5, 0x0A6, *range(0x0AB, 0x0B4)})
"""st.b, st.h, st.w, preld, and loads and stores of floating-point and vector registers: opcodes of 10 bits."""
OPS_WITHOUT_RD_8 = frozenset({0x08, 0x09, 0x0C, 0x0D, 0x25, 0x70, 0x71, 0x73, 0x74, 0x75, 0x77})
"""Floating-point and vector operations, and stptr.w: opcodes of 8 bits."""
OPS_WITHOUT_RD_12 = frozenset({0x010, 0x381, 0x383, 0x384})
"""Sums and products of floating-point registers, stx.d and its like, fldx, fstx, vldx, vstx: opcodes of 12 bits."""
DBAR, DBAR_MASK = 0x3872_0000, 0xFFFE_0000  # and ibar
