"""x86: how the stacks of 64-bit, x32 and i386 processes unwind.

References: psABI x86-64 1.0, psABI i386 1.1; arch/x86/kernel/signal_{32,64}.c, arch/x86/include/asm/sigframe.h,
arch/x86/entry/vdso/vdso32/sigreturn.S (Linux 7.2); Intel SDM volume 2, CALL.
"""

from __future__ import annotations

from vmcore2core.arch.parts import code_of
from vmcore2core.arch.spec import SignalTrampoline, UnwindSpec
from vmcore2core.formats import x86_64 as fmt


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call instruction: near, direct or indirect (Intel SDM, CALL)."""
    if len(code) >= 5 and code[-5] == fmt.CALL_REL32:
        return True
    for size in range(2, min(len(code), fmt.CALL_BYTES_MAX - 1) + 1):
        opcode, modrm = code[-size], code[-size + 1]
        if opcode != fmt.CALL_INDIRECT or modrm >> 3 & 7 != fmt.CALL_INDIRECT_REG:
            continue
        mod, rm = modrm >> 6, modrm & 7
        length = 2
        if mod != 3 and rm == 4:  # a SIB byte; its base 5 without mod is a 32-bit displacement
            length += 1 + (4 if mod == 0 and size > 2 and code[-size + 2] & 7 == 5 else 0)
        length += {0: 4 if rm == 5 else 0, 1: 1, 2: 4, 3: 0}[mod]
        if length == size:
            return True
    return False


# Registers that a function preserves: psABI x86-64, figure 3.4; psABI i386, table 2.3.
UNWIND_64 = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("rip"),
    stack_pointer=fmt.DWARF_REGS.index("rsp"),
    frame_pointer=fmt.DWARF_REGS.index("rbp"),
    preserved=frozenset(fmt.DWARF_REGS.index(name) for name in ("rbx", "rbp", "r12", "r13", "r14", "r15")),
    trampolines=tuple(
        SignalTrampoline(code, entry, fmt.RT_SIGFRAME_MCONTEXT, None, fmt.sigcontext_64, fmt.SIGCONTEXT_OF)
        for code in fmt.RT_SIGRETURN
        for entry in (0, len(code) - 2)
    ),
    call_size_max=fmt.CALL_BYTES_MAX,
    ends_with_call=ends_with_call,
    frames_by_code=code_of("x86"),
    has_cfi=True,
)


UNWIND_X32 = UNWIND_64._replace(
    has_cfi=False,
    trampolines=tuple(
        SignalTrampoline(code, entry, fmt.RT_SIGFRAME_X32_MCONTEXT, None, fmt.sigcontext_64, fmt.SIGCONTEXT_OF)
        for code in fmt.RT_SIGRETURN_X32
        for entry in (0, len(code) - 2)
    ),
)
"""For x32 processes: calls push 64 bits; the processor has no other form of calls."""


def unwind_32(names: tuple[str, ...]) -> UnwindSpec:
    """Return the specification of i386 processes.

    Args:
        names: the kernel architecture's names of eax, ecx, edx, ebx, esp, ebp, esi, edi and eip, in this order.
    """
    saved = dict(zip(names, fmt.SIGCONTEXT_OF_DWARF32, strict=True))
    return UnwindSpec(
        word=4,
        registers=names,
        return_address=fmt.DWARF_REGS32.index("rip"),
        stack_pointer=fmt.DWARF_REGS32.index("rsp"),
        frame_pointer=fmt.DWARF_REGS32.index("rbp"),
        preserved=frozenset(fmt.DWARF_REGS32.index(name) for name in ("rbx", "rbp", "rsi", "rdi")),
        trampolines=(
            *(
                SignalTrampoline(
                    fmt.RT_SIGRETURN_IA32,
                    entry,
                    fmt.UCONTEXT_IA32_MCONTEXT,
                    fmt.RT_SIGFRAME_IA32_PUC,
                    fmt.sigcontext_32,
                    saved,
                )
                for entry in (0, len(fmt.RT_SIGRETURN_IA32) - 2)
            ),
            SignalTrampoline(fmt.SIGRETURN_IA32, 0, fmt.SIGFRAME_IA32_SC, None, fmt.sigcontext_32, saved),
            # After the pop, the stack pointer is at the context itself.
            *(
                SignalTrampoline(fmt.SIGRETURN_IA32, entry, 0, None, fmt.sigcontext_32, saved)
                for entry in (1, len(fmt.SIGRETURN_IA32) - 2)
            ),
        ),
        call_size_max=fmt.CALL_BYTES_MAX,
        ends_with_call=ends_with_call,
    )
