"""x86: which register notes a thread has, in the kernel's order.

References: arch/x86/kernel/ptrace.c: x86_64_regsets, x86_32_regsets, ioperm_get(); arch/x86/kernel/fpu/regset.c:
ssp_active(), ssp_get() (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.x86 import fpu
from vmcore2core.arch.x86.fpu import (
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

LAYOUT_KEYS = (
    *fpu.LAYOUT_KEYS,
    "OFFSET(task_struct.thread.io_bitmap)",
    "OFFSET(io_bitmap.bitmap)",
    "OFFSET(task_struct.thread.features)",
)


def regsets(task: int, regs: Mapping[str, int], is_64: bool, kernel: KernelView) -> tuple[Note, ...] | None:
    """Return the notes of a thread of a 64-bit kernel besides NT_PRSTATUS, see ``Cores.regsets``.

    Args:
        task: its ``struct task_struct *``.
        regs: its general registers.
        is_64: whether it has user_x86_64_view, as x32 processes do, too.
        kernel: the dumped one.
    """
    state = _state(task, is_64, kernel)
    if state is None:
        return None
    legacy, more = state
    ports = ioperm(task, kernel)
    if is_64:
        return Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, legacy), *ports, *more
    return (
        Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, i387(legacy, regs.get("cs", 0), regs.get("ds", 0))),
        Note(elf_core.NOTE_LINUX, elf_core.NT_PRXFPREG, legacy),
        *more,
        *thread_area(task, kernel, fmt.GDT_ENTRY_TLS_MIN),
        *ports,
    )


def _state(task: int, is_64: bool, kernel: KernelView) -> tuple[bytes, list[Note]] | None:
    """Return FXSAVE's 512 bytes, and the notes of what only XSAVE keeps; None where the layout does not tell."""
    size = user_size(kernel)
    if size is not None and size[0] == fmt.FXSAVE_SIZE:  # a processor without XSAVE: xstateregs_active() says no
        image = find_image(task, kernel, at_least=fmt.FXSAVE_SIZE)
        return None if image is None else (image.data[: fmt.FXSAVE_SIZE], [])
    geometry, image = find_geometry(kernel), find_image(task, kernel)
    if geometry is None or image is None:
        return None
    notes = [Note(elf_core.NOTE_LINUX, elf_core.NT_X86_XSTATE, xsave(image, geometry))]
    ssp = user_ssp(image, geometry) if is_64 and _has_shadow_stack(task, kernel) else None
    if ssp is not None:
        notes.append(Note(elf_core.NOTE_LINUX, elf_core.NT_X86_SHSTK, ssp))
    return fxsave(image, geometry), notes


def regsets_of_32_bit(task: int, kernel: KernelView) -> tuple[Note, ...] | None:
    """Return the notes of a thread of a 32-bit kernel besides NT_PRSTATUS, see ``Cores.regsets``.

    A processor without XSAVE has FXSAVE's state, or FSAVE's, and its cores lack the notes of more than that.
    """
    size = user_size(kernel)
    image = find_image(task, kernel, word=4, at_least=fmt.FSAVE_SIZE)
    if size is None or image is None:
        return None
    state: tuple[Note, ...] = ()
    legacy = image.data[: fmt.FXSAVE_SIZE]
    if size[0] >= fmt.XSAVE_EXTENDED_OFFSET:
        geometry = find_geometry(kernel)
        if geometry is None or len(image.data) < fmt.XSAVE_EXTENDED_OFFSET:
            return None
        legacy = fxsave(image, geometry)
        state = (Note(elf_core.NOTE_LINUX, elf_core.NT_X86_XSTATE, xsave(image, geometry)),)
    if len(legacy) == fmt.FXSAVE_SIZE:
        registers = i387_of_32_bit(legacy)
        state = (Note(elf_core.NOTE_LINUX, elf_core.NT_PRXFPREG, legacy), *state)
    else:
        registers = legacy[: fmt.FSAVE_SIZE]
    return (
        Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, registers),
        *state,
        *thread_area(task, kernel, fmt.GDT_ENTRY_TLS_MIN_32),
        *ioperm(task, kernel, 4),
    )


def process_notes(kernel: KernelView) -> tuple[Note, ...]:
    """Return the notes that a core has once, see ``Cores.process_notes``."""
    size = user_size(kernel)
    if size is not None and size[0] <= fmt.FXSAVE_SIZE:
        return ()
    geometry = find_geometry(kernel)
    if geometry is None or not geometry.has_layout_note:
        return ()
    return (Note(elf_core.NOTE_LINUX, elf_core.NT_X86_XSAVE_LAYOUT, geometry.layout_note()),)


def thread_area(task: int, kernel: KernelView, first: int) -> tuple[Note, ...]:
    """Return NT_386_TLS for a thread that has asked for thread-local storage; ``first`` is GDT_ENTRY_TLS_MIN."""
    array = kernel.layout.find_member("task_struct", "thread.tls_array")
    descriptors = kernel.memory.read(task + array.offset, array.size) if array is not None and array.size else b""
    if not any(descriptors):
        return ()
    return (Note(elf_core.NOTE_LINUX, elf_core.NT_386_TLS, tls(descriptors, first)),)


def ioperm(task: int, kernel: KernelView, word: int = 8) -> tuple[Note, ...]:
    """Return NT_386_IOPERM for a thread that has asked for I/O ports: a clear bit is a port that it may use."""
    layout = kernel.layout
    pointer = layout.find_member("task_struct", "thread.io_bitmap")
    bitmap = layout.find_member("io_bitmap", "bitmap")
    if pointer is None or bitmap is None:
        return ()  # before Linux 5.5
    address = kernel.uint(task + pointer.offset, word)
    if not address:
        return ()
    raw = kernel.memory.read(address + bitmap.offset, fmt.IO_BITMAP_BYTES)
    return (Note(elf_core.NOTE_LINUX, elf_core.NT_386_IOPERM, raw),)


def _has_shadow_stack(task: int, kernel: KernelView) -> bool:
    features = kernel.layout.find_member("task_struct", "thread.features")
    if features is None:
        return False
    return bool(kernel.uint(task + features.offset, 8) & fmt.ARCH_SHSTK_SHSTK)
