"""ppc64le: page-table entry bits, and register structures.

Sources of truth: arch/powerpc/include/asm/book3s/64/{pgtable,radix,hash,hash-4k,hash-64k}.h,
arch/powerpc/include/asm/{ptrace,reg,processor}.h, arch/powerpc/include/uapi/asm/{ptrace,elf,cputable,sigcontext}.h,
include/uapi/linux/elf.h (Linux 7.2); Power ISA 3.1B, book III, 6.7.10 "Radix Tree Translation"; QEMU's
target/ppc/arch_dump.c (struct PPCElfPrstatus and its like), 10.0; the ELFv2 ABI's register numbers for DWARF (1.5,
2.4).
"""

from __future__ import annotations

import numpy as np

# Page-table entries: big-endian in memory, whatever the kernel's byte order.
PAGE_SHIFT = 12
PAGE_DIRTY = 1 << 7
PAGE_ACCESSED = 1 << 8
PAGE_INVALID = 1 << 61  # _PAGE_PRESENT is cleared for a moment while an entry is changed
PAGE_PTE = 1 << 62  # "distinguishes PTEs from pointers"
PAGE_PRESENT = 1 << 63
PTE_RPN_MASK = ((1 << 53) - 1) & ~0xFFF  # up to _PAGE_PA_MAX
SWP_TYPE_MASK = 0x1F  # of a swap entry; its offset is in the place of a page's address
RADIX_PTE_NONE_MASK = PAGE_DIRTY | PAGE_ACCESSED  # a processor may write these back into an empty entry
RADIX_LEAF_RESERVED = 0xFF << 53
"""From _PAGE_PA_MAX up to _PAGE_INVALID: address bits that no machine has, and the hash MMU's."""
ALL_BITS = (1 << 64) - 1
TABLE_MASKED_BITS = 0xC000_0000_0000_00FF  # PMD_MASKED_BITS, PUD_MASKED_BITS, P4D_MASKED_BITS
TABLE_ADDRESS_MAX = 1 << 53
RADIX_TABLE_BITS = 0xE000_0000_0000_00FF
"""Of an entry to a table: valid, leaf (_PAGE_PTE), reserved bits (RADIX_PMD_BAD_BITS), and the size of the next level:
how many bits of an address it decodes."""
HASH_VAL_BITS = (0, 1 << 63)
"""HASH_PMD_VAL_BITS in older and newer kernels."""
HASH_NONE_MASK = 0xFF << 53 | 1 << 12 | 1 << 6
"""All bits of _PAGE_HPTEFLAGS (H_PTE_NONE_MASK): _RPAGE_RPN41 to _RPAGE_PKEY_BIT4, _RPAGE_RPN0, _RPAGE_RSV1."""
VAL_BITS_RADIX = 0xFF  # of __pmd_val_bits: RADIX_PMD_VAL_BITS has the size of a PTE table, HASH_PMD_VAL_BITS none

INDEX_SIZES = ("__pte_index_size", "__pmd_index_size", "__pud_index_size", "__pgd_index_size")
"""Variables that tell the levels in use; all unsigned long, so is __pmd_val_bits."""
RADIX_INDEX_SIZES = {4 << 10: (9, 9, 9, 13), 64 << 10: (5, 9, 9, 13)}
"""PAGE_SIZE -> RADIX_{PTE,PMD,PUD,PGD}_INDEX_SIZE."""
INDEX_SIZE_MAX = 16
EADDR_SIZE_MAX = 52  # RADIX_PGTABLE_EADDR_SIZE and H_PGTABLE_EADDR_SIZE at its largest

MMU_PAGE_COUNT_MAX = 16  # entries of mmu_psize_defs
VMEMMAP_SHIFTS = (12, 16, 24)
"""mmu_vmemmap_psize is MMU_PAGE_4K, MMU_PAGE_64K or MMU_PAGE_16M."""

PAGE_OFFSET = 0xC000_0000_0000_0000
LINEAR_END = 0xC008_0000_0000_0000
"""RADIX_KERN_VIRT_START, and H_KERN_VIRT_START with 64K pages."""
LINEAR_END_HASH_4K = 0xC000_1000_0000_0000
"""H_KERN_VIRT_START with 4K pages, since Linux 5.2."""
TASK_SIZE_MAX = 1 << 52
TASK_SIZE_32_MAX = 1 << 32

# Machine state register.
MSR_SF = 1 << 63
MSR_TS = 3 << 33  # transactional or suspended
MSR_VEC = 1 << 25
MSR_PR = 1 << 14
MSR_FP = 1 << 13
MSR_LE = 1 << 0
MSR_NEVER = 1 << 7
"""Never set in a server processor's MSR; the highest bit of the lowest byte, as MSR_SF is that of the highest byte."""

PT_REGS = (
    *(f"r{i}" for i in range(32)),
    *"nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result".split(),
)

pt_regs = {order: np.dtype([(name, form) for name in PT_REGS]) for order, form in (("little", "<u8"), ("big", ">u8"))}
"""struct user_pt_regs, which struct pt_regs begins with, by byte order."""

ELF_GREGSET = (*PT_REGS, *(f"reserved{i}" for i in range(len(PT_REGS), 48)))
"""elf_gregset_t: ELF_NGREG unsigned longs, of which the last are zero."""
GREGSET_RESERVED = ELF_GREGSET[len(PT_REGS) :]
SOFTE_USER = 1
"""softe of user code, whose interrupts are never soft-disabled; gpr_get() writes it whatever pt_regs has."""
QEMU_GREGS = (*PT_REGS[:34], *"ctr link xer ccr".split())
"""The part of struct pt_regs that QEMU writes; the rest is zeros."""

# struct elf_prstatus: where pr_pid and pr_reg are.
PRSTATUS_PID = 32
PRSTATUS_REGS = 112
PRSTATUS_SIZE = 504

NR_REGS = 32  # floating-point and vector registers each
VR_SIZE = 16
FPREGSET_SIZE = 264  # the registers, and fpscr
VMX_SIZE = 544  # the registers, vscr and vrsave, 16 bytes each
VMX_VSCR = 512
VMX_VRSAVE = 528
QEMU_VSCR = 524
"""QEMU writes VSCR where it is in a big-endian vector register, in either byte order."""
VSX_SIZE = 256  # the low doublewords of vs0 to vs31

NT_PPC_VMX = 0x100
NT_PPC_SPE = 0x101
NT_PPC_VSX = 0x102
NT_PPC_TAR = 0x103
NT_PPC_PPR = 0x104
NT_PPC_DSCR = 0x105
NT_PPC_EBB = 0x106
NT_PPC_PMU = 0x107
EBB_SIZE = 24  # ebbrr, ebbhr, bescr
PMU_SIZE = 40  # siar, sdar, sier, mmcr2, mmcr0

PPC_FEATURE2_ARCH_2_07 = 0x8000_0000  # cpu_spec.cpu_user_features2, AT_HWCAP2
HW_CPU_ID_NONE = 0xFFFF  # paca_struct.hw_cpu_id of a CPU that is not there, or -1
THREAD_SIZES = (16 << 10, 32 << 10, 64 << 10)
"""Possible sizes of a kernel stack."""
STACK_MAX = 64 << 10
"""THREAD_SIZE at its largest."""

# Branches that may set the link register: Power ISA, book I, 2.4.
LK = 1
OP_BRANCH_CONDITIONAL = 16
OP_BRANCH = 18
OP_BRANCH_REG = 19
BRANCH_REG_XO = (16, 528, 560)  # bclr, bcctr, bctar
BLR = 0x4E800020
BCLR, BCLR_MASK = 0x4C000020, 0xFC00FFFF  # which may depend on a condition
SC, TRAP = 0x44000002, 0x7FE00008
MFLR, MTLR, MOVE_SPR_MASK = 0x7C0802A6, 0x7C0803A6, 0xFC1FFFFF
OR, OR_MASK = 0x7C000378, 0xFC0007FF
OP_ADDI, OP_ADDIS, OP_LD, OP_STD, OP_EXTENDED, OP_PREFIX = 14, 15, 58, 62, 31, 1
DS_UPDATES = 1  # of the lowest two bits of ld, ldu, std and stdu
OPS_WITHOUT_TARGET = frozenset({2, 3, 10, 11, 36, 38, 44, *(4, 48, 50, 52, 54, 57, 59, 60, 61, 63)})
"""What writes no general register: traps, comparisons, stw, stb, sth, and floating-point and vector ones."""
OPS_TO_RA = range(20, 31)  # rotations, and logical ones with an immediate operand
EXTENDED_TO_R1 = frozenset({40, 181, 266})  # subf, stdux, add

# DWARF register numbers: ELFv2 ABI, 2.4; the vDSO's signal frame has the program counter in a column of its own.
DWARF_REGS = (
    *(f"r{i}" for i in range(32)),
    *(f"f{i}" for i in range(32)),
    *("reserved64", "link", "ctr", "nip"),
)
STACK_FRAME_LR_SAVE = 16  # where a function saves its return address: in its caller's frame (ELFv2 ABI, 2.2.2)
PRESERVED = ("r13", *(f"r{i}" for i in range(14, 32)))  # ELFv2 ABI, 2.2.1

# __kernel_sigtramp_rt64 behind its bctrl: addi r1,r1,__SIGNAL_FRAMESIZE; li r0,__NR_rt_sigreturn; sc
SIGTRAMP = bytes.fromhex("80002138 ac000038 02000044")
SIGNAL_FRAMESIZE = 128
SIGFRAME_REGS = 232
"""struct rt_sigframe: offsetof(uc.uc_mcontext.gp_regs); before the addi, the frame is SIGNAL_FRAMESIZE above r1."""
SIGCONTEXT_NAMES = {name: name for name in (*(f"r{i}" for i in range(32)), "nip", "ctr", "link")}
