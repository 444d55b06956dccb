"""x86: location of a process's vDSO image in the kernel image.

References: arch/x86/include/asm/vdso.h: struct vdso_image; arch/x86/include/asm/mmu.h (Linux 7.2).
"""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import Vdso
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class X86Vdso(Vdso):
    """Finds the image of x86 by ``mm->context.vdso_image``.

    Args:
        word: bytes of a pointer.
    """

    def __init__(self, word: int) -> None:
        self._word = word

    @override
    def image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        layout = kernel.layout
        context = layout.find_member("mm_struct", "context.vdso_image")
        data = layout.find_member("vdso_image", "data")
        if context is None or data is None:
            return None
        image = kernel.uint(mm + context.offset, self._word)
        return KernelAddr(kernel.uint(image + data.offset, self._word)) if image else None
