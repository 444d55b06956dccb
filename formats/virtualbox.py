"""Notes of VirtualBox's ELF cores (VBoxManage debugvm dumpvmcore), little-endian.

Sources of truth: VirtualBox's include/VBox/vmm/dbgfcorefmt.h and src/VBox/VMM/VMMR3/DBGFCoreWrite.cpp (7.0).
"""

from __future__ import annotations

import numpy as np

VBCORE = "VBCORE"
VBCPU = "VBCPU"

DBGFCORE_MAGIC = 0xC01AC0DE
DBGFCORE_FMT_VERSION = 0x0001_0006
"""Of the structure below; VirtualBox raises it with each change."""

DBGFCOREDESCRIPTOR = np.dtype(
    [(n, "<u4") for n in ("u32Magic", "u32FmtVersion", "cbSelf", "u32VBoxVersion", "u32VBoxRevision", "cCpus")]
)

_sel = np.dtype(
    [
        ("uBase", "<u8"),
        ("uLimit", "<u4"),
        ("uAttr", "<u4"),
        ("uSel", "<u2"),
        ("uReserved0", "<u2"),
        ("uReserved1", "<u4"),
    ]
)
_xdtr = np.dtype([("uAddr", "<u8"), ("cb", "<u4"), ("uReserved0", "<u4")])

GENERAL = tuple("rax rbx rcx rdx rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip rsp rbp".split())
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")

DBGFCORECPU = np.dtype(
    [
        *((name, "<u8") for name in (*GENERAL, "rflags")),
        *((name, _sel) for name in SEGMENTS),
        *((name, "<u8") for name in ("cr0", "cr2", "cr3", "cr4")),
        ("dr", "<u8", (8,)),
        ("gdtr", _xdtr),
        ("idtr", _xdtr),
        ("ldtr", _sel),
        ("tr", _sel),
        ("sysenter", "<u8", (3,)),
        *((f"msr{name}", "<u8") for name in ("EFER", "STAR", "PAT", "LSTAR", "CSTAR", "SFMASK", "KernelGSBase")),
    ]
)
"""The beginning of the structure; msrApicBase, msrTscAux, aXcr and the XSAVE area follow."""

EFER_LMA = 1 << 10
"""The CPU is in 64-bit mode, or in its compatibility mode."""
