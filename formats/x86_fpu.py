"""x86 floating-point and vector state in memory.

Sources of truth: arch/x86/include/asm/fpu/types.h (struct fxregs_state, xstate_header, enum xfeature),
arch/x86/include/uapi/asm/sigcontext.h, arch/x86/include/asm/user_32.h (struct user_i387_ia32_struct), Linux 7.2;
Intel SDM volume 1, chapters 10.5 and 13.4.
"""

from __future__ import annotations

import numpy as np

FXSAVE_SIZE = 512
FSAVE_SIZE = 108
"""The processor's part of struct fregs_state: struct user_i387_ia32_struct; a word of the kernel follows."""
XSAVE_HEADER_OFFSET = 512
XSAVE_EXTENDED_OFFSET = 576

# The parts of the legacy area for which XSTATE_BV has bits.
FP_HEAD = slice(0, 24)  # cwd, swd, twd, fop, rip, rdp
MXCSR = slice(24, 32)  # mxcsr, mxcsr_mask
ST_SPACE = slice(32, 160)
XMM_SPACE = slice(160, 416)
SW_RESERVED = slice(464, 512)

fxregs = np.dtype(
    {
        "names": ["cwd", "swd", "twd", "fop", "rip", "rdp", "mxcsr", "mxcsr_mask", "st_space"],
        "formats": ["<u2", "<u2", "<u2", "<u2", "<u8", "<u8", "<u4", "<u4", ("u1", (8, 16))],
        "offsets": [0, 2, 4, 6, 8, 16, 24, 28, 32],
        "itemsize": FXSAVE_SIZE,
    }
)

xstate_header = np.dtype([("xfeatures", "<u8"), ("xcomp_bv", "<u8"), ("reserved", "<u8", 6)])

user_i387_ia32 = np.dtype([(name, "<u4") for name in "cwd swd twd fip fcs foo fos".split()] + [("st_space", "u1", 80)])
"""struct user_i387_ia32_struct: NT_FPREGSET of a 32-bit process; 108 bytes."""

fpstate = np.dtype([("size", "<u4"), ("user_size", "<u4"), ("xfeatures", "<u8"), ("user_xfeatures", "<u8")])
"""The beginning of struct fpstate; ``regs`` is at the next multiple of 64 behind ``xfd`` and some bits."""
FPSTATE_REGS = 64
fpu_state_config = np.dtype(
    [("max_size", "<u4"), ("default_size", "<u4"), ("max_features", "<u8"), ("default_features", "<u8")]
)
"""The beginning of struct fpu_state_config."""
XSAVE_SIZE_MAX = 1 << 16  # AMX's tile data makes it 11 KiB

XCOMP_BV_COMPACTED_FORMAT = 1 << 63
XFEATURE_MASK_FPSSE = 0b11
XFEATURE_FP, XFEATURE_SSE, XFEATURE_YMM, XFEATURE_PKRU, XFEATURE_CET_USER = 0, 1, 2, 9, 11
XFEATURE_FIRST_EXTENDED = 2
XFEATURE_XTILE_DATA = 18  # arch_prctl(ARCH_REQ_XCOMP_PERM)
XSTATE_FLAG_ALIGNED64 = 2
CET_USER_SSP = slice(8, 16)  # of struct cet_user_state: user_cet, user_ssp
ARCH_SHSTK_SHSTK = 1 << 0  # of thread_struct.features: arch/x86/include/uapi/asm/prctl.h

IO_BITMAP_BYTES = 65536 // 8  # arch/x86/include/asm/processor.h: IO_BITMAP_BITS

GDT_ENTRY_TLS_MIN = 12  # of a 64-bit kernel
GDT_ENTRY_TLS_MIN_32 = 6
DESC_SIZE = 8
# struct desc_struct (arch/x86/include/asm/desc_defs.h): first bit and mask of type, p, avl, l, d, g.
DESC_FLAGS = ((40, 0xF), (47, 1), (52, 1), (53, 1), (54, 1), (55, 1))

user_desc = np.dtype([("entry_number", "<u4"), ("base_addr", "<u4"), ("limit", "<u4"), ("flags", "<u4")])
"""arch/x86/include/uapi/asm/ldt.h: struct user_desc."""

xfeat_component = np.dtype([("type", "<u4"), ("size", "<u4"), ("offset", "<u4"), ("flags", "<u4")])
"""arch/x86/include/uapi/asm/elf.h: struct x86_xfeat_component, since Linux 6.12."""
