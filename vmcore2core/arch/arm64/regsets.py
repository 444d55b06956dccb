"""arm64: which register notes a thread has, in the kernel's order.

The state of a thread that left its CPU is all in memory (fpsimd_thread_switch(), tls_thread_switch()). The vector
registers are in thread.uw.fpsimd_state or in thread.sve_state: that depends on whether the thread uses SVE.

References: arch/arm64/kernel/ptrace.c: aarch64_regsets[], fpr_get(), tls_get(), hw_break_get(), sve_get_common(),
za_get(), zt_get(), pac_mask_get(), tagged_addr_ctrl_get(), gcs_get(); arch/arm64/include/uapi/asm/{ptrace,
sve_context}.h; arch/arm64/kernel/{mte,pointer_auth}.c (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vmcore2core.arch.arm64.features import LAYOUT_KEYS as FEATURE_KEYS
from vmcore2core.arch.arm64.features import Features, checked_vl, max_vl, regset_sizes
from vmcore2core.arch.regsets import RegisterSet, in_order
from vmcore2core.arch.spec import keys_of
from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats import elf_core
from vmcore2core.interfaces import KernelView

LAYOUT_KEYS = (
    *FEATURE_KEYS,
    *keys_of(
        {
            "task_struct": (
                "thread_info.flags thread.uw.tp_value thread.uw.fpsimd_state thread.uw.fpmr thread.tpidr2_el0 "
                "thread.fp_type thread.svcr thread.vl thread.sve_vl thread.sve_state thread.sme_state thread.za_state "
                "thread.debug.hbp_break thread.debug.hbp_watch thread.keys_user thread.sctlr_user thread.mte_ctrl "
                "thread.por_el0 thread.gcs_el0_mode thread.gcs_el0_locked thread.gcspr_el0"
            ),
            "perf_event": "hw.info",
            "arch_hw_breakpoint": "address ctrl",
        },
    ),
)

IN_PROCESSOR = frozenset(
    {elf_core.NT_FPREGSET, fmt.NT_ARM_TLS, fmt.NT_ARM_SYSTEM_CALL, fmt.NT_ARM_FPMR, fmt.NT_ARM_POE, fmt.NT_ARM_GCS}
    | {fmt.NT_ARM_SVE, fmt.NT_ARM_SSVE, fmt.NT_ARM_ZA, fmt.NT_ARM_ZT}
)
"""Registers that a thread may change without the kernel: memory has their values only if it is off the CPU."""

LOST = "its thread pointer and its state of SME, FPMR, POE and GCS were in the processor, which the dump does not have"


class Thread(ThreadStruct):
    """``struct thread_struct`` of a task, and related structures.

    Args:
        task: ``struct task_struct *``.
        regs: its general registers, with "syscallno".
        va_bits: bits of a user address that the processor uses: vabits_actual.
        kernel: the dumped one.
    """

    def __init__(self, task: int, regs: Mapping[str, int], va_bits: int, kernel: KernelView) -> None:
        super().__init__(task, kernel)
        self.regs, self.va_bits = regs, va_bits
        self.features = Features(kernel)

    def flag(self, name: str) -> bool | None:
        """Tell whether a thread flag is set; None if the layout does not know. The first task's flags tell its bit.

        The first task always has TIF_FOREIGN_FPSTATE (INIT_THREAD_INFO). Its bit moved when all architectures got
        most flags in common (Linux 6.19).
        """
        found = self.layout.find_member("task_struct", "thread_info.flags")
        init = self.layout.find_symbol("init_task")
        if found is None or init is None:
            return None
        first, own = (self.kernel.uint(at + found.offset, 8) for at in (init, self.task))
        bits = fmt.TIF_GENERIC if first >> fmt.TIF_FOREIGN_FPSTATE_GENERIC & 1 else fmt.TIF
        return bool(own >> bits[name] & 1)

    @property
    def svcr(self) -> int:
        """SVCR: whether the thread is in streaming mode, and has ZA."""
        return self.uint("svcr") or 0

    @property
    def has_sve_state(self) -> bool | None:
        """Whether the vector registers are in sve_state; None if that is not known. TIF_SVE tells until Linux 6.1."""
        kind = self.uint("fp_type", 4)
        return self.flag("SVE") if kind is None else kind == fmt.FP_STATE_SVE

    def vector_length(self, vec_type: int) -> int | None:
        """Return the thread's vector length in bytes, of SVE or SME."""
        found = self.uint("sve_vl", 4) if vec_type == fmt.ARM64_VEC_SVE else None
        lengths = self.raw("vl", 8)
        if lengths is not None:
            found = int.from_bytes(lengths[4 * vec_type : 4 * vec_type + 4], "little")
        return checked_vl(found, f"a vector length of the task at {self.task:#x}") if found else None

    def pointed(self, size: int, *members: str) -> bytes:
        """Return the bytes to which the first member that the layout knows points.

        Raises:
            LayoutInvalid: it is NULL, or the layout knows no member.
        """
        address = next((value for name in members if (value := self.uint(name)) is not None), 0)
        if not address:
            raise LayoutInvalid(f"thread.{members[0]} of the task at {self.task:#x} is 0, expected its registers")
        return self.kernel.memory.read(address, size)


def _fpsimd(thread: Thread) -> bytes | None:
    """Return struct user_fpsimd_state; if the registers are in sve_state, with the low 128 bits of each."""
    raw = thread.raw("uw.fpsimd_state", fmt.user_fpsimd_state.itemsize)
    if raw is None or not thread.has_sve_state:
        return raw
    length = thread.vector_length(fmt.ARM64_VEC_SME if thread.svcr & fmt.SVCR_SM else fmt.ARM64_VEC_SVE)
    if length is None:
        return None
    state = thread.pointed(fmt.SVE_NUM_ZREGS * length, "sve_state")
    low = b"".join(state[at : at + fmt.SVE_VQ_BYTES] for at in range(0, len(state), length))
    return low + raw[len(low) :]


def _tls(thread: Thread) -> bytes | None:
    """Return tp_value and tpidr2_el0, which is 0 without SME."""
    pointer = thread.raw("uw.tp_value", 8)
    return None if pointer is None else pointer + (thread.raw("tpidr2_el0", 8) or bytes(8))


def _debug(thread: Thread, member: str, register_shift: int, slots_symbol: str) -> bytes | None:
    """Return struct user_hwdebug_state: the processor's version and slots, and the breakpoints that ptrace(2) set."""
    slots = thread.raw(member, 8 * fmt.MAX_BRP_WRP)
    if slots is None or not thread.features.known:
        return None
    version = thread.features.field(fmt.ID_AA64DFR0_EL1, 0)
    count = _slots(thread, register_shift, slots_symbol)
    out = (version << 8 | count).to_bytes(4, "little") + bytes(4)
    for event in np.frombuffer(slots, "<u8").tolist():
        address, ctrl = _breakpoint(thread, event) if event else (0, 0)
        out += address.to_bytes(8, "little") + ctrl.to_bytes(4, "little") + bytes(4)
    return out


def _slots(thread: Thread, register_shift: int, symbol: str) -> int:
    """Return the number of breakpoints or watchpoints: the kernel's count, else from the ID register."""
    address = thread.layout.find_symbol(symbol)
    if address is not None:
        return thread.kernel.uint(address, 4) & 0xFF
    return thread.features.field(fmt.ID_AA64DFR0_EL1, register_shift) + 1


def _breakpoint(thread: Thread, event: int) -> tuple[int, int]:
    """Return address and control word of a ``struct perf_event``: encode_ctrl_reg()."""
    members = [
        thread.layout.find_member(struct, name)
        for struct, name in (
            ("perf_event", "hw.info"),
            ("arch_hw_breakpoint", "address"),
            ("arch_hw_breakpoint", "ctrl"),
        )
    ]
    info, address, ctrl = (found.offset if found is not None else None for found in members)
    if info is None or address is None or ctrl is None:
        raise LayoutInvalid(f"a hardware breakpoint at {event:#x}: the layout does not know perf_event.hw.info")
    where = thread.kernel.uint(event + info + address, 8)
    word = thread.kernel.uint(event + info + ctrl, 4)
    encoded = 0
    for low, width, shift in fmt.HW_BREAKPOINT_CTRL.values():
        encoded |= (word >> low & ((1 << width) - 1)) << shift
    return where, encoded


def _sve_size(length: int, flags: int) -> int:
    """Return SVE_PT_SIZE(): bytes of NT_ARM_SVE."""
    if not flags & fmt.SVE_PT_REGS_SVE:
        return fmt.user_sve_header.itemsize + fmt.user_fpsimd_state.itemsize
    return fmt.user_sve_header.itemsize + _aligned(_aligned(_sve_registers(length)) + fmt.SVE_FPSR_FPCR)


def _sve_registers(length: int) -> int:
    """Return the bytes of sve_state: Z, P and FFR."""
    return length * fmt.SVE_NUM_ZREGS + length // 8 * (fmt.SVE_NUM_PREGS + 1)


def _aligned(size: int) -> int:
    return -(-size // fmt.SVE_VQ_BYTES) * fmt.SVE_VQ_BYTES


def _header(size: int, max_size: int, length: int, max_length: int, flags: int) -> bytes:
    out = np.zeros(1, fmt.user_sve_header)
    out["size"], out["max_size"], out["vl"], out["max_vl"], out["flags"] = size, max_size, length, max_length, flags
    return out.tobytes()


def _vectors(thread: Thread, vec_type: int) -> bytes | None:
    """Return NT_ARM_SVE or NT_ARM_SSVE; the one that is not in use has only a header."""
    length, longest = thread.vector_length(vec_type), max_vl(thread.kernel, vec_type)
    if length is None or longest is None:
        return None
    streaming = bool(thread.svcr & fmt.SVCR_SM)
    active = streaming == (vec_type == fmt.ARM64_VEC_SME)
    flags = fmt.SVE_PT_REGS_SVE if active and thread.has_sve_state else 0
    inherits = thread.flag("SME_VL_INHERIT" if vec_type == fmt.ARM64_VEC_SME else "SVE_VL_INHERIT")
    size = _sve_size(length, flags) if active else fmt.user_sve_header.itemsize
    header = _header(
        size,
        _sve_size(longest, fmt.SVE_PT_REGS_SVE),
        length,
        longest,
        flags | (fmt.SVE_PT_VL_INHERIT if inherits else 0),
    )
    if not active:
        return header
    if not flags:
        floats = _fpsimd(thread)
        return None if floats is None else header + floats
    fpsr_fpcr = thread.raw("uw.fpsimd_state", fmt.user_fpsimd_state.itemsize)
    if fpsr_fpcr is None:
        return None
    registers = thread.pointed(_sve_registers(length), "sve_state")
    body = registers.ljust(_aligned(len(registers)), b"\0")
    body += fpsr_fpcr[fmt.FPSIMD_FPSR : fmt.FPSIMD_FPSR + fmt.SVE_FPSR_FPCR]
    return (header + body).ljust(size, b"\0")


def _za(thread: Thread) -> bytes | None:
    """Return NT_ARM_ZA; only its header if PSTATE.ZA is 0."""
    length = thread.vector_length(fmt.ARM64_VEC_SME)
    longest = max_vl(thread.kernel, fmt.ARM64_VEC_SME)
    if length is None or longest is None:
        return None
    enabled = bool(thread.svcr & fmt.SVCR_ZA)
    head = fmt.user_sve_header.itemsize
    flags = fmt.SVE_PT_VL_INHERIT if thread.flag("SME_VL_INHERIT") else 0
    size = head + (length * length if enabled else 0)
    # The kernel computes max_size from the thread's own vector length.
    header = _header(size, head + length * length, length, longest, flags)
    return header + (thread.pointed(length * length, "sme_state", "za_state") if enabled else b"")


def _zt(thread: Thread) -> bytes | None:
    """Return NT_ARM_ZT: ZT0, which follows ZA; zero if PSTATE.ZA is 0."""
    length = thread.vector_length(fmt.ARM64_VEC_SME)
    if length is None or not thread.features.has("sme2"):
        return None
    if not thread.svcr & fmt.SVCR_ZA:
        return bytes(fmt.ZT_SIZE)
    return thread.pointed(length * length + fmt.ZT_SIZE, "sme_state", "za_state")[length * length :]


def _pac_mask(thread: Thread) -> bytes | None:
    """Return the bits that hold the signature in pointers to data and to code: ptrauth_user_pac_mask()."""
    if not thread.features.has("address_auth"):
        return None
    mask = (1 << fmt.PAC_MASK_TOP) - (1 << thread.va_bits)
    return mask.to_bytes(8, "little") * 2


def _pac_enabled(thread: Thread) -> bytes | None:
    sctlr = thread.uint("sctlr_user")
    if sctlr is None or not thread.features.has("address_auth"):
        return None
    keys = sum(key for bit, key in fmt.SCTLR_ENABLED_KEYS.items() if sctlr & bit)
    return keys.to_bytes(8, "little")


def _address_keys(thread: Thread) -> bytes | None:
    return thread.raw("keys_user", fmt.PTRAUTH_ADDRESS_KEYS) if thread.features.has("address_auth") else None


def _generic_key(thread: Thread) -> bytes | None:
    raw = thread.raw("keys_user", fmt.PTRAUTH_ADDRESS_KEYS + fmt.PTRAUTH_GENERIC_KEY)
    return raw[fmt.PTRAUTH_ADDRESS_KEYS :] if raw is not None and thread.features.has("generic_auth") else None


def _tagged_addr_ctrl(thread: Thread) -> bytes | None:
    """Return the value of prctl(PR_GET_TAGGED_ADDR_CTRL): get_tagged_addr_ctrl(), get_mte_ctrl()."""
    if thread.layout.find_member("task_struct", "thread_info.flags") is None:
        return None
    value = fmt.PR_TAGGED_ADDR_ENABLE if thread.flag("TAGGED_ADDR") else 0
    control = thread.uint("mte_ctrl")
    if control is not None and thread.features.has("mte2"):
        value |= (~control & fmt.MTE_CTRL_EXCL) << fmt.PR_MTE_TAG_SHIFT
        value |= sum(shown for bit, shown in fmt.MTE_CTRL_FLAGS.items() if control & bit)
    return value.to_bytes(8, "little")


def _gcs(thread: Thread) -> bytes | None:
    """Return struct user_gcs; the first two are unsigned ints in thread_struct."""
    parts = (thread.uint("gcs_el0_mode", 4), thread.uint("gcs_el0_locked", 4), thread.uint("gcspr_el0"))
    if not thread.features.has("gcs") or None in parts:
        return None
    return b"".join(part.to_bytes(8, "little") for part in parts if part is not None)


def _syscall(thread: Thread) -> bytes | None:
    number = thread.regs.get("syscallno")
    return None if number is None else (number & 0xFFFF_FFFF).to_bytes(4, "little")


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, _fpsimd, elf_core.NOTE_CORE),
    RegisterSet(fmt.NT_ARM_TLS, _tls),
    RegisterSet(fmt.NT_ARM_HW_BREAK, lambda thread: _debug(thread, "debug.hbp_break", 12, "core_num_brps")),
    RegisterSet(fmt.NT_ARM_HW_WATCH, lambda thread: _debug(thread, "debug.hbp_watch", 20, "core_num_wrps")),
    RegisterSet(fmt.NT_ARM_FPMR, lambda thread: thread.raw("uw.fpmr", 8) if thread.features.has("fpmr") else None),
    RegisterSet(fmt.NT_ARM_SYSTEM_CALL, _syscall),
    RegisterSet(fmt.NT_ARM_SVE, lambda thread: _vectors(thread, fmt.ARM64_VEC_SVE)),
    RegisterSet(fmt.NT_ARM_SSVE, lambda thread: _vectors(thread, fmt.ARM64_VEC_SME)),
    RegisterSet(fmt.NT_ARM_ZA, _za),
    RegisterSet(fmt.NT_ARM_ZT, _zt),
    RegisterSet(fmt.NT_ARM_PAC_MASK, _pac_mask),
    RegisterSet(fmt.NT_ARM_PAC_ENABLED_KEYS, _pac_enabled),
    RegisterSet(fmt.NT_ARM_PACA_KEYS, _address_keys),
    RegisterSet(fmt.NT_ARM_PACG_KEYS, _generic_key),
    RegisterSet(fmt.NT_ARM_TAGGED_ADDR_CTRL, _tagged_addr_ctrl),
    RegisterSet(fmt.NT_ARM_POE, lambda thread: thread.raw("por_el0", 8) if thread.features.has("poe") else None),
    RegisterSet(fmt.NT_ARM_GCS, _gcs),
)
_BY_TYPE = {row.n_type: row for row in REGSETS}


def saved(thread: Thread, without: frozenset[int] = frozenset()) -> Iterator[Note]:
    """Yield a thread's notes from memory, in the kernel's order.

    Args:
        thread: the thread.
        without: types to leave out.
    """
    for n_type, size in regset_sizes(thread.kernel).items():
        row = _BY_TYPE[n_type]
        desc = None if n_type in without else row.get(thread)
        if desc is not None:
            yield Note(row.name, n_type, desc[:size])


def regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return the notes of a thread that is off the CPU; None if the layout does not know where they are."""
    # If has_sve_state is not known, fpsimd_state may be older than the registers.
    if not thread.has("uw.fpsimd_state") or thread.has_sve_state is None:
        return None
    return tuple(saved(thread))


def live_regsets(thread: Thread, of_cpu: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return the notes of a thread that was on a CPU: the CPU's notes, and state that only the kernel changes."""
    live = {note.n_type: note for note in of_cpu if _is_whole(thread, note)}
    if not live:
        return ()
    return in_order(REGSETS, (*live.values(), *saved(thread, IN_PROCESSOR)))


def _is_whole(thread: Thread, note: Note) -> bool:
    """Tell whether a CPU's note has the right size, and the thread's vector length.

    In streaming mode, QEMU's NT_ARM_SVE has vectors of SME's length, which are not SVE's registers.
    """
    if note.n_type == elf_core.NT_FPREGSET:
        return len(note.desc) == fmt.user_fpsimd_state.itemsize
    if len(note.desc) < fmt.user_sve_header.itemsize:
        return False
    header = np.frombuffer(note.desc, fmt.user_sve_header, 1)[0]
    length, flags = int(header["vl"]), int(header["flags"])
    known = thread.vector_length(fmt.ARM64_VEC_SVE)
    return length == (known or length) and int(header["size"]) == len(note.desc) == _sve_size(length, flags)
