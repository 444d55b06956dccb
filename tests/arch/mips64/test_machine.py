"""mips64 and mips64el by literal numbers: the kernel's headers, and the cores that it wrote, say what must be.

Tests arch/mips64el/machine.py, layout/which_machine.py.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry, saved_user_regs
from tests.builders.kernelimage import Table
from tests.builders.paging import FlatContainer
from tests.builders.places import Bytes
from tests.builders.prstatus import elf_prstatus
from vmcore2core.addresses import KernelAddr, PhysAddr
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.base import Arch
from vmcore2core.arch.mips64.machine import ARCH as BIG
from vmcore2core.arch.mips64el.machine import ARCH as LITTLE
from vmcore2core.arch.riscv64.machine import ARCH as RISCV
from vmcore2core.arch.spec import CoreMachine, PageTableSpec
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, NotMapped
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo
from vmcore2core.layout.which_machine import claiming
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory

# As Debian's 6.1 kernel (5kc-malta) writes it.
TEXT = """\
OSRELEASE=6.1.0-50-5kc-malta
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff827aa5e0
SYMBOL(swapper_pg_dir)=ffffffff82a50000
SYMBOL(_stext)=ffffffff818f0400
"""
MM = KernelAddr(0x9000_0000_0360_0000)
TASK = KernelAddr(0x9000_0000_0370_0000)
STACK = 0x9000_0000_0380_0000
INVALID = {"invalid_pte_table": 0xFFFF_FFFF_82A5_2000, "invalid_pmd_table": 0xFFFF_FFFF_82A5_3000}
BOTH = pytest.mark.parametrize("arch", [LITTLE, BIG], ids=["little", "big"])


def info(text: str = TEXT) -> VmcoreInfo:
    return parse_vmcoreinfo(text.encode())


def order(arch: Arch) -> str:
    return {"little": "<", "big": ">"}[arch.byte_order]


def user_spec(
    page_size: int = 4096,
    symbols: dict[str, int] | None = None,
    constants: dict[str, int] | None = None,
    *,
    arch: Arch = LITTLE,
    task_size: int = 1 << 40,
) -> PageTableSpec:
    numbers = {"_CACHE_SHIFT": 11} if constants is None else constants
    table = Table({"mm_struct": {"task_size": (48, 8)}}, symbols=INVALID if symbols is None else symbols)
    layout = KernelLayout([Numbers(numbers), table])
    memory = Bytes({MM: bytes(48) + struct.pack(f"{order(arch)}Q", task_size)})
    kernel_map = arch.paging.kernel_map(info(TEXT.replace("4096", str(page_size))))
    return arch.paging.user_page_table(kernel_map, MM, arch.view(memory, layout))


class Numbers(Table):
    """A layout source of constants."""

    def __init__(self, numbers: dict[str, int]) -> None:
        super().__init__()
        self.numbers = numbers

    def constant(self, name: str) -> int | None:
        return self.numbers.get(name)


# enum pgtable_bits with RIXI and huge pages: 0 PRESENT, 1 WRITE, 2 ACCESSED, 3 MODIFIED, 4 HUGE, 5 SPECIAL, 6 NO_EXEC,
# 7 NO_READ, 8 GLOBAL, 9 VALID, 10 DIRTY, 11-13 cache, 14 on PFN.


@pytest.mark.parametrize(
    ("entry", "kind", "paddr"),
    [
        pytest.param(0, NONE, 0, id="nothing"),
        pytest.param(0x100, NONE, 0, id="the kernel's nothing is global"),
        pytest.param(0x3712 << 14 | 0x1205, LEAF, 0x371_2000, id="text"),
        pytest.param(0x3712 << 14 | 0x160F, LEAF, 0x371_2000, id="data"),
        pytest.param(0x3712 << 14 | 0x108D, LEAF, 0x371_2000, id="PROT_NONE: present, not valid"),
        pytest.param(0x9_0000 << 14 | 0x160F, LEAF, 0x9000_0000, id="above 2 GiB"),
        pytest.param((1 << 36) - 1 << 14 | 0x160F, LEAF, 0xFFFF_FFFF_F000, id="the highest page"),
        pytest.param(1 << 50 | 0x160F, BAD, 0, id="an address that no machine has"),
        pytest.param(0x1234 << 24 | 3 << 16, NOT_PRESENT, 0, id="swap"),
    ],
)
def test_a_pte_reads_as_the_kernel_says(entry: int, kind: int, paddr: int) -> None:
    assert read_entry(user_spec(), "pte", entry) == (kind, paddr)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pmd", 0x9000_0000_0640_4000, TABLE, 0x640_4000, id="pte table, cache attribute 2"),
        pytest.param("pgd", 0x9800_0000_0640_4000, TABLE, 0x640_4000, id="pmd table, cache attribute 3"),
        pytest.param("pgd", 0xA800_0001_0640_4000, TABLE, 0x1_0640_4000, id="pmd table, cache attribute 5"),
        pytest.param("pgd", 0xFFFF_FFFF_8240_4000, TABLE, 0x240_4000, id="in CKSEG0"),
        pytest.param("pmd", INVALID["invalid_pte_table"], NONE, 0, id="invalid_pte_table"),
        pytest.param("pgd", INVALID["invalid_pmd_table"], NONE, 0, id="invalid_pmd_table"),
        pytest.param("pgd", 0, NONE, 0, id="zero"),
        pytest.param("pgd", 0x9000_0000_0640_4008, BAD, 0, id="a table within a page"),
        pytest.param("pgd", 0x9001_0000_0640_4000, BAD, 0, id="a table that no machine has"),
        pytest.param("pgd", 0xFFFF_FFFF_A240_4000, BAD, 0, id="in CKSEG1"),
        pytest.param("pgd", 0x640_4000, BAD, 0, id="a physical address"),
        pytest.param("pmd", 0x3600 << 14 | 0x161F, LEAF, 0x360_0000, id="2M"),
        pytest.param("pmd", 0x3700 << 14 | 0x161F, BAD, 0, id="2M, misaligned"),
        pytest.param("pmd", 0x3600 << 14 | 0x109D, LEAF, 0x360_0000, id="2M PROT_NONE"),
        pytest.param("pmd", 0x3600 << 14 | 0x101E, NOT_PRESENT, 0, id="2M, being changed"),
        pytest.param("pgd", 0x3600 << 14 | 0x161F, BAD, 0, id="no huge page is that large"),
    ],
)
def test_an_upper_entry_reads_as_the_kernel_says(level: str, entry: int, kind: int, paddr: int) -> None:
    assert read_entry(user_spec(), level, entry) == (kind, paddr)


@pytest.mark.parametrize(
    "constants",
    [
        # Without huge pages the enumerators behind them are one less; VMCOREINFO's keys for MIPS are masks.
        {"_CACHE_SHIFT": 10},
        {"_PFN_MASK": -(1 << 13)},
        {"_PFN_MASK": (1 << 64) - (1 << 13)},
        {"_PAGE_GLOBAL": 1 << 7},
        {"_PAGE_VALID": 1 << 8},
    ],
)
def test_where_the_frame_number_is_the_layout_tells(constants: dict[str, int]) -> None:
    spec = user_spec(constants=constants)
    assert read_entry(spec, "pte", 0x3712 << 13 | 0x905) == (LEAF, 0x371_2000)
    assert read_entry(spec, "pte", 0x80) == (NONE, 0)


@pytest.mark.parametrize("constants", [{}, {"_CACHE_SHIFT": 40}, {"_PFN_MASK": 0}])
def test_where_nothing_tells_the_frame_number_no_page_is_made_up(constants: dict[str, int]) -> None:
    with pytest.raises(LayoutUnknown, match="_CACHE_SHIFT"):
        user_spec(constants=constants)


def test_a_larger_page_moves_the_frame_number() -> None:
    assert read_entry(user_spec(16384), "pte", 0xDC4 << 16 | 0x160F) == (LEAF, 0x371_0000)
    assert read_entry(user_spec(65536), "pte", 0x371 << 18 | 0x160F) == (LEAF, 0x371_0000)


PTE, PMD, PUD = (f"invalid_{name}_table" for name in ("pte", "pmd", "pud"))


@pytest.mark.parametrize(
    ("page_size", "symbols", "task_size", "shifts", "top"),
    [
        (4096, (PTE, PMD), 1 << 40, [30, 21, 12], 10),
        (4096, (PTE, PMD, PUD), 1 << 48, [39, 30, 21, 12], 9),
        (4096, (), 1 << 40, [30, 21, 12], 10),
        (8192, (PTE, PMD), 1 << 40, [33, 23, 13], 10),
        (16384, (PTE, PMD), 1 << 40, [36, 25, 14], 11),
        (16384, (PTE, PMD), 1 << 48, [36, 25, 14], 12),
        (65536, (PTE,), 1 << 40, [29, 16], 13),
        (65536, (PTE, PMD), 1 << 48, [42, 29, 16], 13),
    ],
)
def test_the_levels_are_those_of_the_configuration(
    page_size: int, symbols: tuple[str, ...], task_size: int, shifts: list[int], top: int
) -> None:
    spec = user_spec(page_size, dict.fromkeys(symbols, 0xFFFF_FFFF_82A5_0000), task_size=task_size)
    assert [level.shift for level in spec.levels] == shifts
    bits = {4096: 9, 8192: 10, 16384: 11, 65536: 13}[page_size]
    assert [level.bits for level in spec.levels] == [top, *[bits] * (len(shifts) - 1)]
    assert (spec.page_size, spec.entry_dtype) == (page_size, np.dtype("<u8"))


@BOTH
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_the_kernels_page_table_tells_the_invalid_tables(arch: Arch, levels: int) -> None:
    """pgd_init(), pmd_init(): all of a table leads to the next level's invalid one; vmalloc's first entry does not."""
    form, root = f"{order(arch)}Q", 0xFFFF_FFFF_82A5_0000
    tables = [root + 0x2000 + 0x1000 * i for i in range(levels - 1)]
    places, before = {}, root
    for table in tables:
        entries = [0x9000_0000_0340_0000, *[table] * 1023] if before == root else [table] * 512
        places[before] = struct.pack(f"{order(arch)}{len(entries)}Q", *entries)
        before = table
    places[before] = bytes(4096)
    layout = KernelLayout([Numbers({"_CACHE_SHIFT": 11}), Table({"mm_struct": {"task_size": (48, 8)}})])
    memory = Bytes({**places, MM: bytes(48) + struct.pack(form, 1 << 40)})
    kernel_map = arch.paging.kernel_map(info())
    spec = arch.paging.user_page_table(kernel_map, MM, arch.view(memory, layout))
    assert len(spec.levels) == levels
    names = [level.name for level in spec.levels]
    assert [read_entry(spec, name, table) for name, table in zip(names, tables, strict=False)] == [(NONE, 0)] * (
        levels - 1
    )
    assert len(arch.paging.whole_map(kernel_map, arch.view(memory, layout)).spec.levels) == levels


def test_the_exports_keys_tell_the_levels() -> None:
    constants = {"_CACHE_SHIFT": 11, "PTRS_PER_PGD": 4096, "CONFIG_PGTABLE_LEVELS": 3}
    assert [level.bits for level in user_spec(16384, {}, constants).levels] == [12, 11, 11]


@BOTH
def test_the_kernel_is_in_its_segments(arch: Arch) -> None:
    made = arch.paging.kernel_map(info())
    assert made.root == 0x2A5_0000
    assert made.spec.entry_dtype == np.dtype(f"{order(arch)}u8")
    windows = {mapping.range.start: (mapping.range.size, mapping.paddr) for mapping in made.linear}
    assert windows == {
        0xFFFF_FFFF_8000_0000: (512 << 20, 0),
        0xFFFF_FFFF_A000_0000: (512 << 20, 0),
        **{0x8000_0000_0000_0000 + cca * 0x0800_0000_0000_0000: (1 << 48, 0) for cca in range(8)},
    }
    (image,) = made.searched
    assert (image.range.start, image.paddr) == (0xFFFF_FFFF_818F_0000, 0x18F_0000)


def test_whole_map_takes_the_levels_of_the_symbols() -> None:
    layout = KernelLayout([Table(symbols=dict.fromkeys((PTE, PMD, PUD), 0xFFFF_FFFF_82A5_0000))])
    made = LITTLE.paging.whole_map(LITTLE.paging.kernel_map(info()), LITTLE.view(Bytes({}), layout))
    assert [level.name for level in made.spec.levels] == ["pgd", "pud", "pmd", "pte"]


@pytest.mark.parametrize("key", ["SYMBOL(swapper_pg_dir)", "SYMBOL(_stext)", "PAGESIZE"])
def test_a_missing_key_is_named(key: str) -> None:
    text = "".join(line for line in TEXT.splitlines(keepends=True) if not line.startswith(key))
    with pytest.raises(LayoutUnknown) as caught:
        LITTLE.paging.kernel_map(info(text))
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("4096", "1024", "PAGESIZE is 1024"),
        ("=ffffffff818f0400", "=c00000000000f000", "_stext is at 0xc00000000000f000"),
        ("=ffffffff818f0400", "=80100000", "_stext is at 0x80100000.*32-bit kernels are not read"),
    ],
)
def test_what_no_kernel_has_is_an_error(old: str, new: str, says: str) -> None:
    with pytest.raises(LayoutInvalid, match=says):
        LITTLE.paging.kernel_map(info(TEXT.replace(old, new)))


def test_the_text_is_known_for_what_it_is() -> None:
    assert LITTLE.claims(info())
    assert LITTLE.claims(info("NUMBER(_PFN_MASK)=-16384\n"))
    assert not LITTLE.claims(info("SYMBOL(swapper_pg_dir)=9000000001b20000\n"))  # loongarch64
    assert not LITTLE.claims(info(TEXT + "SYMBOL(init_top_pgt)=ffffffff82307000\n"))  # x86-64
    assert not LITTLE.claims(info(TEXT + "NUMBER(phys_base)=16777216\n"))
    riscv = info(TEXT + "NUMBER(va_kernel_pa_offset)=0xffffffff00000000\n")
    assert (LITTLE.claims(riscv), RISCV.claims(riscv), RISCV.claims(info())) == (False, True, False)
    assert not LITTLE.claims(info("OSRELEASE=6.1\n"))


def test_of_two_byte_orders_the_files_is_taken() -> None:
    assert arch_for_machine(8, "little") is LITTLE
    assert arch_for_machine(8, "big") is BIG
    assert arch_for_machine(8) in (LITTLE, BIG)


@BOTH
@pytest.mark.parametrize("told", [True, False])
def test_where_no_file_tells_the_byte_order_the_kernels_page_table_does(arch: Arch, told: bool) -> None:
    """As in raw memory, and in QEMU's saved machines."""
    text = info(TEXT.replace("ffffffff82a50000", "ffffffff80004000"))
    data = bytearray(0x8000)
    data[0x4000:0x6000] = struct.pack(f"{order(arch)}Q", 0xFFFF_FFFF_8000_6000) * 1024
    container = FlatContainer(bytes(data))
    container.byte_order = arch.byte_order if told else None  # type: ignore[assignment]
    assert claiming(container, text, PhysicalMemory(container)) is arch


def test_a_swap_entry_names_type_and_offset() -> None:
    """__swp_type(), __swp_offset(); bit 23 is exclusive since Linux 6.3."""
    entries, sizes = np.array([0x1234 << 24 | 1 << 23 | 3 << 16], np.uint64), np.array([4096], np.uint64)
    types, offsets = LITTLE.swap_entries.type_and_offset(entries, sizes, 4096, KernelLayout([]))
    assert (types.tolist(), offsets.tolist()) == ([3], [0x1234])


def test_page_structures_are_an_array() -> None:
    layout = KernelLayout([Table(symbols={"mem_map": 0xFFFF_FFFF_82A8_7388})])
    where = {0xFFFF_FFFF_82A8_7388: struct.pack("<Q", 0x9000_0000_0FC0_0000)}
    assert LITTLE.paging.vmemmap(LITTLE.view(Bytes(where), layout)) == 0x9000_0000_0FC0_0000
    assert LITTLE.paging.vmemmap(LITTLE.view(Bytes({}), KernelLayout([]))) is None


# Walks: the pgd is at physical 0x4000 (two pages), the pmd at 0x6000, the pte at 0x7000, the invalid ones behind them.


@BOTH
@pytest.mark.parametrize("known", [True, False])
def test_a_walk_passes_over_invalid_tables(arch: Arch, known: bool) -> None:
    window, form = 0x9000_0000_0000_0000, f"{order(arch)}Q"
    data = bytearray(0xA000)
    for table, nothing, count in ((0x4000, 0x8000, 1024), (0x6000, 0x9000, 512), (0x8000, 0x9000, 512)):
        data[table : table + 8 * count] = struct.pack(form, window + nothing) * count
    for table, slot, entry in (
        (0x4000, 1000, window + 0x6000),
        (0x6000, 2, window + 0x7000),
        (0x7000, 3, 0x3712 << 14 | 0x160F),
    ):
        struct.pack_into(form, data, table + 8 * slot, entry)
    memory = PhysicalMemory(FlatContainer(bytes(data)))
    symbols = {PTE: window + 0x9000, PMD: window + 0x8000} if known else {}
    spec, address = user_spec(symbols=symbols, arch=arch), 1000 << 30 | 2 << 21 | 3 << 12
    assert translate(memory, spec, PhysAddr(0x4000), address + 5) == (0x371_2000, 4096)
    with pytest.raises(NotMapped):
        translate(memory, spec, PhysAddr(0x4000), 5 << 30)
    # Where they are not known, each is walked: a walk has a bound of tables.
    first, last = (0, 1024) if known else (999, 1002)
    ranges = Ranges(np.array([first << 30], np.uint64), np.array([last << 30], np.uint64))
    found = [
        row
        for batch in walk(memory, spec, PhysAddr(0x4000), ranges)
        for row in zip(batch.vaddr.tolist(), batch.kind.tolist(), batch.paddr.tolist(), strict=True)
    ]
    assert found == [(address, RunKind.LEAF, 0x371_2000)]


# Registers: struct pt_regs of arch/mips/include/asm/ptrace.h, 38 words; 32 bytes are above it.

GPRS = "zero at v0 v1 a0 a1 a2 a3 a4 a5 a6 a7 t0 t1 t2 t3 s0 s1 s2 s3 s4 s5 s6 s7 t8 t9 k0 k1 gp sp fp ra".split()
USER = {name: 0x100 + i for i, name in enumerate([*GPRS, "hi", "lo", "badvaddr"])} | {
    "sp": 0xFF_EAA8_CC60,
    "epc": 0x1_2000_555C,
    "status": 0x500_A4F3,
    "cause": 0x1080_0000,
}
THREAD_INFO = 0x9000_0000_0380_0000  # at the bottom of the stack


def frame(arch: Arch, octeon: bool = False, **changed: int) -> bytes:
    regs = USER | changed
    values = [regs[name] for name in (*GPRS, "status", "hi", "lo", "badvaddr", "cause", "epc")]
    return struct.pack(f"{order(arch)}38Q", *values) + bytes(96 * octeon + 32)


def saved(arch: Arch, top: bytes, size: int = 16384, page_size: int = 4096) -> dict[str, int] | None:
    return saved_user_regs(arch, TASK, STACK, Bytes({STACK: top.rjust(size, b"\0")}), Numbers({"PAGESIZE": page_size}))


def machine(arch: Arch, flags: int, task_size: int | None = 0x7FFF_8000) -> CoreMachine:
    """struct thread_info: the task, the flags."""
    places = {
        TASK: bytes(8) + struct.pack(f"{order(arch)}Q", STACK),
        STACK: struct.pack(f"{order(arch)}2Q", TASK, flags),
    }
    layout = KernelLayout([Table({"task_struct": {"stack": (8, 8)}})])
    return arch.cores.process_machine(TASK, {}, task_size, arch.view(Bytes(places), layout))


N64, N32, O32 = 0, 0x90_0020, 0xD0_0020
"""thread_info.flags as Debian's kernel had them: TIF_32BIT_ADDR is bit 23, TIF_32BIT_REGS bit 22."""


@BOTH
def test_registers_are_where_the_kernels_core_has_them(arch: Arch) -> None:
    """uapi/asm/reg.h: MIPS64_EF_R0 0, LO 32, HI, CP0_EPC, CP0_BADVADDR, CP0_STATUS, CP0_CAUSE 37; MIPS32_EF_R0 6."""
    for top, size, page_size in ((frame(arch), 16384, 4096), (frame(arch, octeon=True), 65536, 65536)):
        found = saved(arch, top, size, page_size)
        assert found is not None
        assert arch.registers.names == (*GPRS, "lo", "hi", "epc", "badvaddr", "status", "cause")
        expected = [0, *(USER[name] for name in GPRS[1:26]), 0, 0, *(USER[name] for name in GPRS[28:])]
        expected += [USER[name] for name in ("lo", "hi", "epc", "badvaddr", "status", "cause")]
        for flags, raw in (
            (N64, struct.pack(f"{order(arch)}45Q", *expected, *[0] * 7)),
            (N32, struct.pack(f"{order(arch)}45Q", *expected, *[0] * 7)),
            (O32, struct.pack(f"{order(arch)}45I", *[0] * 6, *(value & 0xFFFF_FFFF for value in expected), 0)),
        ):
            assert arch.cores.gregs(found, machine(arch, flags)) == raw


@BOTH
def test_the_abi_is_what_the_threads_flags_say(arch: Arch) -> None:
    made = [machine(arch, flags) for flags in (N64, N32, O32)]
    assert [(one.e_machine, one.elf_class, one.e_flags, one.greg_size, one.uid_size) for one in made] == [
        (8, 64, 0, None, None),
        (8, 32, 0x20, 8, 4),
        (8, 32, 0, None, 4),
    ]


def test_where_the_flags_are_not_known_no_32_bit_core_is_made() -> None:
    layout = KernelLayout([Table()])
    small, large, unknown = (
        LITTLE.cores.process_machine(TASK, {}, size, LITTLE.view(Bytes({}), layout))
        for size in (0x7FFF_8000, 1 << 40, None)
    )
    assert "n32 or o32" in (small.unsupported or "")
    assert (large.elf_class, unknown.elf_class) == (64, 64)
    assert (large.unsupported, unknown.unsupported) == (None, None)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(frame(LITTLE, status=0x500_A4E3), id="from the kernel"),
        pytest.param(frame(LITTLE, epc=0xFFFF_FFFF_818F_0400), id="kernel pc"),
        pytest.param(frame(LITTLE, epc=0x1_2000_555E), id="pc within an instruction"),
        pytest.param(frame(LITTLE, sp=STACK), id="kernel sp"),
        pytest.param(frame(BIG), id="in the other byte order"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff" * 16384, id="ones"),
    ],
)
def test_what_cannot_be_user_registers_is_none(raw: bytes) -> None:
    assert saved(LITTLE, raw) is None


def test_in_a_system_call_what_the_kernels_functions_keep_is_not_made_up() -> None:
    """Cause.ExcCode is 8: handle_sys() does SAVE_SOME, and what pt_regs has of $16 to $23 and $30 is older."""
    found = saved(LITTLE, frame(LITTLE, cause=0x1080_0020))
    assert found is not None
    assert {*LITTLE.registers.names} - {*found} == {*GPRS[16:24], "fp"}


@BOTH
def test_crash_notes_tell_pid_and_mode(arch: Arch) -> None:
    values = [0, *(USER[name] for name in (*GPRS[1:], "lo", "hi", "epc", "badvaddr"))]

    def note(status: int) -> bytes:
        gregs = struct.pack(f"{order(arch)}45Q", *values, status, 0, *[0] * 7)
        return elf_prstatus(97, gregs, order=order(arch))

    user, kernel = arch.cpus.notes(
        (
            Note("CORE", 1, note(0x500_A4F3)),
            Note("CORE", 1, note(0x500_A4E3)),
            Note("CORE", 1, bytes(479)),
            Note("X", 1, bytes(480)),
        )
    )
    assert (user.pr_pid, user.user_mode, user.regs["epc"], user.regs["s0"]) == (97, True, 0x1_2000_555C, USER["s0"])
    assert (kernel.number, kernel.user_mode) == (1, False)


@BOTH
def test_the_vdsos_image_is_the_abis(arch: Arch) -> None:
    """struct mips_vdso_image begins with the address of the image."""
    names = {"vdso_image": N64, "vdso_image_n32": N32, "vdso_image_o32": O32}
    symbols = {name: 0xFFFF_FFFF_8266_9E00 + 64 * i for i, name in enumerate(names)}
    memory = Bytes({at: struct.pack(f"{order(arch)}Q", at + 0x1000) for at in symbols.values()})
    layout = KernelLayout([Table(symbols=symbols)])
    assert arch.vdso is not None
    for name, flags in names.items():
        assert arch.vdso.image(MM, machine(arch, flags), arch.view(memory, layout)) == symbols[name] + 0x1000
    assert arch.vdso.image(MM, machine(arch, N64), arch.view(memory, KernelLayout([]))) is None


@pytest.mark.parametrize(
    ("code", "call"),
    [
        # objdump, each with a nop in its delay slot: jal, jalr t9, jalr t1,t9, bal, bltzal, jr ra, j, b.
        pytest.param(0x0C63_C100, True, id="jal"),
        pytest.param(0x0320_F809, True, id="jalr t9"),
        pytest.param(0x0320_6809, False, id="jalr t1, t9"),
        pytest.param(0x0411_0004, True, id="bal"),
        pytest.param(0x0450_0004, True, id="bltzal v0"),
        pytest.param(0x03E0_0008, False, id="jr ra"),
        pytest.param(0x0863_C100, False, id="j"),
        pytest.param(0x1000_0004, False, id="b"),
    ],
)
@BOTH
def test_a_return_address_is_behind_a_call_and_its_delay_slot(arch: Arch, code: int, call: bool) -> None:
    spec = arch.unwind.spec(machine(arch, N64))
    assert spec is not None
    raw = struct.pack(f"{order(arch)}2I", code, 0)
    assert (spec.ends_with_call(raw), spec.ends_with_call(raw[4:])) == (call, False)


@BOTH
def test_signal_frames_are_where_the_kernel_puts_them(arch: Arch) -> None:
    """Offsets of arch/mips/kernel/signal*.c: struct rt_sigframe, rt_sigframe_n32, rt_sigframe32 and sigframe32."""
    found = {}
    for abi, flags in (("n64", N64), ("n32", N32), ("o32", O32)):
        spec = arch.unwind.spec(machine(arch, flags))
        assert spec is not None
        found[abi] = {
            (struct.unpack(f"{order(arch)}2I", one.code), one.entry): (
                one.mcontext,
                one.mcontext + one.registers.fields["s0"][1],  # type: ignore[index]
                one.mcontext + one.registers.fields["pc"][1],  # type: ignore[index]
            )
            for one in spec.trampolines
        }
        assert (spec.registers[16], spec.registers[31], spec.registers[spec.return_address]) == ("s0", "ra", "epc")
    syscall = 0xC
    assert found["n64"] == {((0x2402_145B, syscall), at): (192, 192 + 16 * 8, 192 + 72 * 8) for at in (0, 4)}
    assert found["n32"] == {((0x2402_1843, syscall), at): (176, 176 + 16 * 8, 176 + 72 * 8) for at in (0, 4)}
    assert found["o32"] == {
        ((number, syscall), at): (start, start + 16 + 16 * 8, start + 8)
        for number, start in ((0x2402_1061, 176), (0x2402_1017, 24))
        for at in (0, 4)
    }
