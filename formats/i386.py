"""i386 kernels: page-table entries of 32 bits, registers, where the kernel's half of the address space may begin.

Sources of truth: arch/x86/include/asm/{pgtable-2level,page_32_types,ptrace,segment,thread_info}.h, arch/x86/Kconfig
(PAGE_OFFSET), include/linux/elfcore.h (struct elf_prstatus), Linux 6.1 to 7.2; Intel SDM volume 3, table 4-4;
QEMU's target/i386/arch_dump.c (x86_elf_prstatus), 10.0.
"""

from __future__ import annotations

from vmcore2core.formats.x86_64 import user_regs_struct32

# Page-table entries of two levels; their low 12 bits are as those of 64 bits.
PTE_PFN_MASK = 0xFFFF_F000
PSE_PFN_MASK = 0xFFC0_0000
PSE_36_SHIFT, PSE_36_BITS = 13, 8
"""Bits of a 4 MiB page's entry that are bits 32 to 39 of the address (PSE-36)."""
PSE_RESERVED = 1 << 21

CR3_ROOT_MASK = 0xFFFF_FFE0
"""CR3 without its flags; with PAE, the table of four entries is aligned to 32 bytes only."""

PAGE_OFFSETS = (0xC000_0000, 0xB000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000)
"""PAGE_OFFSET by VMSPLIT_*: 3G, 3G_OPT, 2G, 2G_OPT, 1G; the addresses below are the process's."""
KERNEL_IMAGE_SIZE = 512 << 20
"""How far above PAGE_OFFSET the kernel image may reach, wherever KASLR puts it."""

THREAD_SIZES = (8 << 10,)
STACK_PADDINGS = (8, 16)
"""TOP_OF_KERNEL_STACK_PADDING: 16 with CONFIG_VM86."""

# Selectors: arch/x86/include/asm/segment.h.
USER_CS = 0x73
USER_DS = 0x7B
LDT_RPL_3 = 7
"""Low bits of a selector of a process's own table (modify_ldt(2))."""
SEGMENTS = ("ds", "es", "fs", "gs", "cs", "ss")
EFLAGS_FIXED = 0x2
EFLAGS_BITS = 22
EFLAGS_VM = 1 << 17

pt_regs = user_regs_struct32
"""struct pt_regs has user_regs_struct's order; selectors have 16 bits, and gs may be something else."""

# struct elf_prstatus, 32-bit: where pr_pid and pr_reg are.
PRSTATUS_PID = 24
PRSTATUS_REGS = 72
PRSTATUS_SIZE = 144

DWARF_REGS = tuple("eax ecx edx ebx esp ebp esi edi eip".split())
"""DWARF register number -> user_regs_struct32 name (psABI i386 1.1, table 2.14); then the return address."""
