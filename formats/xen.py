"""Xen's dumps of guests, xl dump-core: an ELF core without program headers, whose sections have pages and numbers.

Sources of truth: Xen's docs/misc/dump-core-format.txt; tools/libs/ctrl/xc_core.c; xen/include/public/elfnote.h,
arch-x86/xen.h and arch-x86/xen-x86_64.h, struct vcpu_guest_context; xen/arch/x86/domctl.c, arch_get_info_guest()
(4.19).
"""

from __future__ import annotations

import numpy as np

SECTION_NOTE = b".note.Xen"
SECTION_PRSTATUS = b".xen_prstatus"
SECTION_P2M = b".xen_p2m"
"""struct xen_dumpcore_p2m of each page, in paravirtualised guests."""
SECTION_PFN = b".xen_pfn"
"""u64 of each page, in the others."""
SECTION_PAGES = b".xen_pages"
SECTIONS_MIN, SECTIONS_MAX = 4, 64

NOTE_NAME = "Xen"
XEN_ELFNOTE_DUMPCORE_HEADER = 0x2000001
XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION = 0x2000003
FORMAT_VERSION_MAJOR_SHIFT = 32
XC_CORE_MAGIC = 0xF00FEBED
XC_CORE_MAGIC_HVM = 0xF00FEBEE

xen_dumpcore_elfnote_header_desc = np.dtype(
    [("xch_magic", "<u8"), ("xch_nr_vcpus", "<u8"), ("xch_nr_pages", "<u8"), ("xch_page_size", "<u8")]
)

cpu_user_regs = np.dtype(
    [
        *((name, "<u8") for name in "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi".split()),
        ("error_code", "<u4"),
        ("entry_vector", "<u4"),
        ("rip", "<u8"),
        ("cs", "<u2"),
        ("pad", "V6"),
        ("eflags", "<u8"),
        ("rsp", "<u8"),
        *((name, "<u8") for name in "ss es ds fs gs".split()),
    ]
)
"""Of the selectors, the low 16 bits count."""

vcpu_guest_context = np.dtype(
    [
        ("fpu_ctxt", "V512"),
        ("flags", "<u8"),
        ("user_regs", cpu_user_regs),
        ("trap_ctxt", "V4096"),
        ("ldt", "V16"),
        ("gdt", "V136"),
        ("kernel_stack", "V16"),
        ("ctrlreg", "<u8", 8),
        ("debugreg", "<u8", 8),
        ("callbacks", "V24"),
        ("vm_assist", "<u8"),
        ("fs_base", "<u8"),
        ("gs_base_kernel", "<u8"),
        ("gs_base_user", "<u8"),
    ]
)
"""For x86-64; gs_base_kernel is gs's base in the kernel, gs_base_user its base in user mode."""

CRASH_NOTES = ("VMCOREINFO_XEN",)
"""Notes that a dump of the whole machine has, /proc/vmcore under Xen."""
