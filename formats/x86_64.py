"""x86-64: page-table entry bits and register structures.

Sources of truth: arch/x86/include/asm/pgtable_types.h, pgtable-invert.h, arch/x86/include/asm/ptrace.h (struct
pt_regs), arch/x86/include/asm/user_64.h (struct user_regs_struct), arch/x86/include/asm/user32.h (struct
user_regs_struct32), arch/x86/include/uapi/asm/{sigcontext,ucontext}.h, arch/x86/include/asm/sigframe.h, Linux 7.2;
the psABI's register numbers for DWARF (x86-64 1.0, figure 3.36; i386 1.1, table 2.14);
QEMU's target/i386/arch_dump.c (QEMUCPUState), 10.0.
"""

from __future__ import annotations

import numpy as np

# Page-table entries.
PAGE_PRESENT = 1 << 0
PAGE_PSE = 1 << 7
PAGE_KNL_ERRATUM_MASK = 1 << 5 | 1 << 6  # accessed, dirty: a processor sets them in empty entries
PAGE_PROTNONE = 1 << 8  # _PAGE_GLOBAL's bit, if _PAGE_PRESENT is clear
PAGE_PAT_LARGE = 1 << 12
PTE_PFN_MASK = ((1 << 52) - 1) & ~0xFFF
PTE_INVERTED_BIT = 1 << 51  # set in the inverted address of a PROT_NONE entry (L1TF): no RAM is up there

# Of an entry that is not present: include/asm/pgtable_64.h.
SWP_TYPE_BITS = 5
SWP_OFFSET_SHIFT = 9 + SWP_TYPE_BITS  # the offset begins above _PAGE_PROTNONE

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map
KERNEL_IMAGE_SIZE = 1 << 30
TASK_SIZE_MAX_4LEVEL = 1 << 47
THREAD_SIZES = (16 << 10, 32 << 10)
"""Possible sizes of a kernel stack."""
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

SYSCALL_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
SYSCALL_ARGUMENTS32 = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
X32_SYSCALL_BIT = 0x4000_0000

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
"""user_regs_struct32 name -> user_regs_struct name, if they differ."""

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

QEMU_STATE_SIZE_MIN = QEMUCPUState.itemsize - 8
"""Bytes of it without kernel_gs_base, which QEMU 3.0 added."""

# DWARF register number -> user_regs_struct name; the number after the last general register is the return address.
DWARF_REGS = tuple("rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split())
DWARF_REGS32 = tuple("rax rcx rdx rbx rsp rbp rsi rdi rip".split())

SIGCONTEXT_OF_DWARF32 = tuple("ax cx dx bx sp bp si di ip".split())
"""struct sigcontext_32's names by DWARF number."""

SIGCONTEXT_OF = {name: name.removeprefix("r") if name[1:].isalpha() else name for name in DWARF_REGS}
"""user_regs_struct name -> struct sigcontext's name."""

sigcontext_64 = np.dtype(
    [(name, "<u8") for name in "r8 r9 r10 r11 r12 r13 r14 r15 di si bp bx dx ax cx sp ip flags".split()]
)
"""struct sigcontext_64, up to the selectors."""

sigcontext_32 = np.dtype(
    [(name, "<u4") for name in "gs fs es ds di si bp sp bx dx cx ax trapno err ip cs flags sp_at_signal ss".split()]
)
"""struct sigcontext_32, up to fpstate; gs, fs, es, ds, cs and ss are each a __u16 and padding."""

# From the stack pointer that a signal handler returns with.
RT_SIGFRAME_MCONTEXT = 40  # struct rt_sigframe without pretcode: offsetof(uc.uc_mcontext)
RT_SIGFRAME_X32_MCONTEXT = 24  # struct rt_sigframe_x32, likewise
SIGFRAME_IA32_SC = 4  # struct sigframe_ia32 without pretcode: offsetof(sc)
RT_SIGFRAME_IA32_PUC = 8  # struct rt_sigframe_ia32 without pretcode: offsetof(puc)
UCONTEXT_IA32_MCONTEXT = 20  # struct ucontext_ia32: offsetof(uc_mcontext)

# mov $__NR_rt_sigreturn,%rax (or %eax); syscall
NR_RT_SIGRETURN = 15
RT_SIGRETURN = (b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", b"\xb8\x0f\x00\x00\x00\x0f\x05")
RT_SIGRETURN_X32 = (b"\x48\xc7\xc0\x01\x02\x00\x40\x0f\x05", b"\xb8\x01\x02\x00\x40\x0f\x05")
RT_SIGRETURN_IA32 = b"\xb8\xad\x00\x00\x00\xcd\x80"  # mov $__NR_rt_sigreturn,%eax; int $0x80
SIGRETURN_IA32 = b"\x58\xb8\x77\x00\x00\x00\xcd\x80"  # pop %eax; mov $__NR_sigreturn,%eax; int $0x80

CALL_REL32 = 0xE8
CALL_INDIRECT = 0xFF
CALL_INDIRECT_REG = 2  # /2 in ModRM
CALL_BYTES_MAX = 8
"""Longest form of call before a return address: REX, opcode, ModRM, SIB, disp32."""

# arch/x86/include/asm/segment.h, x86-64; Intel SDM volume 3, 3.3.7.1 and 3.4.2.
GDT_ENTRIES = 16
SELECTOR_LDT = 4
CANONICAL_SHIFT = 56  # of 57 bits, five-level paging
CANONICAL_TOPS = (0, 0xFF)

CPU_NOTE = "X86CPU"
"""Our own note: further data of a CPU from a dump that QEMU did not write, in the order of the NT_PRSTATUS notes."""
cpu_state = np.dtype([("apic_id", "<u4"), ("cr3", "<u8")])
