"""x86-64: page-table entry bits and register structures.

Sources of truth: arch/x86/include/asm/pgtable_types.h, pgtable-invert.h, arch/x86/include/asm/ptrace.h (struct
pt_regs), arch/x86/include/asm/user_64.h (struct user_regs_struct), arch/x86/include/asm/user32.h (struct
user_regs_struct32), Linux 7.2; QEMU's target/i386/arch_dump.c (QEMUCPUState), 10.0.
"""

from __future__ import annotations

import numpy as np

# Page-table entries.
PAGE_PRESENT = 1 << 0
PAGE_PSE = 1 << 7
PAGE_PROTNONE = 1 << 8  # _PAGE_GLOBAL's bit, where _PAGE_PRESENT is clear
PAGE_PAT_LARGE = 1 << 12
PTE_PFN_MASK = ((1 << 52) - 1) & ~0xFFF
PTE_INVERTED_BIT = 1 << 51  # set in the inverted address of a PROT_NONE entry (L1TF): no RAM is up there

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map
KERNEL_IMAGE_SIZE = 1 << 30
TASK_SIZE_MAX_4LEVEL = 1 << 47
TASK_SIZE_MAX_5LEVEL = 1 << 56

VSYSCALL_MAPPED = (0, 1)  # enum { EMULATE, XONLY, NONE } vsyscall_mode

# Selectors: arch/x86/include/asm/segment.h.
USER_CS = 0x33
USER32_CS = 0x23
USER_DS = 0x2B
EFLAGS_FIXED = 0x2

pt_regs = np.dtype(
    [
        (name, "<u8")
        for name in ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss").split()
    ]
)
"""struct pt_regs, by user_regs_struct's names; with FRED, cs and ss carry more above their 16 bits."""

user_regs_struct = np.dtype(
    [(name, "<u8") for name in (*(pt_regs.names or ()), *"fs_base gs_base ds es fs gs".split())]
)
"""elf_gregset_t of a 64-bit process."""

user_regs_struct32 = np.dtype(
    [(name, "<u4") for name in "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss".split()]
)
"""elf_gregset_t of a 32-bit process."""

REG32 = {"eip": "rip", "eflags": "eflags", "orig_eax": "orig_rax"} | {
    "e" + name: "r" + name for name in ("bx", "cx", "dx", "si", "di", "bp", "ax", "sp")
}
"""user_regs_struct32 name -> user_regs_struct name, where they differ."""

# struct elf_prstatus, 64-bit: where pr_pid and pr_reg are.
PRSTATUS_PID = 32
PRSTATUS_REGS = 112
PRSTATUS_SIZE = 336

_segment = np.dtype([("selector", "<u4"), ("limit", "<u4"), ("flags", "<u4"), ("pad", "<u4"), ("base", "<u8")])

QEMUCPUState = np.dtype(
    [
        ("version", "<u4"),
        ("size", "<u4"),
        *((n, "<u8") for n in "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags".split()),
        *((n, _segment) for n in "cs ds es fs gs ss ldt tr gdt idt".split()),
        ("cr", "<u8", (5,)),
        ("kernel_gs_base", "<u8"),
    ]
)
"""Descriptor of a note named "QEMU": one CPU, with its control registers."""
