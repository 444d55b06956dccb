"""x86: where the image of a process's vDSO is in the kernel image.

References: arch/x86/include/asm/vdso.h: struct vdso_image; arch/x86/include/asm/mmu.h (Linux 7.2).
"""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.interfaces import KernelView


def vdso_image(mm: int, kernel: KernelView, word: int) -> KernelAddr | None:
    """Return the image's address, see ``Arch.vdso_image``.

    Args:
        mm: ``struct mm_struct *``.
        kernel: the dumped one.
        word: bytes of a pointer.

    Raises:
        MemoryFault: what tells it cannot be read.
    """
    layout = kernel.layout
    context = layout.find_member("mm_struct", "context.vdso_image")
    data = layout.find_member("vdso_image", "data")
    if context is None or data is None:
        return None
    image = kernel.uint(mm + context.offset, word)
    return KernelAddr(kernel.uint(image + data.offset, word)) if image else None
