"""x86: which register notes a thread has, in the kernel's order.

References: arch/x86/kernel/ptrace.c: x86_64_regsets, x86_32_regsets, ioperm_get(); arch/x86/kernel/fpu/regset.c:
ssp_active(), ssp_get() (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from vmcore2core.arch.regsets import RegisterSet, notes_of
from vmcore2core.arch.spec import keys_of
from vmcore2core.arch.x86 import fpu
from vmcore2core.arch.x86.fpu import (
    FpuImage,
    XsaveGeometry,
    find_geometry,
    find_image,
    fxsave,
    i387,
    i387_of_32_bit,
    tls,
    user_size,
    user_ssp,
    xsave,
)
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import x86_fpu as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

LAYOUT_KEYS = (
    *fpu.LAYOUT_KEYS,
    *keys_of(
        {
            "task_struct": "thread.io_bitmap thread.features",
            "io_bitmap": "bitmap",
        },
    ),
)


class Thread:
    """A thread whose FPU state is in memory.

    Args:
        task: its ``struct task_struct *``.
        regs: its general registers.
        kernel: the dumped one.
        is_64: whether it has user_x86_64_view; x32 processes have it, too.
    """

    word = 8
    tls_min = fmt.GDT_ENTRY_TLS_MIN

    def __init__(self, task: int, regs: Mapping[str, int], kernel: KernelView, *, is_64: bool) -> None:
        self.task, self.regs, self.kernel, self.is_64 = task, regs, kernel, is_64

    @cached_property
    def xsave_size(self) -> int | None:
        """Bytes of the kernel's image of the FPU; None if that is not known."""
        size = user_size(self.kernel)
        return None if size is None else size[0]

    @cached_property
    def geometry(self) -> XsaveGeometry | None:
        """The image's layout; None if nothing tells, or the processor has no XSAVE (xstateregs_active())."""
        return None if self.xsave_size == fmt.FXSAVE_SIZE else find_geometry(self.kernel)

    @cached_property
    def image(self) -> FpuImage | None:
        """The image of the FPU; None if nothing tells where it is."""
        if self.xsave_size == fmt.FXSAVE_SIZE:
            return find_image(self.task, self.kernel, at_least=fmt.FXSAVE_SIZE)
        return find_image(self.task, self.kernel) if self.geometry is not None else None

    @cached_property
    def fxsave(self) -> bytes | None:
        """FXSAVE's 512 bytes."""
        if self.image is None:
            return None
        return self.image.data[: fmt.FXSAVE_SIZE] if self.geometry is None else fxsave(self.image, self.geometry)

    def floats(self) -> bytes | None:
        """Return NT_FPREGSET."""
        if self.fxsave is None or self.is_64:
            return self.fxsave
        return i387(self.fxsave, self.regs.get("cs", 0), self.regs.get("ds", 0))

    def xstate(self) -> bytes | None:
        """Return NT_X86_XSTATE: xstateregs_get()."""
        return None if self.image is None or self.geometry is None else xsave(self.image, self.geometry)

    def shadow_stack(self) -> bytes | None:
        """Return NT_X86_SHSTK: ssp_get(); None for a thread without a shadow stack: ssp_active()."""
        if self.image is None or self.geometry is None or not self._has_shadow_stack():
            return None
        return user_ssp(self.image, self.geometry)

    def _has_shadow_stack(self) -> bool:
        features = self.kernel.layout.find_member("task_struct", "thread.features")
        return features is not None and bool(self.kernel.uint(self.task + features.offset, 8) & fmt.ARCH_SHSTK_SHSTK)

    def thread_area(self) -> bytes | None:
        """Return NT_386_TLS of a thread that has asked for thread-local storage."""
        array = self.kernel.layout.find_member("task_struct", "thread.tls_array")
        if array is None or not array.size:
            return None
        descriptors = self.kernel.memory.read(self.task + array.offset, array.size)
        return tls(descriptors, self.tls_min) if any(descriptors) else None

    def ioperm(self) -> bytes | None:
        """Return NT_386_IOPERM of a thread that has asked for I/O ports: a clear bit is a port that it may use."""
        layout = self.kernel.layout
        pointer = layout.find_member("task_struct", "thread.io_bitmap")
        bitmap = layout.find_member("io_bitmap", "bitmap")
        if pointer is None or bitmap is None:
            return None  # before Linux 5.5
        address = self.kernel.uint(self.task + pointer.offset, self.word)
        return self.kernel.memory.read(address + bitmap.offset, fmt.IO_BITMAP_BYTES) if address else None


class Thread32(Thread):
    """A thread of a 32-bit kernel.

    A processor without XSAVE has the state of FXSAVE or FSAVE, and its cores lack notes of anything else.
    """

    word = 4
    tls_min = fmt.GDT_ENTRY_TLS_MIN_32

    def __init__(self, task: int, kernel: KernelView) -> None:
        super().__init__(task, {}, kernel, is_64=False)

    @cached_property
    @override
    def geometry(self) -> XsaveGeometry | None:
        has_xsave = self.xsave_size is not None and self.xsave_size >= fmt.XSAVE_EXTENDED_OFFSET
        return find_geometry(self.kernel) if has_xsave else None

    @cached_property
    @override
    def image(self) -> FpuImage | None:
        image = find_image(self.task, self.kernel, word=self.word, at_least=fmt.FSAVE_SIZE)
        if self.xsave_size is None or image is None:
            return None
        if self.xsave_size < fmt.XSAVE_EXTENDED_OFFSET:
            return image
        return image if self.geometry is not None and len(image.data) >= fmt.XSAVE_EXTENDED_OFFSET else None

    @override
    def floats(self) -> bytes | None:
        if self.fxsave is None:
            return None
        return i387_of_32_bit(self.fxsave) if len(self.fxsave) == fmt.FXSAVE_SIZE else self.fxsave[: fmt.FSAVE_SIZE]


def _prxfpreg(thread: Thread) -> bytes | None:
    whole = thread.fxsave is not None and len(thread.fxsave) == fmt.FXSAVE_SIZE
    return thread.fxsave if whole else None


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, lambda thread: thread.floats(), elf_core.NOTE_CORE),
    RegisterSet(elf_core.NT_386_IOPERM, Thread.ioperm),
    RegisterSet(elf_core.NT_X86_XSTATE, Thread.xstate),
    RegisterSet(elf_core.NT_X86_SHSTK, Thread.shadow_stack),
)
"""x86_64_regsets[]."""
REGSETS_32: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, lambda thread: thread.floats(), elf_core.NOTE_CORE),
    RegisterSet(elf_core.NT_PRXFPREG, _prxfpreg),
    RegisterSet(elf_core.NT_X86_XSTATE, Thread.xstate),
    RegisterSet(elf_core.NT_386_TLS, Thread.thread_area),
    RegisterSet(elf_core.NT_386_IOPERM, Thread.ioperm),
)
"""x86_32_regsets[]."""


def regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return the notes of a thread besides NT_PRSTATUS: ``Cores.regsets``."""
    return None if thread.image is None else notes_of(REGSETS if thread.is_64 else REGSETS_32, thread)


def process_notes(kernel: KernelView) -> tuple[Note, ...]:
    """Return the notes that a core has once: ``Cores.process_notes``."""
    size = user_size(kernel)
    if size is not None and size[0] <= fmt.FXSAVE_SIZE:
        return ()
    geometry = find_geometry(kernel)
    if geometry is None or not geometry.has_layout_note:
        return ()
    return (Note(elf_core.NOTE_LINUX, elf_core.NT_X86_XSAVE_LAYOUT, geometry.layout_note()),)
