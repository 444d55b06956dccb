"""The "cpu" section of QEMU's migration stream: its fields by the names that the stream's description has.

Sources of truth: QEMU's target/i386/machine.c (vmstate_x86_cpu, vmstate_segment), target/i386/cpu.h (R_EAX, R_ES and
following), target/arm/machine.c (vmstate_arm_cpu, vmstate_vfp), target/riscv/machine.c (vmstate_riscv_cpu),
target/s390x/machine.c (vmstate_s390_cpu, vmstate_fpu, vmstate_vregs, vmstate_gscb), target/ppc/machine.c
(vmstate_ppc_cpu, vmstate_fpu, vmstate_altivec, vmstate_vsx), 7.2 to 11.1.
"""

from __future__ import annotations

CPU = b"cpu"

X86_HAS = "env.eip"
X86_REGS = tuple("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())
"""env.regs, by user_regs_struct's names."""
X86_SEGMENTS = tuple("es cs ss ds fs gs".split())
"""env.segs."""
X86_FIELDS = {
    "rip": "env.eip",
    "eflags": "env.eflags",
    "cr0": "env.cr[0]",
    "cr2": "env.cr[2]",
    "cr3": "env.cr[3]",
    "cr4": "env.cr[4]",
    "efer": "env.efer",
    "kernel_gs_base": "env.kernelgsbase",
}
EFER_LMA = 1 << 10

ARM64_HAS = "env.xregs"
ARM64_SVE = "cpu/sve:env.vfp.zregs"
ARM64_VECTORS = tuple(f"cpu/vfp:env.vfp.zregs[{i}].d" for i in range(32))
"""Each the lower half first."""
ARM64_FPSCR = "cpu/vfp:fpscr"
"""AArch32's FPSCR, which contains FPSR and FPCR: vfp_get_fpsr(), vfp_get_fpcr()."""
ARM64_FPSR_MASK, ARM64_FPCR_MASK = 0xF800_009F, 0x07FF_9F00
ARM64_FPCR = "cpu/vfp/fpcr_fpsr:env.vfp.fpcr"
"""Where they have other bits, too."""

RISCV64_HAS = "env.gpr"

PPC64_HAS = "env.crf"
PPC64_NR_SPR = 1024
PPC64_XER, PPC64_LR, PPC64_CTR = 1, 8, 9
"""Of env.spr."""
PPC64_FPU = ("cpu/fpu:env.vsr", "cpu/fpu:env.fpscr")
PPC64_ALTIVEC = "cpu/altivec:env.vsr"
"""Of each register the lower half first, as a little-endian host has them: put_avr()."""
PPC64_VSCR = "cpu/altivec:vscr"
PPC64_VSX = "cpu/vsx:env.vsr"

S390X_HAS = "env.psw.mask"
S390X_GREGS = ("env.psw.mask", "env.psw.addr", "env.regs", "env.aregs")
"""In s390_regs' order."""
S390X_FPC = "cpu/fpu:env.fpc"
S390X_GSCB = "cpu/gscb:env.gscb"
S390X_FPRS = tuple(f"cpu/fpu:env.vregs[{i}][0]" for i in range(16))
S390X_VREGS_LOW = tuple(f"cpu/vregs:env.vregs[{i}][1]" for i in range(16))
"""The lower halves of the vector registers whose upper ones are the floating-point registers."""
S390X_VREGS_HIGH = tuple(f"cpu/vregs:env.vregs[{i}][{half}]" for i in range(16, 32) for half in (0, 1))
