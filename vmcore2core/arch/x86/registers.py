"""x86: which register notes a thread has, in the kernel's order.

References: arch/x86/kernel/ptrace.c: x86_64_regsets, x86_32_regsets, ioperm_get(); arch/x86/kernel/fpu/regset.c:
ssp_active(), ssp_get() (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.spec import CoreNote
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
from vmcore2core.formats import elf_core
from vmcore2core.formats import x86_fpu as fmt
from vmcore2core.interfaces import Layout, Memory

LAYOUT_KEYS = (
    *fpu.LAYOUT_KEYS,
    "OFFSET(task_struct.thread.io_bitmap)",
    "OFFSET(io_bitmap.bitmap)",
    "OFFSET(task_struct.thread.features)",
)


def regsets(
    task: int, regs: Mapping[str, int], is_64: bool, memory: Memory, layout: Layout
) -> tuple[CoreNote, ...] | None:
    """Return the notes of a thread of a 64-bit kernel besides NT_PRSTATUS, see ``Arch.regsets``.

    Args:
        task: its ``struct task_struct *``.
        regs: its general registers.
        is_64: whether it has user_x86_64_view, as x32 processes do, too.
        memory: kernel virtual memory.
        layout: of the kernel.
    """
    state = _state(task, is_64, memory, layout)
    if state is None:
        return None
    legacy, more = state
    ports = ioperm(task, memory, layout)
    if is_64:
        return CoreNote(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, legacy), *ports, *more
    return (
        CoreNote(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, i387(legacy, regs.get("cs", 0), regs.get("ds", 0))),
        CoreNote(elf_core.NOTE_LINUX, elf_core.NT_PRXFPREG, legacy),
        *more,
        *thread_area(task, memory, layout, fmt.GDT_ENTRY_TLS_MIN),
        *ports,
    )


def _state(task: int, is_64: bool, memory: Memory, layout: Layout) -> tuple[bytes, list[CoreNote]] | None:
    """Return FXSAVE's 512 bytes, and the notes of what only XSAVE keeps; None where the layout does not tell."""
    size = user_size(memory, layout)
    if size is not None and size[0] == fmt.FXSAVE_SIZE:  # a processor without XSAVE: xstateregs_active() says no
        image = find_image(task, memory, layout, at_least=fmt.FXSAVE_SIZE)
        return None if image is None else (image.data[: fmt.FXSAVE_SIZE], [])
    geometry, image = find_geometry(memory, layout), find_image(task, memory, layout)
    if geometry is None or image is None:
        return None
    notes = [CoreNote(elf_core.NOTE_LINUX, elf_core.NT_X86_XSTATE, xsave(image, geometry))]
    ssp = user_ssp(image, geometry) if is_64 and _has_shadow_stack(task, memory, layout) else None
    if ssp is not None:
        notes.append(CoreNote(elf_core.NOTE_LINUX, elf_core.NT_X86_SHSTK, ssp))
    return fxsave(image, geometry), notes


def regsets_of_32_bit(task: int, memory: Memory, layout: Layout) -> tuple[CoreNote, ...] | None:
    """Return the notes of a thread of a 32-bit kernel besides NT_PRSTATUS, see ``Arch.regsets``.

    A processor without XSAVE has FXSAVE's state, or FSAVE's, and its cores lack the notes of more than that.
    """
    size = user_size(memory, layout)
    image = find_image(task, memory, layout, word=4, at_least=fmt.FSAVE_SIZE)
    if size is None or image is None:
        return None
    state: tuple[CoreNote, ...] = ()
    legacy = image.data[: fmt.FXSAVE_SIZE]
    if size[0] >= fmt.XSAVE_EXTENDED_OFFSET:
        geometry = find_geometry(memory, layout)
        if geometry is None or len(image.data) < fmt.XSAVE_EXTENDED_OFFSET:
            return None
        legacy = fxsave(image, geometry)
        state = (CoreNote(elf_core.NOTE_LINUX, elf_core.NT_X86_XSTATE, xsave(image, geometry)),)
    if len(legacy) == fmt.FXSAVE_SIZE:
        registers = i387_of_32_bit(legacy)
        state = (CoreNote(elf_core.NOTE_LINUX, elf_core.NT_PRXFPREG, legacy), *state)
    else:
        registers = legacy[: fmt.FSAVE_SIZE]
    return (
        CoreNote(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, registers),
        *state,
        *thread_area(task, memory, layout, fmt.GDT_ENTRY_TLS_MIN_32),
        *ioperm(task, memory, layout, 4),
    )


def process_notes(memory: Memory, layout: Layout) -> tuple[CoreNote, ...]:
    """Return the notes that a core has once, see ``Arch.process_notes``."""
    size = user_size(memory, layout)
    if size is not None and size[0] <= fmt.FXSAVE_SIZE:
        return ()
    geometry = find_geometry(memory, layout)
    if geometry is None or not geometry.has_layout_note:
        return ()
    return (CoreNote(elf_core.NOTE_LINUX, elf_core.NT_X86_XSAVE_LAYOUT, geometry.layout_note()),)


def thread_area(task: int, memory: Memory, layout: Layout, first: int) -> tuple[CoreNote, ...]:
    """Return NT_386_TLS for a thread that has asked for thread-local storage; ``first`` is GDT_ENTRY_TLS_MIN."""
    array = layout.find_member("task_struct", "thread.tls_array")
    descriptors = memory.read(task + array.offset, array.size) if array is not None and array.size else b""
    if not any(descriptors):
        return ()
    return (CoreNote(elf_core.NOTE_LINUX, elf_core.NT_386_TLS, tls(descriptors, first)),)


def ioperm(task: int, memory: Memory, layout: Layout, word: int = 8) -> tuple[CoreNote, ...]:
    """Return NT_386_IOPERM for a thread that has asked for I/O ports: a clear bit is a port that it may use."""
    pointer = layout.find_member("task_struct", "thread.io_bitmap")
    bitmap = layout.find_member("io_bitmap", "bitmap")
    if pointer is None or bitmap is None:
        return ()  # before Linux 5.5
    address = int.from_bytes(memory.read(task + pointer.offset, word), "little")
    if not address:
        return ()
    raw = memory.read(address + bitmap.offset, fmt.IO_BITMAP_BYTES)
    return (CoreNote(elf_core.NOTE_LINUX, elf_core.NT_386_IOPERM, raw),)


def _has_shadow_stack(task: int, memory: Memory, layout: Layout) -> bool:
    features = layout.find_member("task_struct", "thread.features")
    if features is None:
        return False
    return bool(int.from_bytes(memory.read(task + features.offset, 8), "little") & fmt.ARCH_SHSTK_SHSTK)
