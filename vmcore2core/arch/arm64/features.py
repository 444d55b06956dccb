"""The features of an arm64 kernel and its processors, from the kernel's own tables.

References: arch/arm64/kernel/cpufeature.c: arm64_ftr_regs[], with what all processors have in common and the command
line did not disable; arch/arm64/kernel/ptrace.c: aarch64_regsets[]; arch/arm64/kernel/fpsimd.c: vl_info[]
(Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.spec import TagSpec, keys_of
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats import elf_core
from vmcore2core.formats.elf import PT_AARCH64_MEMTAG_MTE
from vmcore2core.interfaces import KernelView

ENTRIES_MAX = 128
WORD_BITS = 64
LAYOUT_KEYS = keys_of(
    {
        "__ftr_reg_entry": "reg",
        "arm64_ftr_reg": "sys_val",
        "user_regset": "core_note_type n size",
        "vl_info": "max_vl",
    },
    symbols="arm64_ftr_regs aarch64_regsets vl_info sve_max_vl core_num_brps core_num_wrps mte_pages",
    numbers="VMA_MTE_BIT PG_arch_2",
)

DEFAULT_REGSETS: Mapping[int, int] = {
    elf_core.NT_FPREGSET: 528,
    fmt.NT_ARM_TLS: 16,
    fmt.NT_ARM_HW_BREAK: 264,
    fmt.NT_ARM_HW_WATCH: 264,
    fmt.NT_ARM_FPMR: 8,
    fmt.NT_ARM_SYSTEM_CALL: 4,
    fmt.NT_ARM_SVE: 0x2240,
    fmt.NT_ARM_SSVE: 0x2240,
    fmt.NT_ARM_ZA: 0x10010,
    fmt.NT_ARM_ZT: 64,
    fmt.NT_ARM_PAC_MASK: 16,
    fmt.NT_ARM_PAC_ENABLED_KEYS: 8,
    fmt.NT_ARM_PACA_KEYS: 64,
    fmt.NT_ARM_PACG_KEYS: 16,
    fmt.NT_ARM_TAGGED_ADDR_CTRL: 8,
    fmt.NT_ARM_POE: 8,
    fmt.NT_ARM_GCS: 24,
}
"""Note type -> largest size in bytes, in Linux 7.2's order: for layouts that lack the kernel's own table."""


def regset_sizes(kernel: KernelView) -> Mapping[int, int]:
    """Return the kernel's note types in its order, and the largest size of each in bytes.

    Raises:
        MemoryFault: the table cannot be read.
    """
    layout = kernel.layout
    table, size = layout.find_symbol("aarch64_regsets"), layout.find_size("user_regset")
    members = [layout.find_member("user_regset", name) for name in ("core_note_type", "n", "size")]
    if table is None or not size or None in members:
        return DEFAULT_REGSETS
    found: dict[int, int] = {}
    for i in range(ENTRIES_MAX):
        note_type, count, unit = (
            kernel.uint(table + i * size + member.offset, 4) for member in members if member is not None
        )
        # The table begins with the general registers; other data follows it.
        if i == 0 and note_type == elf_core.NT_PRSTATUS:
            continue
        if note_type in found or not (note_type == elf_core.NT_FPREGSET or note_type in fmt.NT_ARM_RANGE):
            break
        if note_type in DEFAULT_REGSETS:  # a newer kernel's
            found[note_type] = count * unit
    return found or DEFAULT_REGSETS


class Features:
    """The processors' common features, by the ID registers that the kernel merged.

    Attributes:
        known: whether the kernel's table of them was found; without it, no feature is there.
    """

    def __init__(self, kernel: KernelView) -> None:
        self._values = self._read(kernel)

    @property
    def known(self) -> bool:
        """Whether the kernel's table of them was found; without it, all features count as absent."""
        return bool(self._values)

    @staticmethod
    def _read(kernel: KernelView) -> dict[int, int]:
        layout = kernel.layout
        table, size = layout.find_symbol("arm64_ftr_regs"), layout.find_size("__ftr_reg_entry")
        reg, value = layout.find_member("__ftr_reg_entry", "reg"), layout.find_member("arm64_ftr_reg", "sys_val")
        if table is None or not size or reg is None or value is None:
            return {}
        values: dict[int, int] = {}
        last = 0
        for i in range(ENTRIES_MAX):
            entry = table + i * size
            number = kernel.uint(entry, 4)
            # The table is sorted: a smaller number is no longer part of it.
            if not max(last + 1, fmt.SYS_REG_OP0_3) <= number < fmt.SYS_REG_END or number % fmt.SYS_REG_STEP:
                break
            last = number
            if number in fmt.ID_REGISTERS:
                pointer = kernel.uint(entry + reg.offset, 8)
                values[number] = kernel.uint(pointer + value.offset, 8)
        return values

    def has(self, feature: str) -> bool:
        """Tell whether all processors have a feature of ``FEATURE_FIELDS``."""
        return any(self.field(reg, shift) >= least for reg, shift, least in fmt.FEATURE_FIELDS[feature])

    def field(self, register: int, shift: int) -> int:
        """Return an unsigned field of an ID register; 0 if it is not known."""
        return self._values.get(register, 0) >> shift & 0xF


def max_vl(kernel: KernelView, vec_type: int) -> int | None:
    """Return the longest vector in bytes that a thread may ask for; None if that is not known.

    Raises:
        MemoryFault: it cannot be read.
        LayoutInvalid: no processor has such a length.
    """
    layout = kernel.layout
    table, size, member = (
        layout.find_symbol("vl_info"),
        layout.find_size("vl_info"),
        layout.find_member("vl_info", "max_vl"),
    )
    # Since Linux kernel commit b5bc00ffddc0 ("arm64/sve: Put system wide vector length information into structs") (in
    # v5.16), both kinds are in a table.
    if table is not None and size and member is not None:
        address = table + vec_type * size + member.offset
    else:
        old = layout.find_symbol("sve_max_vl") if vec_type == fmt.ARM64_VEC_SVE else None
        if old is None:
            return None
        address = old
    return checked_vl(kernel.uint(address, 4), f"the longest vector at {address:#x}")


def checked_vl(length: int, what: str) -> int:
    """Return a vector length in bytes.

    Raises:
        LayoutInvalid: no processor has vectors of this length.
    """
    if not 0 < length <= fmt.SVE_VL_MAX or length % fmt.SVE_VQ_BYTES:
        raise LayoutInvalid(f"{what} is {length:#x} bytes, expected a multiple of 16 up to {fmt.SVE_VL_MAX:#x}")
    return length


def tag_spec(kernel: KernelView) -> TagSpec | None:
    """Return how to recognise tagged memory, see ``Tags.spec``: VM_MTE, and PG_mte_tagged, which is PG_arch_2."""
    layout = kernel.layout
    if not Features(kernel).has("mte2"):
        return None
    bit, tagged = layout.find_constant("VMA_MTE_BIT"), layout.find_constant("PG_arch_2")
    if bit is None:
        # "arm64: re-order MTE VM_ flags" came with POR_EL0 (both in v6.12).
        bit = fmt.VM_MTE_BIT if layout.find_member("task_struct", "thread.por_el0") else fmt.VM_MTE_BIT_OLD
    for name, value in (("VMA_MTE_BIT", bit), ("PG_arch_2", tagged)):
        if value is not None and not 0 <= value < WORD_BITS:
            raise LayoutInvalid(f"NUMBER({name}) is {value}, expected 0 to {WORD_BITS - 1}")
    return TagSpec(1 << bit, tagged, "MTE", PT_AARCH64_MEMTAG_MTE, "mte_pages")
