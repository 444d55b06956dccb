"""riscv64: page-table entry bits, satp, and register structures.

Sources of truth: the RISC-V privileged specification ("Sv39" to "Sv57", "Svnapot", "Svpbmt", "Supervisor Address
Translation and Protection (satp) Register");
arch/riscv/include/asm/{pgtable-64,pgtable-bits,ptrace,csr,processor}.h,
arch/riscv/include/uapi/asm/{ptrace,sigcontext,ucontext}.h, Linux 7.2; QEMU's target/riscv/arch_dump.c (struct
riscv64_elf_prstatus), 10.0; the psABI's register numbers for DWARF (riscv-dwarf.adoc, 1.0).
"""

from __future__ import annotations

import numpy as np

# Page-table entries.
PAGE_PRESENT = 1 << 0
PAGE_READ = 1 << 1
PAGE_WRITE = 1 << 2
PAGE_EXEC = 1 << 3
PAGE_USER = 1 << 4
PAGE_GLOBAL = 1 << 5
PAGE_ACCESSED = 1 << 6
PAGE_DIRTY = 1 << 7
PAGE_LEAF = PAGE_READ | PAGE_WRITE | PAGE_EXEC
PAGE_PROT_NONE = PAGE_GLOBAL  # if PAGE_PRESENT is clear
PFN_SHIFT = 10
PFN_MASK = ((1 << 44) - 1) << PFN_SHIFT
PAGE_SHIFT = 12
TABLE_RESERVED = 0xFFC0_0000_0000_0000 | PAGE_DIRTY | PAGE_ACCESSED | PAGE_USER
"""Bits that an entry that leads to a table must have clear: N, PBMT, the reserved ones, D, A and U."""
LEAF_RESERVED = 0x07C0_0000_0000_0000
"""Bits 58 to 54 of a leaf; 60 and 59 are software's with Svrsw60t59b, and 63 to 59 memory types of T-Head's cores."""
NAPOT = 1 << 63
NAPOT_SIZE_MASK = 0xF << PFN_SHIFT
NAPOT_64K = 0x8 << PFN_SHIFT
"""The lowest PPN bits of the only NAPOT size, 64 KiB: they tell the size, and are not part of the address."""
NAPOT_64K_ADDRESS = 0xF000
"""The bits of a virtual address that stand in their place."""

# Swap entries since Linux 6.3: type in bits 7 to 11, offset from 12 on; before, each began one bit lower, or five.
SWP_TYPE_SHIFT = 7
SWP_TYPE_MASK = 0x1F
SWP_OFFSET_SHIFT = 12

# satp.
SATP_MODE_SHIFT = 60
SATP_PPN = (1 << 44) - 1
SATP_VA_BITS = {8: 39, 9: 48, 10: 57}
"""satp.MODE -> bits of a virtual address."""

KERNEL_LINK_ADDR = 0xFFFF_FFFF_8000_0000
TASK_SIZE_MAX = 1 << 56  # Sv57
TASK_SIZE_32_MAX = 1 << 32
THREAD_SIZES = (16 << 10, 32 << 10)
"""Possible sizes of a kernel stack: 16 KiB, and twice that with KASAN."""

# sstatus.
SR_SIE = 1 << 1
SR_SPIE = 1 << 5
SR_SPP = 1 << 8
SR_VS = 3 << 9
SR_UXL = 3 << 32
SR_UXL_32 = 1 << 32
SR_RESERVED = ((1 << 63) - 1) & ~((1 << 34) - 1)

user_regs_struct = np.dtype(
    [
        (name, "<u8")
        for name in (
            "pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
        ).split()
    ]
)
"""elf_gregset_t."""

pt_regs = np.dtype([*((n, "<u8") for n in user_regs_struct.names or ()), *((n, "<u8") for n in ("status", "badaddr"))])
"""struct pt_regs by user_regs_struct's names (epc is pc), up to badaddr; cause and orig_a0 follow."""
PT_REGS_SIZE = 288
STACK_ALIGN = 16
STACK_ALIGNS = (8, 16, 32, 64, 128)
"""Possible values of NUMBER(STACK_ALIGN)."""

d_ext_state = np.dtype([("f", "<u8", (32,)), ("fcsr", "<u4")])
"""struct __riscv_d_ext_state, without the padding at its end."""
FPREGSET_SIZE = 264  # sizeof(struct __riscv_d_ext_state); elf_fpregset_t is larger, and not written whole

v_ext_state = np.dtype([(name, "<u8") for name in ("vstart", "vl", "vtype", "vcsr", "vlenb", "datap")])
"""struct __riscv_v_ext_state; struct __riscv_v_regset_state is the same up to vlenb, and the registers follow."""
V_REGSET_HEADER = 40
NR_VECTOR_REGS = 32
VLENB_MAX = 8192  # RISCV_MAX_VLENB

# struct elf_prstatus: where pr_pid and pr_reg are.
PRSTATUS_PID = 32
PRSTATUS_REGS = 112
PRSTATUS_SIZE = 376

# DWARF register number -> user_regs_struct name: x0 to x31, f0 to f31; the number behind them is the pc's here.
DWARF_REGS = (
    *"zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6".split(),
    *("",) * 32,
    "pc",
)
RT_SIGFRAME_UC = 128  # struct rt_sigframe: offsetof(uc)
RT_SIGFRAME_MCONTEXT = 304  # from the stack pointer: struct rt_sigframe: offsetof(uc.uc_mcontext)
NR_RT_SIGRETURN = 139
RT_SIGRETURN = b"\x93\x08\xb0\x08\x73\x00\x00\x00"  # li a7, __NR_rt_sigreturn; ecall

CALL_JAL_RA = 0x0EF  # jal ra
CALL_JAL_MASK = 0xFFF
CALL_JALR_RA = 0x00E7  # jalr ra, rs
CALL_JALR_MASK = 0x7FFF
CALL_C_JALR = 0x9002  # c.jalr rs, where rs is not 0: that is c.ebreak
CALL_C_JALR_MASK = 0xF07F

# Instructions: "RV32/64G Instruction Set Listings".
OP_LOAD, OP_IMM, OP_STORE, OP_BRANCH, OP_JALR, OP_JAL, OP_FP = 0x03, 0x13, 0x23, 0x63, 0x67, 0x6F, 0x53
FUNCT3_DOUBLE = 3
OPS_WITHOUT_RD = frozenset({0x07, 0x0F, 0x27, 0x43, 0x47, 0x4B, 0x4F})
"""Floating-point loads, stores and sums of products, and fences: none writes a general register."""
FP_TO_GENERAL = frozenset({0x14, 0x18, 0x1C})
"""Upper five bits of instructions that compare, convert or move to a general register."""
EBREAK, UNIMP = 0x00100073, 0xC0001073

NT_RISCV_VECTOR = 0x901
NT_RISCV_TAGGED_ADDR_CTRL = 0x902

# NT_RISCV_TAGGED_ADDR_CTRL: arch/riscv/include/asm/csr.h, include/uapi/linux/prctl.h.
ENVCFG_PMM = 3 << 32
ENVCFG_PMLEN = {2 << 32: 7, 3 << 32: 16}
"""envcfg.PMM -> number of masked high bits of a pointer."""
PR_TAGGED_ADDR_ENABLE = 1
PR_PMLEN_SHIFT = 24
