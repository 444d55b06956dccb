"""x86-64: the registers of many threads, read together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import KernelAddr, U8Array, U64Array
from vmcore2core.arch.capabilities import ManyThreads, ReadParts
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.arch.x86 import fpu
from vmcore2core.arch.x86.regsets import Thread
from vmcore2core.arch.x86_64.registers import BASES, X86_64Registers, are_user, frame_offsets, with_selectors
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, MemoryFault
from vmcore2core.formats import elf_core
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.formats.elf import EM_X86_64
from vmcore2core.interfaces import KernelView, Layout
from vmcore2core.overrides import override

IMAGE_MAX = 4096
"""Most bytes of a task's state; with AMX, it is allocated apart."""


class X86_64ManyThreads(ManyThreads):
    """64-bit threads; ``X86_64Cores`` handles those with a shadow stack or with I/O ports."""

    saved = MappingProxyType({member: size for _, member, size in BASES})

    @override
    def registers(
        self, saved: Mapping[str, U8Array], stacks: U64Array, layout: Layout, read_parts: ReadParts
    ) -> tuple[U64Array, NDArray[np.bool_]]:
        frames, found = np.zeros(len(stacks), fmt.pt_regs), np.zeros(len(stacks), np.bool_)
        for offset in frame_offsets(layout):
            raw, there = read_parts(stacks, [(offset, fmt.pt_regs.itemsize)])[0]
            here = with_selectors(raw.view(fmt.pt_regs).reshape(-1))
            new = there & are_user(here) & ~found
            frames[new], found[new] = here[new], True
            if found.all():
                break
        regs = dict[str, U64Array]({name: frames[name] for name in fmt.pt_regs.names or ()})
        for name, member, size in BASES:
            regs[name] = saved[member].view(f"<u{size}").reshape(-1).astype(np.uint64)
        return np.stack([regs[name] for name in X86_64Registers.names], axis=1), found & _are_plausible(regs)

    @override
    def regsets(
        self, tasks: U64Array, machine: CoreMachine, kernel: KernelView, read_parts: ReadParts
    ) -> Sequence[tuple[Note, ...] | None] | None:
        first = Thread(KernelAddr(int(tasks[0])), {}, kernel, is_64=True)
        try:
            image, geometry = first.image, first.geometry
        except (MemoryFault, LayoutInvalid):
            return None
        large = image is not None and len(image.data) > IMAGE_MAX
        if machine.e_machine != EM_X86_64 or image is None or geometry is None or large:
            return None
        images = fpu.find_images(tasks, image, kernel.layout, read_parts, zero=("io_bitmap", "features"))
        notes: list[tuple[Note, ...] | None] = [None] * len(tasks)
        alike: dict[bytes, list[int]] = {}
        for row in np.flatnonzero(images.there).tolist():
            alike.setdefault(images.data[row, fpu.HEADER].tobytes(), []).append(row)
        for rows in alike.values():
            pkru = None if images.pkru is None else images.pkru[rows]
            try:
                floats = fpu.fxsaves(images.data[rows], geometry)
                xstates = fpu.xsaves(images.data[rows], image.user_features, pkru, geometry)
            except LayoutInvalid:
                continue
            for row, floating, xstate in zip(rows, floats, xstates, strict=True):
                notes[row] = (
                    Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, floating.tobytes()),
                    Note(elf_core.NOTE_LINUX, elf_core.NT_X86_XSTATE, xstate.tobytes()),
                )
        return notes


def _are_plausible(regs: dict[str, U64Array]) -> NDArray[np.bool_]:
    """Tell for which threads ``X86_64Registers.implausible`` would return None."""
    fine = np.ones(len(regs["rip"]), np.bool_)
    for base in (regs["fs_base"], regs["gs_base"]):
        fine &= np.isin(base >> np.uint64(fmt.CANONICAL_SHIFT), np.array(fmt.CANONICAL_TOPS, np.uint64))
    for selector in (regs["ds"], regs["es"], regs["fs"], regs["gs"]):
        fine &= (selector & np.uint64(fmt.SELECTOR_LDT) != 0) | (selector >> np.uint64(3) < fmt.GDT_ENTRIES)
    return fine
