"""Infer member offsets of struct fpu and struct fpstate from their contents, for kernels without BTF.

References: arch/x86/include/asm/fpu/types.h: struct fpu, fpstate, fpu_state_config; arch/x86/include/asm/processor.h:
x86_task_fpu() (Linux 6.16 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import Inference
from vmcore2core.formats import x86_fpu as fmt
from vmcore2core.interfaces import KernelView, Memory
from vmcore2core.overrides import override

MEMBERS = (
    ("fpu", "fpstate"),
    ("fpu", "__fpstate"),
    *(("fpstate", name) for name in ("size", "user_xfeatures", "regs")),
    ("fpu_state_config", "max_size"),
    ("fpu_state_config", "max_features"),
)
FPU_HEAD = 128  # bytes in which the pointer to its own state must be
OWN_STATE_MAX = 1024  # largest offset of its own state


class FpuInference(Inference):
    """Infers member offsets of struct fpu and struct fpstate."""

    members = MEMBERS

    @override
    def infer(self, tasks: Sequence[KernelAddr], kernel: KernelView) -> Mapping[tuple[str, str], int]:
        """Return offsets of ``MEMBERS``; nothing if any two structures disagree.

        struct fpstate and struct fpu_state_config are read in Linux 7.2's form. Their values must be the same in every
        task as in init_fpstate and fpu_user_cfg, and the pointer in struct fpu must lead to the same offset in each
        task.

        Args:
            tasks: ``struct task_struct *`` of user threads, off the CPU.
            kernel: the dumped one.

        Raises:
            MemoryFault: they cannot be read.
        """
        layout = kernel.layout
        size, init, config = (
            layout.find_size("task_struct"),
            layout.find_symbol("init_fpstate"),
            layout.find_symbol("fpu_user_cfg"),
        )
        if size is None or init is None or config is None or not tasks:
            return {}
        expected = _expected(kernel.memory, init, config)
        if expected is None:
            return {}
        candidates: set[tuple[int, int]] | None = None
        for task in tasks:
            here = set(_own_states(task + size, kernel.memory))
            candidates = here if candidates is None else candidates & here
        good = [
            found
            for found in candidates or ()
            if all(_is_state(t + size + found[1], expected, kernel.memory) for t in tasks)
        ]
        if len(good) != 1:
            return {}
        pointer, own = good[0]
        offsets = (
            *(pointer, own, _offset(fmt.fpstate, "size"), _offset(fmt.fpstate, "user_xfeatures"), fmt.FPSTATE_REGS),
            *(_offset(fmt.fpu_state_config, "max_size"), _offset(fmt.fpu_state_config, "max_features")),
        )
        return dict(zip(MEMBERS, offsets, strict=True))


def _offset(struct: np.dtype[np.void], name: str) -> int:
    return int(struct.fields[name][1]) if struct.fields is not None else 0


def _expected(memory: Memory, init: int, config: int) -> np.void | None:
    """Return how a task's struct fpstate begins, if init_fpstate and fpu_user_cfg fit one processor.

    init_fpstate has the components that the kernel saves; only fpu_user_cfg has those that processes see.
    """
    first = np.frombuffer(memory.read(init, fmt.fpstate.itemsize), fmt.fpstate)[0]
    cfg = np.frombuffer(memory.read(config, fmt.fpu_state_config.itemsize), fmt.fpu_state_config)[0]
    expected = np.zeros(1, fmt.fpstate)[0]
    expected["size"], expected["xfeatures"] = first["size"], first["xfeatures"]
    expected["user_size"], expected["user_xfeatures"] = cfg["default_size"], cfg["default_features"]
    features, user = int(first["xfeatures"]), int(cfg["default_features"])
    fits = (
        features & user & fmt.XFEATURE_MASK_FPSSE == fmt.XFEATURE_MASK_FPSSE
        and not user & ~(features & int(cfg["max_features"]))
        and fmt.XSAVE_EXTENDED_OFFSET <= int(cfg["default_size"]) <= int(cfg["max_size"]) <= fmt.XSAVE_SIZE_MAX
        and fmt.XSAVE_EXTENDED_OFFSET <= int(first["size"]) <= fmt.XSAVE_SIZE_MAX
    )
    return expected if fits else None


def _own_states(fpu: int, memory: Memory) -> Iterator[tuple[int, int]]:
    """Yield (offset of a word, offset to which it points) for pointers into the structure itself."""
    for i, value in enumerate(np.frombuffer(memory.read(fpu, FPU_HEAD), "<u8").tolist()):
        if 0 < value - fpu < OWN_STATE_MAX and (value - fpu) % 8 == 0:
            yield 8 * i, value - fpu


def _is_state(address: int, expected: np.void, memory: Memory) -> bool:
    """Tell whether a task's struct fpstate is there: sizes and features as expected, and a header that fits."""
    if memory.read(address, fmt.fpstate.itemsize) != expected.tobytes():
        return False
    raw = memory.read(address + fmt.FPSTATE_REGS + fmt.XSAVE_HEADER_OFFSET, fmt.xstate_header.itemsize)
    header = np.frombuffer(raw, fmt.xstate_header)[0]
    features, layout = int(header["xfeatures"]), int(header["xcomp_bv"])
    whole = fmt.XCOMP_BV_COMPACTED_FORMAT | int(expected["xfeatures"])
    return not features & ~int(expected["xfeatures"]) and layout in (0, whole) and not header["reserved"].any()
