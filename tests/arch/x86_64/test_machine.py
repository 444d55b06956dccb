"""x86-64 by literal numbers: the Intel SDM, the kernel's headers and the C compiler say what they must be.

Tests arch/x86/cpus.py, arch/x86/paging.py.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry, saved_user_regs
from tests.builders.kernelimage import Table
from tests.builders.prstatus import elf_prstatus
from tests.corefile.cabi import fields
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.spec import CpuNote, KernelMap
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutUnknown, NotMapped
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import parse_vmcoreinfo

NX = 1 << 63

# As a 7.2 kernel with KASLR writes them: the image moved by 0x22200000, to physical 0x320000000 and something.
TEXT = """\
OSRELEASE=7.2.13
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffffa5a20000
SYMBOL(_stext)=ffffffffa3200000
NUMBER(phys_base)={phys_base}
NUMBER(pgtable_l5_enabled)={l5}
KERNELOFFSET=22200000
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
NUMBER(sme_mask)={sme_mask}
"""


def kernel_map(phys_base: int = 0, l5: int = 0, sme_mask: int = 0, without: str = "") -> KernelMap:
    text = TEXT.format(phys_base=phys_base, l5=l5, sme_mask=sme_mask)
    lines = [line for line in text.splitlines(keepends=True) if not (without and without in line)]
    return ARCH.paging.kernel_map(parse_vmcoreinfo("".join(lines).encode()))


def decoded(entry: int, level: str = "pte", made: KernelMap | None = None) -> tuple[int, int]:
    """Return kind and physical address."""
    spec = ARCH.paging.user_page_table(made or kernel_map(l5=1), MM, ARCH.view(Stack(b""), KernelLayout([])))
    return read_entry(spec, level, entry)


# Bits: 0 present, 1 write, 2 user, 3 PWT, 4 PCD, 5 accessed, 6 dirty, 7 PS (PAT in a PTE), 8 global, 12 PAT in a large
# page, 52-58 software, 59-62 protection key, 63 NX. arch/x86/include/asm/pgtable_types.h.


@pytest.mark.parametrize(
    ("entry", "kind", "paddr"),
    [
        pytest.param(0, NONE, 0, id="nothing"),
        pytest.param(0x0000_0001_2345_6067, LEAF, 0x1_2345_6000, id="user rw dirty"),
        pytest.param(0x8000_0001_2345_6025, LEAF, 0x1_2345_6000, id="NX"),
        pytest.param(0x000F_FFFF_FFFF_F001, LEAF, 0xF_FFFF_FFFF_F000, id="the highest page"),
        pytest.param(0x7FF0_0000_0000_1025, LEAF, 0x1000, id="protection key and software bits"),
        pytest.param(0x0000_0000_0000_1FFF, LEAF, 0x1000, id="all low bits, PAT too"),
        pytest.param(0x0000_0000_0000_0001, LEAF, 0, id="page 0"),
        # pte_modify() to PROT_NONE: present cleared, bit 8 set; the address inverted since Linux 4.19, and stable.
        pytest.param(0x000F_FFFE_DCBA_9160, LEAF, 0x1_2345_6000, id="PROT_NONE, inverted"),
        pytest.param(0x800F_FFFE_DCBA_9160, LEAF, 0x1_2345_6000, id="PROT_NONE, inverted, NX"),
        pytest.param(0x0000_0001_2345_6160, LEAF, 0x1_2345_6000, id="PROT_NONE before 4.19"),
        pytest.param(0x000F_FFFF_FFFF_F120, LEAF, 0, id="PROT_NONE, inverted, page 0"),
        # Swap: offset inverted in bits 9 to 58, type in 59 to 63, bit 8 clear (arch/x86/include/asm/pgtable_64.h).
        pytest.param(~0x1234 << 14 >> 5 & (1 << 59) - 1 | 1 << 59, NOT_PRESENT, 0, id="swap type 1"),
        pytest.param(~0x1234 << 14 >> 5 & (1 << 59) - 1 | 31 << 59 | 2, NOT_PRESENT, 0, id="marker, soft dirty"),
        pytest.param(0xFFFF_FFFF_FFFF_FE00, NOT_PRESENT, 0, id="every swap bit"),
        pytest.param(0x2, NOT_PRESENT, 0, id="no bit that says anything"),
    ],
)
def test_a_pte_reads_as_the_manual_says(entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry) == (kind, paddr)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pmd", 0x0000_0001_2340_00E7, LEAF, 0x1_2340_0000, id="2M"),
        pytest.param("pmd", 0x8000_0001_2340_10E7, LEAF, 0x1_2340_0000, id="2M with PAT and NX"),
        pytest.param("pmd", 0x0000_0001_2345_6067, TABLE, 0x1_2345_6000, id="pte table"),
        pytest.param("pmd", 0x000F_FFFE_DCC0_01E0, LEAF, 0x1_2320_0000 | 0x20_0000, id="2M PROT_NONE, inverted"),
        pytest.param("pmd", 0x0000_0001_2340_01E0, LEAF, 0x1_2340_0000, id="2M PROT_NONE before 4.19"),
        pytest.param("pud", 0x0000_0001_4000_00E7, LEAF, 0x1_4000_0000, id="1G"),
        pytest.param("pud", 0x8000_0001_4000_10E7, LEAF, 0x1_4000_0000, id="1G with PAT and NX"),
        pytest.param("pud", 0x8000_0001_2345_6067, TABLE, 0x1_2345_6000, id="pmd table"),
        pytest.param("p4d", 0x0000_0001_2345_6067, TABLE, 0x1_2345_6000, id="pud table"),
        pytest.param("pgd", 0x8000_0001_2345_6067, TABLE, 0x1_2345_6000, id="p4d table, NX as with isolation"),
        pytest.param("p4d", 0x0000_0001_4000_00E7, BAD, None, id="PS is reserved in a PML4E"),
        pytest.param("pgd", 0x0000_0001_4000_00E7, BAD, None, id="PS is reserved in a PML5E"),
        pytest.param("pmd", ~0x1234 << 14 >> 5 & (1 << 59) - 1 | 30 << 59, NOT_PRESENT, 0, id="2M migrating"),
        *(pytest.param(level, 0, NONE, 0, id=f"no {level}") for level in ("pmd", "pud", "p4d", "pgd")),
    ],
)
def test_an_upper_entry_reads_as_the_manual_says(level: str, entry: int, kind: int, paddr: int | None) -> None:
    found = decoded(entry, level)
    assert found[0] == kind
    assert paddr is None or found[1] == paddr


@pytest.mark.parametrize("level", ["pmd", "pud"])
@pytest.mark.parametrize("bit", [13, 20])
def test_reserved_bits_of_a_large_page_make_it_bad(level: str, bit: int) -> None:
    """SDM 4.5: bits 20:13 of a 2-MByte and 29:13 of a 1-GByte page are reserved: the CPU would fault."""
    assert decoded(0x0000_0001_4000_00E7 | 1 << bit, level)[0] == BAD


@pytest.mark.parametrize("level", ["pte", "pmd", "pud", "p4d"])
def test_accessed_and_dirty_alone_are_an_empty_entry(level: str) -> None:
    """pte_none(), pmd_none() and the others: a Knights Landing erratum sets these bits in empty entries."""
    assert decoded(0x60, level)[0] == NONE


def test_many_entries_are_decoded_each_for_itself() -> None:
    spec = ARCH.paging.user_page_table(kernel_map(), MM, ARCH.view(Stack(b""), KernelLayout([])))
    entries = np.array([0, 0x5067, 0x2, 0x000F_FFFE_DCBA_9160, NX | 0x7001], np.uint64)
    kinds, paddrs = spec.decode(entries, 3)
    assert kinds.tolist() == [NONE, LEAF, NOT_PRESENT, LEAF, LEAF]
    assert paddrs.tolist() == [0, 0x5000, 0, 0x1_2345_6000, 0x7000]


def test_the_memory_encryption_bit_is_no_address() -> None:
    made = kernel_map(sme_mask=1 << 47, l5=1)
    assert decoded(1 << 47 | 0x1_2345_6067, "pte", made) == (LEAF, 0x1_2345_6000)
    assert decoded(1 << 47 | 0x1_2345_6067, "pmd", made) == (TABLE, 0x1_2345_6000)
    assert decoded(1 << 47 | 0x1_2340_00E7, "pmd", made) == (LEAF, 0x1_2340_0000)
    assert decoded(1 << 47 | 0x1_2345_6067, "pte") == (LEAF, 1 << 47 | 0x1_2345_6000)


@pytest.mark.parametrize(
    ("entry", "kind", "offset"),
    [
        # pgtable_64.h: the type in bits 59 to 63; the offset in bits 9 to 58, inverted since v4.19.
        (0x7FFF_FFFF_FFFF_FE00 & ~(0x1F << 59), 0, 0),
        (0x8FFF_FFFF_FDB9_7400, 17, 0x12345),
        (0xF800_0000_0000_0000, 31, (1 << 50) - 1),
        (0x87FF_FFFF_F800_0000, 16, 0x3FFFF),
        (0x0FFF_FFFF_FFFF_FC00, 1, 1),
    ],
)
def test_a_swap_entry_names_type_and_offset(entry: int, kind: int, offset: int) -> None:
    entries, sizes = np.array([entry], np.uint64), np.array([4096], np.uint64)
    types, offsets = ARCH.swap_entries.type_and_offset(entries, sizes, 4096, KernelLayout([]))
    assert (types.tolist(), offsets.tolist()) == ([kind], [offset])


@pytest.mark.parametrize(
    ("l5", "levels"),
    [
        (0, [("p4d", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        (1, [("pgd", 48, 9), ("p4d", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
    ],
)
def test_levels_of_the_page_table(l5: int, levels: list[tuple[str, int, int]]) -> None:
    spec = kernel_map(l5=l5).spec
    assert [(level.name, level.shift, level.bits) for level in spec.levels] == levels
    assert (spec.page_size, spec.entry_dtype) == (4096, np.dtype("<u8"))


def test_levels_of_a_kernel_that_knows_no_five_are_four() -> None:
    assert len(kernel_map(without="l5_enabled").spec.levels) == 4


@pytest.mark.parametrize(
    ("phys_base", "stext", "root"),
    [
        # __pa_symbol(): address - 0xffffffff80000000 + phys_base.
        pytest.param(0, 0x2320_0000, 0x25A2_0000, id="0"),
        pytest.param(0x3_0000_0000, 0x3_2320_0000, 0x3_25A2_0000, id="above"),
        pytest.param(-517_996_544, 0x2320_0000 - 0x1EE0_0000, 0x25A2_0000 - 0x1EE0_0000, id="negative"),
    ],
)
def test_the_image_is_where_phys_base_says(phys_base: int, stext: int, root: int) -> None:
    made = kernel_map(phys_base=phys_base)
    assert made.root == root
    (image,) = made.linear
    assert 0xFFFF_FFFF_A320_0000 in image.range
    assert 0xFFFF_FFFF_A5A2_0000 in image.range
    assert image.paddr + 0xFFFF_FFFF_A320_0000 - image.range.start == stext
    assert image.paddr >= 0
    # Below _stext, at 2 MiB, may be anything: it goes through the page table, too.
    assert image.range.start == 0xFFFF_FFFF_A320_0000
    # Modules begin behind KERNEL_IMAGE_SIZE: their addresses go through the page table.
    assert image.range.end == 0xFFFF_FFFF_C000_0000


def test_a_kernel_image_of_512_mib_ends_there() -> None:
    text = (
        TEXT.format(phys_base=0, l5=0, sme_mask=0).replace("1073741824", "536870912").replace("ffffffffa", "ffffffff8")
    )
    (image,) = ARCH.paging.kernel_map(parse_vmcoreinfo(text.encode())).linear
    assert image.range.end == 0xFFFF_FFFF_A000_0000


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("phys_base", "NUMBER(phys_base)"),
        ("swapper_pg_dir", "SYMBOL(swapper_pg_dir)"),
        ("_stext", "SYMBOL(_stext)"),
    ],
)
def test_a_missing_key_is_named(key: str, item: str) -> None:
    with pytest.raises(LayoutUnknown) as caught:
        kernel_map(without=key)
    assert item in str(caught.value)


def test_init_top_pgt_is_swapper_pg_dir_by_another_name() -> None:
    text = TEXT.format(phys_base=0, l5=0, sme_mask=0).replace("swapper_pg_dir", "init_top_pgt")
    assert ARCH.paging.kernel_map(parse_vmcoreinfo(text.encode())).root == 0x25A2_0000


# Registers.

# struct pt_regs, arch/x86/include/asm/ptrace.h, in its order; each word says which it is.
PT_REGS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss".split()
USER_64 = {
    **{name: int.from_bytes(name.encode().rjust(6), "big") for name in PT_REGS},
    "rip": 0x7F12_3456_7890,
    "cs": 0x33,
    "eflags": 0x246,
    "rsp": 0x7FFE_1234_5678,
    "ss": 0x2B,
    "orig_rax": (1 << 64) - 1,
}
USER_32 = {**USER_64, "cs": 0x23, "rip": 0xF7F0_1234, "rsp": 0xFFD0_1230}
TASK = MM = KernelAddr(0xFFFF_8880_0000_1000)
STACK = 0xFFFF_C900_0010_0000


def frame(regs: dict[str, int]) -> bytes:
    """Pack struct pt_regs as ptrace.h has it: 21 words."""
    return struct.pack("<21Q", *(regs[name] for name in PT_REGS))


class Stack:
    """Kernel memory that has one stack and nothing else."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, address: int, size: int) -> bytes:
        at = address - STACK
        if not 0 <= at <= len(self.content) - size:
            raise NotMapped(address)
        return self.content[at : at + size]


def saved(top: bytes, size: int = 16384, **constants: int) -> dict[str, int] | None:
    return saved_user_regs(ARCH, TASK, STACK, Stack(top.rjust(size, b"\0")), Table(constants=constants))


@pytest.mark.parametrize("regs", [USER_64, USER_32], ids=["64-bit", "compat"])
@pytest.mark.parametrize("size", [16384, 32768])
@pytest.mark.parametrize("padding", [b"", bytes(16), b"event data" + bytes(6)], ids=["", "padding", "FRED"])
def test_user_registers_are_at_the_top_of_the_kernel_stack(regs: dict[str, int], size: int, padding: bytes) -> None:
    assert saved(frame(regs) + padding, size) == regs
    assert saved(frame(regs) + padding, size, THREAD_SIZE=size) == regs


def test_selectors_come_without_what_fred_puts_above_them() -> None:
    """struct fred_cs, struct fred_ss: 16 bits of selector, then stack level, vector, instruction length and flags."""
    regs = {**USER_64, "cs": 0x0003_0000_0000_0033, "ss": 0x0100_0070_0002_002B}
    assert saved(frame(regs) + b"\xff" * 16) == USER_64


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"cs": 0x10, "ss": 0x18}, id="kernel mode"),
        pytest.param({"cs": 0}, id="no code segment"),
        pytest.param({"cs": 0x2B}, id="data segment as code segment"),
        pytest.param({"ss": 0x18}, id="kernel stack segment"),
        pytest.param({"eflags": 0x244}, id="bit 1 of eflags is always set"),
        pytest.param({"eflags": 1 << 40 | 0x246}, id="no flags above 32 bits"),
        pytest.param({"rip": 0xFFFF_FFFF_8100_0000}, id="kernel rip"),
        pytest.param({"rip": 1 << 60}, id="rip that is no address"),
        pytest.param({"rsp": 0xFFFF_C900_0000_0000}, id="kernel rsp"),
    ],
)
def test_what_cannot_be_user_registers_is_none(wrong: dict[str, int]) -> None:
    assert saved(frame({**USER_64, **wrong})) is None


def test_an_empty_or_lost_stack_has_no_user_registers() -> None:
    assert saved(b"") is None
    assert saved(b"\xff" * 16384) is None
    assert (
        ARCH.registers.user_regs(TASK, KernelAddr(STACK + (1 << 30)), ARCH.view(Stack(b""), KernelLayout([Table()])))
        is None
    )


def test_a_frame_elsewhere_in_the_stack_is_not_taken() -> None:
    for behind in (8, 24, 32, 168):
        assert saved(frame(USER_64) + bytes(behind)) is None


# sys/user.h names them as the kernel's user_64.h does; 32-bit ones with their i386 names.
USER_REGS_STRUCT = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
).split()
USER_REGS_STRUCT32 = "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss".split()


def cc_names(bits: int) -> dict[str, str]:
    """Return our name -> <sys/user.h>'s, where they differ."""
    return {"ds": "xds", "es": "xes", "fs": "xfs", "gs": "xgs", "cs": "xcs", "ss": "xss"} if bits == 32 else {}


@pytest.mark.parametrize(("bits", "names"), [(64, USER_REGS_STRUCT), (32, USER_REGS_STRUCT32)])
def test_gregs_are_struct_user_regs_struct(bits: int, names: list[str]) -> None:
    theirs = cc_names(bits)
    at, size = fields("user_regs_struct", tuple(theirs.get(name, name) for name in names), "sys/user.h", bits)
    machine = ARCH.cores.machine({"cs": 0x33 if bits == 64 else 0x23}, None)
    assert (machine.e_machine, machine.elf_class) == ((62, 64) if bits == 64 else (3, 32))
    long_names = {"eip": "rip", "eflags": "eflags", "orig_eax": "orig_rax"}
    values = {name: 0x1000_0000 + i for i, name in enumerate(names)}
    native = {
        long_names.get(name, "r" + name[1:] if name[0] == "e" and len(name) == 3 else name): value
        for name, value in values.items()
    }
    if bits == 32:
        native["es"] = values["es"]
    raw = ARCH.cores.gregs(native, machine)
    assert len(raw) == size
    found = {name: int.from_bytes(raw[offset : offset + width], "little") for name, (offset, width) in at.items()}
    assert found == {theirs.get(name, name): value for name, value in values.items()}


def test_compat_registers_keep_the_low_word() -> None:
    """genregs32_get(): the upper halves are not the process's."""
    machine = ARCH.cores.machine({"cs": 0x23}, None)
    raw = ARCH.cores.gregs({"rax": 0xFFFF_FFFF_0000_0005, "orig_rax": (1 << 64) - 1, "cs": 0x23}, machine)
    words = dict(zip(USER_REGS_STRUCT32, struct.unpack("<17I", raw), strict=True))
    assert (words["eax"], words["orig_eax"], words["cs"], words["ebx"]) == (5, 0xFFFF_FFFF, 0x23, 0)


@pytest.mark.parametrize(
    ("regs", "task_size", "e_machine", "elf_class"),
    [
        pytest.param({"cs": 0x33}, 0x7FFF_FFFF_F000, 62, 64, id="64-bit"),
        pytest.param({"cs": 0x33}, None, 62, 64, id="64-bit, task_size not known"),
        pytest.param({"cs": 0x23}, 0xFFFF_E000, 3, 32, id="compat"),
        pytest.param({"cs": 0x23}, None, 3, 32, id="compat, task_size not known"),
        pytest.param({}, 0xFFFF_E000, 3, 32, id="compat, no registers"),
        pytest.param({}, 0x00FF_FFFF_FFFF_F000, 62, 64, id="5-level, no registers"),
        pytest.param({}, None, 62, 64, id="nothing known"),
        # A 64-bit process may run 32-bit code (wine does); its mm says what it is.
        pytest.param({"cs": 0x23}, 0x7FFF_FFFF_F000, 62, 64, id="64-bit in 32-bit code"),
    ],
)
def test_the_core_is_of_the_machine_of_the_process(
    regs: dict[str, int], task_size: int | None, e_machine: int, elf_class: int
) -> None:
    machine = ARCH.cores.machine(regs, task_size)
    assert (machine.e_machine, machine.elf_class) == (e_machine, elf_class)


def test_an_x32_process_is_no_i386_process() -> None:
    """64-bit code in a 32-bit address space: an EM_386 core would lose r8 to r15."""
    machine = ARCH.cores.machine({"cs": 0x33, "r8": 1}, 0xFFFF_E000)
    assert (machine.e_machine, machine.elf_class, machine.unsupported) == (62, 32, None)
    regs = {name: 0x1_0000_0000 + i for i, name in enumerate(USER_REGS_STRUCT)}
    assert struct.unpack("<27Q", ARCH.cores.gregs(regs, machine)) == tuple(regs.values())


# Notes of the CPUs.


def prstatus(pid: int, regs: dict[str, int]) -> bytes:
    return elf_prstatus(pid, struct.pack("<27Q", *(regs.get(name, 0) for name in USER_REGS_STRUCT)))


def qemu_note(cr3: int, fs_base: int, gs_base: int, kernel_gs_base: int) -> bytes:
    """Pack QEMUCPUState of target/i386/arch_dump.c: version, size, 18 registers, 10 segments, cr0-cr4, gs base."""
    segment = "IIIIQ"
    bases = {3: fs_base, 4: gs_base}  # cs ds es fs gs ss ldt tr gdt idt
    segments = b"".join(struct.pack("<" + segment, 0, 0, 0, 0, bases.get(i, 0xBAD0 + i)) for i in range(10))
    raw = struct.pack("<II", 1, 440) + bytes(18 * 8) + segments
    raw += struct.pack("<5Q", 0x8005_0033, 0, 0xDEAD_0000, cr3, 0x37_2EF0) + struct.pack("<Q", kernel_gs_base)
    assert len(raw) == 440
    return raw


LIVE = {name: 0x100 + i for i, name in enumerate(USER_REGS_STRUCT)}
LIVE_USER = {**LIVE, "cs": 0x33}
LIVE_KERNEL = {**LIVE, "cs": 0x10, "rip": 0xFFFF_FFFF_8100_0000}


def test_kdump_notes_carry_pid_and_registers() -> None:
    notes = (
        Note("CORE", 1, prstatus(812, LIVE_USER)),
        Note("VMCOREINFO", 0, b"OSRELEASE=7.2.13\n"),
        Note("CORE", 1, prstatus(0, LIVE_KERNEL)),
        Note("CORE", 3, bytes(136)),
        Note("LINUX", 0x202, bytes(600)),
    )
    first, second = ARCH.cpus.notes(notes)
    assert (first.number, first.pr_pid, first.user_mode) == (0, 812, True)
    assert dict(first.regs) == LIVE_USER
    assert (second.number, second.pr_pid, second.user_mode) == (1, 0, False)
    assert dict(ARCH.cpus.bases(first)) == {}
    assert not ARCH.cpus.uses_pgd(first, 0)


def test_qemu_notes_add_control_registers_and_live_bases() -> None:
    """qemu writes all NT_PRSTATUS, pr_pid the CPU's number plus 1, then all of its own notes."""
    notes = (
        Note("CORE", 1, prstatus(1, LIVE_USER)),
        Note("CORE", 1, prstatus(2, LIVE_KERNEL)),
        Note("QEMU", 0, qemu_note(0x1_2345_6000, 0x7F00_1000, 0x7F00_2000, 0xFFFF_8880_0000_0000)),
        Note("QEMU", 0, qemu_note(0x2_3456_7000, 0x7F00_3000, 0xFFFF_8880_0001_0000, 0x7F00_4000)),
    )
    user, kernel = ARCH.cpus.notes(notes)
    assert [note.pr_pid for note in (user, kernel)] == [1, 2]
    assert [note.regs["cr3"] for note in (user, kernel)] == [0x1_2345_6000, 0x2_3456_7000]
    # In user mode gs_base is the user's; in the kernel, swapgs has put it aside.
    assert {name: ARCH.cpus.bases(user)[name] for name in ("fs_base", "gs_base")} == {
        "fs_base": 0x7F00_1000,
        "gs_base": 0x7F00_2000,
    }
    assert dict(ARCH.cpus.bases(kernel)) == {"fs_base": 0x7F00_3000, "gs_base": 0x7F00_4000}
    assert ARCH.cpus.bases(user)["ds"] == LIVE_USER["ds"]


def test_a_qemu_note_may_end_before_kernel_gs_base() -> None:
    """As before QEMU 3.0: what the user's gs_base is while its CPU is in the kernel, such a note does not tell."""
    notes = (
        Note("CORE", 1, prstatus(1, LIVE_USER)),
        Note("CORE", 1, prstatus(2, LIVE_KERNEL)),
        Note("QEMU", 0, qemu_note(0x1000, 0x7F00_1000, 0x7F00_2000, 0)[:-8]),
        Note("QEMU", 0, qemu_note(0x2000, 0x7F00_3000, 0xFFFF_8880_0001_0000, 0)[:-8]),
    )
    user, kernel = ARCH.cpus.notes(notes)
    assert ARCH.cpus.bases(user)["gs_base"] == 0x7F00_2000
    assert dict(ARCH.cpus.bases(kernel)) == {"fs_base": 0x7F00_3000}


@pytest.mark.parametrize("size", [0, 8, 335])
def test_a_note_too_short_for_registers_is_passed_over(size: int) -> None:
    assert ARCH.cpus.notes((Note("CORE", 1, prstatus(1, LIVE)[:size]),)) == ()


def test_qemu_notes_that_do_not_match_the_cpus_are_not_used() -> None:
    notes = (
        Note("CORE", 1, prstatus(1, LIVE)),
        Note("CORE", 1, prstatus(2, LIVE)),
        Note("QEMU", 0, qemu_note(0x1000, 1, 2, 3)),
    )
    assert all("cr3" not in note.regs for note in ARCH.cpus.notes(notes))


@pytest.mark.parametrize(
    ("cr3", "uses"),
    [
        pytest.param(0x1_2345_6000, True, id="plain"),
        pytest.param(0x1_2345_6005, True, id="with a PCID"),
        pytest.param(1 << 63 | 0x1_2345_6801, True, id="no flush"),
        pytest.param(0x1_2345_7000 | 0x806, True, id="the user's table with isolation"),
        pytest.param(0x1_2345_8000, False, id="another"),
        pytest.param(0x1_2345_4000, False, id="the one before"),
    ],
)
def test_whether_a_cpu_uses_a_page_table(cr3: int, uses: bool) -> None:
    assert ARCH.cpus.uses_pgd(CpuNote(0, 1, {"cr3": cr3}, user_mode=True), 0x1_2345_6000) is uses


def test_thread_bases_are_those_of_thread_struct_or_not_known() -> None:
    """struct thread_struct: es, ds, fsindex, gsindex (16 bits each), then fsbase and gsbase (64 each)."""
    raw = bytes(64) + struct.pack("<4H2Q", 1, 2, 0x63, 4, 0x7F00_0000_1740, 0x55)
    table = Table(
        {
            "task_struct": {
                "thread.es": (64, 2),
                "thread.ds": (66, 2),
                "thread.fsindex": (68, 2),
                "thread.gsindex": (70, 2),
                "thread.fsbase": (72, 8),
            }
        }
    )
    assert ARCH.registers.thread_bases(KernelAddr(STACK), ARCH.view(Stack(raw), KernelLayout([table]))) == {
        "es": 1,
        "ds": 2,
        "fs": 0x63,
        "gs": 4,
        "fs_base": 0x7F00_0000_1740,
        "gs_base": None,
    }
    assert {
        name: ARCH.registers.thread_members[name] - ARCH.registers.thread_members["es"]
        for name in ARCH.registers.thread_members
    } == {
        "es": 0,
        "ds": 2,
        "fsindex": 4,
        "gsindex": 6,
        "fsbase": 8,
        "gsbase": 16,
    }


def test_a_thread_pointer_is_known_by_what_it_points_to() -> None:
    """tcbhead_t: tcb, dtv, self."""
    value = 0x7F00_0000_1740

    def at(content: bytes | None) -> bool:
        return ARCH.registers.is_thread_pointer(
            value, lambda address, size: content if (address, size) == (value, 24) else None
        )

    assert at(struct.pack("<3Q", value, 7, value))
    assert not at(struct.pack("<3Q", value, 7, 0))
    assert not at(struct.pack("<3Q", 0, 7, value))
    assert not at(None)
    assert not ARCH.registers.is_thread_pointer(0, lambda _, size: bytes(size))
    assert not ARCH.registers.is_thread_pointer(value + 1, lambda _, __: struct.pack("<3Q", value + 1, 7, value + 1))


@pytest.mark.parametrize(("mode", "mapped"), [(0, True), (1, True), (2, False), (0xFFFF_FFFF, False)])
def test_the_gate_vma_is_there_unless_vsyscall_is_off(mode: int, mapped: bool) -> None:
    """enum { EMULATE, XONLY, NONE } vsyscall_mode; get_gate_vma() gives none with NONE."""
    table = Table(symbols={"gate_vma": 0xFFFF_FFFF_8200_0000, "vsyscall_mode": STACK})
    found = ARCH.gate.vma(ARCH.view(Stack(struct.pack("<I", mode)), KernelLayout([table])))
    assert found == (0xFFFF_FFFF_8200_0000 if mapped else None)
    assert ARCH.gate.vma(ARCH.view(Stack(b""), KernelLayout([table]))) is None
    assert ARCH.gate.vma(ARCH.view(Stack(struct.pack("<I", mode)), KernelLayout([Table()]))) is None


@pytest.mark.parametrize(
    ("key", "claimed"),
    [
        ("NUMBER(pgtable_l5_enabled)=0", True),
        ("SYMBOL(init_top_pgt)=ffffffff82a10000", True),
        ("NUMBER(VA_BITS)=48", False),
    ],
)
def test_vmcoreinfo_of_x86_64_is_recognised(key: str, claimed: bool) -> None:
    assert ARCH.claims(parse_vmcoreinfo(f"OSRELEASE=7.2.13\n{key}\n".encode())) is claimed
