"""loongarch64 by literal numbers: the kernel's headers, and the cores that it wrote, say what must be."""

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
from vmcore2core.arch.loongarch64.machine import ARCH
from vmcore2core.arch.loongarch64.unwind import ends_with_call
from vmcore2core.arch.spec import KernelMap, PageTableSpec
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, NotMapped
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory

# As Debian's 7.2 kernel writes it.
TEXT = """\
OSRELEASE=7.2.13+deb14-loong64
PAGESIZE=16384
SYMBOL(init_uts_ns)=9000000001ab7280
SYMBOL(swapper_pg_dir)=9000000001b20000
SYMBOL(_stext)=9000000000220000
NUMBER(VMALLOC_START)=0xffff800082008000
"""
INVALID = {"invalid_pte_table": 0x9000_0000_01B2_4000, "invalid_pmd_table": 0x9000_0000_01B2_8000}
PUD = {"invalid_pud_table": 0x9000_0000_01B2_C000}
MM = KernelAddr(0x9000_0000_0600_0000)


def info(text: str = TEXT) -> VmcoreInfo:
    return parse_vmcoreinfo(text.encode())


def kernel_map(page_size: int = 16384) -> KernelMap:
    return ARCH.paging.kernel_map(info(TEXT.replace("16384", str(page_size))))


def user_spec(page_size: int = 16384, **symbols: int) -> PageTableSpec:
    return ARCH.paging.user_page_table(
        kernel_map(page_size), MM, ARCH.view(Bytes({}), KernelLayout([Table(symbols=symbols)]))
    )


def decoded(entry: int, level: str = "pte", page_size: int = 16384) -> tuple[int, int]:
    """Return kind and physical address."""
    spec = user_spec(page_size, **INVALID)
    return read_entry(spec, level, entry)


# arch/loongarch/include/asm/pgtable-bits.h: 0 VALID, 1 DIRTY, 2-3 PLV, 4-5 cache, 6 GLOBAL or HUGE, 7 PRESENT, 8 WRITE,
# 9 MODIFIED, 10 PROTNONE, 11 SPECIAL, 12 on PFN (HGLOBAL of a huge page), 60 PRESENT_INVALID, 61 NO_READ, 62 NO_EXEC.


@pytest.mark.parametrize(
    ("entry", "kind", "paddr"),
    [
        pytest.param(0, NONE, 0, id="nothing"),
        pytest.param(0x40, NONE, 0, id="the kernel's nothing is global"),
        pytest.param(0x8234_C39F, LEAF, 0x8234_C000, id="user rw"),
        pytest.param(1 << 62 | 0x8234_C39F, LEAF, 0x8234_C000, id="no exec"),
        pytest.param(0x6000_0000_8234_C41C, LEAF, 0x8234_C000, id="PROT_NONE"),
        pytest.param(0x8234_C09E, LEAF, 0x8234_C000, id="old: VALID, which stands for accessed, is clear"),
        pytest.param(0x8234_C8D3, LEAF, 0x8234_C000, id="global, special"),
        pytest.param(0xFFFF_FFFF_C080, LEAF, 0xFFFF_FFFF_C000, id="the highest page"),
        pytest.param(0x80, LEAF, 0, id="page 0"),
        pytest.param(1 << 59 | 0x8234_C39F, LEAF, 0x8234_C000, id="_PAGE_DEVMAP of older kernels"),
        pytest.param(1 << 48 | 0x8234_C39F, BAD, 0, id="an address that the window cannot have"),
        pytest.param(1 << 58 | 0x8234_C39F, BAD, 0, id="bit 58"),
        pytest.param(0x1234 << 24 | 3 << 16, NOT_PRESENT, 0, id="swap"),
        pytest.param(0x1234 << 24 | 3 << 16 | 1 << 23, NOT_PRESENT, 0, id="swap, exclusive"),
    ],
)
def test_a_pte_reads_as_the_kernel_says(entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry) == (kind, paddr)


def test_pages_of_4k_have_two_more_bits() -> None:
    assert decoded(0x8234_739F, page_size=4096) == (LEAF, 0x8234_7000)
    assert decoded(0x8234_739F, page_size=65536) == (LEAF, 0x8234_0000)
    # HGLOBAL is within what would be the address.
    assert decoded(0x8220_13DF, "pmd", page_size=4096) == (LEAF, 0x8220_0000)
    assert decoded(0x8220_23DF, "pmd", page_size=4096) == (BAD, 0)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pmd", 0x9000_0000_0640_4000, TABLE, 0x640_4000, id="pte table"),
        pytest.param("pgd", 0x9000_0000_0640_4000, TABLE, 0x640_4000, id="pmd table"),
        pytest.param("pmd", INVALID["invalid_pte_table"], NONE, 0, id="invalid_pte_table"),
        pytest.param("pgd", INVALID["invalid_pmd_table"], NONE, 0, id="invalid_pmd_table"),
        pytest.param("pgd", 0, NONE, 0, id="zero"),
        pytest.param("pmd", 0x9000_0000_0640_4008, BAD, 0, id="a table within a page"),
        pytest.param("pmd", 0x8000_0000_0640_4000, BAD, 0, id="a table in the uncached window"),
        pytest.param("pgd", 0x640_4000, BAD, 0, id="a physical address"),
        pytest.param("pmd", 0x8200_03DF, LEAF, 0x8200_0000, id="32M"),
        pytest.param("pmd", 0x8200_13DF, LEAF, 0x8200_0000, id="32M, HGLOBAL"),
        pytest.param("pmd", 0x8300_03DF, BAD, 0, id="32M, misaligned"),
        pytest.param("pmd", 1 << 60 | 0x8200_035C, LEAF, 0x8200_0000, id="32M, being split"),
        pytest.param("pmd", 0x8200_045C, LEAF, 0x8200_0000, id="32M PROT_NONE"),
        pytest.param("pmd", 0x1234 << 24 | 30 << 16 | 0x40, NOT_PRESENT, 0, id="32M migrating"),
        pytest.param("pgd", 0x8200_03DF, BAD, 0, id="no huge page is that large"),
    ],
)
def test_an_upper_entry_reads_as_the_kernel_says(level: str, entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry, level) == (kind, paddr)


@pytest.mark.parametrize(
    ("page_size", "symbols", "shifts"),
    [
        # Kconfig's choices: 4KB_3LEVEL, 4KB_4LEVEL, 16KB_2LEVEL, 16KB_3LEVEL, 64KB_2LEVEL, 64KB_3LEVEL.
        (4096, INVALID, [30, 21, 12]),
        (4096, INVALID | PUD, [39, 30, 21, 12]),
        (16384, {"invalid_pte_table": 1}, [25, 14]),
        (16384, INVALID, [36, 25, 14]),
        (16384, {}, [36, 25, 14]),
        (65536, {"invalid_pte_table": 1}, [29, 16]),
        (65536, INVALID, [42, 29, 16]),
        (65536, {}, [29, 16]),
    ],
)
def test_the_invalid_tables_tell_the_levels(page_size: int, symbols: dict[str, int], shifts: list[int]) -> None:
    spec = user_spec(page_size, **symbols)
    assert [level.shift for level in spec.levels] == shifts
    assert {level.bits for level in spec.levels} == {{4096: 9, 16384: 11, 65536: 13}[page_size]}
    assert (spec.page_size, spec.entry_dtype) == (page_size, np.dtype("<u8"))


def test_the_kernel_is_in_its_window() -> None:
    made = kernel_map()
    assert made.root == 0x1B2_0000
    (linear,), (image,) = made.linear, made.searched
    assert (linear.range.start, linear.range.end, linear.paddr) == (0x9 << 60, 0x9001 << 48, 0)
    assert (image.range.start, image.paddr) == (0x9000_0000_0020_0000, 0x20_0000)


@pytest.mark.parametrize("key", ["SYMBOL(swapper_pg_dir)", "SYMBOL(_stext)", "PAGESIZE"])
def test_a_missing_key_is_named(key: str) -> None:
    text = "".join(line for line in TEXT.splitlines(keepends=True) if not line.startswith(key))
    with pytest.raises(LayoutUnknown) as caught:
        ARCH.paging.kernel_map(info(text))
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("16384", "8192", "PAGESIZE is 8192"),
        ("=9000000000220000", "=ffffffff80002000", "_stext is at 0xffffffff80002000"),
    ],
)
def test_what_no_kernel_has_is_an_error(old: str, new: str, says: str) -> None:
    with pytest.raises(LayoutInvalid, match=says):
        ARCH.paging.kernel_map(info(TEXT.replace(old, new)))


def test_the_text_is_known_for_what_it_is() -> None:
    assert ARCH.claims(info())
    assert not ARCH.claims(info("SYMBOL(swapper_pg_dir)=ffffffff82307000\n"))
    assert not ARCH.claims(info("OSRELEASE=6.1\n"))
    assert arch_for_machine(258) is ARCH


def test_a_swap_entry_names_type_and_offset() -> None:
    entries, sizes = np.array([0x1234 << 24 | 1 << 23 | 3 << 16], np.uint64), np.array([16384], np.uint64)
    types, offsets = ARCH.swap_entries.type_and_offset(entries, sizes, 16384, KernelLayout([]))
    assert (types.tolist(), offsets.tolist()) == ([3], [0x1234])


# Walks: tables of 16 KiB at physical 0x4000 (pgd), 0x8000 (pmd), 0xc000 (pte); the invalid ones at 0x10000, 0x14000.

WINDOW = 0x9000_0000_0000_0000


def tables(*entries: tuple[int, int, int]) -> PhysicalMemory:
    """Return memory with entries (table, slot, entry); all of the pgd and the pmd is invalid besides."""
    data = bytearray(0x40000)
    for table, nothing in ((0x4000, 0x14000), (0x8000, 0x10000), (0x14000, 0x10000)):
        data[table : table + 0x4000] = struct.pack("<Q", WINDOW + nothing) * 2048
    for table, slot, entry in entries:
        struct.pack_into("<Q", data, table + 8 * slot, entry)
    return PhysicalMemory(FlatContainer(bytes(data)))


@pytest.mark.parametrize(
    "symbols", [{}, {"invalid_pte_table": WINDOW + 0x10000, "invalid_pmd_table": WINDOW + 0x14000}]
)
def test_a_walk_passes_over_invalid_tables(symbols: dict[str, int]) -> None:
    memory = tables((0x4000, 1, WINDOW + 0x8000), (0x8000, 2, WINDOW + 0xC000), (0xC000, 3, 0x8234_C39F))
    spec, address = user_spec(**symbols), 1 << 36 | 2 << 25 | 3 << 14
    assert translate(memory, spec, PhysAddr(0x4000), address + 5) == (0x8234_C000, 16384)
    with pytest.raises(NotMapped):
        translate(memory, spec, PhysAddr(0x4000), address + 0x4000)
    with pytest.raises(NotMapped):
        translate(memory, spec, PhysAddr(0x4000), 5 << 36)
    ranges = Ranges(np.array([0], np.uint64), np.array([3 << 36], np.uint64))
    found = [
        row
        for batch in walk(memory, spec, PhysAddr(0x4000), ranges)
        for row in zip(batch.vaddr.tolist(), batch.kind.tolist(), batch.paddr.tolist(), strict=True)
    ]
    assert found == [(address, RunKind.LEAF, 0x8234_C000)]


# Registers: struct pt_regs of arch/loongarch/include/asm/ptrace.h, 40 words.

TASK = KernelAddr(0x9000_0000_0700_0000)
STACK = 0x9000_0000_0710_0000
GREGS = (
    "zero ra tp sp a0 a1 a2 a3 a4 a5 a6 a7 t0 t1 t2 t3 t4 t5 t6 t7 t8 u0 fp s0 s1 s2 s3 s4 s5 s6 s7 s8 "
    "orig_a0 csr_era csr_badv"
).split()
USER = {name: 0x100 + i for i, name in enumerate(GREGS)} | {"csr_era": 0x1_2004_E5C8, "sp": 0x7FFF_FBC0_1BD0}


def frame(regs: dict[str, int], prmd: int = 7) -> bytes:
    return struct.pack("<40Q", *(regs[name] for name in GREGS), 0xB0, prmd, 1, 0x71C1D, 0x0B_0000)


def saved(top: bytes, size: int = 16384) -> dict[str, int] | None:
    return saved_user_regs(ARCH, TASK, STACK, Bytes({STACK: top.rjust(size, b"\0")}), Table())


def test_user_registers_are_at_the_top_of_the_kernel_stack() -> None:
    for size in (16384, 65536):
        found = saved(frame(USER), size)
        assert found is not None
        raw = ARCH.cores.gregs(found, ARCH.cores.machine({}, None))
        # struct user_pt_regs: regs[32], orig_a0, csr_era, csr_badv, reserved[10].
        assert raw == struct.pack("<45Q", *(USER[name] for name in GREGS), *[0] * 10)
    assert saved(frame(USER, prmd=0xF)) == saved(frame(USER))  # watchpoints are on


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(frame(USER, prmd=4), id="from the kernel"),
        pytest.param(frame(USER, prmd=3), id="interrupts were off"),
        pytest.param(frame(USER, prmd=0x17), id="bits of PRMD that are reserved"),
        pytest.param(frame(USER | {"csr_era": WINDOW + 0x220000}), id="kernel pc"),
        pytest.param(frame(USER | {"sp": WINDOW + 0x220000}), id="kernel sp"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff" * 16384, id="ones"),
    ],
)
def test_what_cannot_be_user_registers_is_none(raw: bytes) -> None:
    assert saved(raw) is None


def test_a_lost_stack_has_no_registers() -> None:
    assert ARCH.registers.user_regs(TASK, KernelAddr(STACK), ARCH.view(Bytes({}), KernelLayout([Table()]))) is None


def cpu_note(pid: int, regs: dict[str, int], *csrs: int) -> bytes:
    """Pack struct elf_prstatus with 45 registers."""
    words = [*(regs[name] for name in GREGS), *csrs]
    return elf_prstatus(pid, struct.pack("<45Q", *words, *[0] * (45 - len(words))))


def test_qemus_notes_do_not_have_the_program_counter() -> None:
    """loongarch_cpu_write_elf64_note(): csr_era is the CSR; no orig_a0, no csr_crmd and csr_prmd."""
    floats = bytes(range(256)) + bytes(12)
    in_kernel = USER | {"sp": WINDOW + 0x188_BDC0}
    notes = (
        Note("CORE", 1, cpu_note(1, in_kernel)),
        Note("CORE", 2, floats),
        Note("CORE", 1, cpu_note(2, USER)),
        Note("CORE", 2, floats),
        Note("CORE", 1, bytes(479)),
        Note("LINUX", 1, bytes(480)),
    )
    first, second = ARCH.cpus.notes(notes)
    assert (first.number, first.pr_pid, first.user_mode) == (0, 1, False)
    assert (second.number, second.pr_pid, second.user_mode) == (1, 2, True)
    assert {"csr_era", "orig_a0"}.isdisjoint(second.regs)
    assert {name: second.regs[name] for name in GREGS[1:32]} == {name: USER[name] for name in GREGS[1:32]}
    assert [(note.n_type, note.desc) for note in second.regsets] == [(2, floats)]
    assert ARCH.registers.thread_pointer(second.regs) == USER["tp"]


def test_kdumps_notes_have_it() -> None:
    """loongarch_dump_regs64(): csr_crmd, csr_prmd, csr_euen, csr_ecfg, csr_estat behind csr_badv."""
    user, kernel = ARCH.cpus.notes(
        (Note("CORE", 1, cpu_note(97, USER, 0xB0, 7, 0, 1, 2)), Note("CORE", 1, cpu_note(0, USER, 0xB0, 4, 0, 1, 2)))
    )
    assert (user.user_mode, user.regs["csr_era"], user.regs["orig_a0"]) == (True, USER["csr_era"], USER["orig_a0"])
    assert kernel.user_mode is False
    assert user.regs["reserved0"] == 0  # no process's core has these


def test_a_note_is_of_the_processor_that_has_the_number() -> None:
    layout = KernelLayout([Table(symbols={"__cpu_logical_map": 0x5000})])
    memory = Bytes({0x5000: struct.pack("<3i", 2, 0, 1)})
    assert [ARCH.cpu_numbers.number(cpu, ARCH.view(memory, layout)) for cpu in range(3)] == [2, 0, 1]
    assert ARCH.cpu_numbers.number(1, ARCH.view(memory, KernelLayout([Table()]))) == 1


@pytest.mark.parametrize(
    ("code", "call"),
    [
        # objdump: bl 0x10; jirl $ra, $t0, 0; jr $t0; ret; b 0x10.
        pytest.param("00100054", True, id="bl"),
        pytest.param("8101004c", True, id="jirl ra"),
        pytest.param("8001004c", False, id="jr t0"),
        pytest.param("2000004c", False, id="ret"),
        pytest.param("00100050", False, id="b"),
        pytest.param("1000", False, id="half of one"),
    ],
)
def test_calls_are_what_writes_ra(code: str, call: bool) -> None:
    assert ends_with_call(bytes.fromhex(code)) is call


def test_dwarf_numbers_and_the_signal_frame() -> None:
    spec = ARCH.unwind.spec(ARCH.cores.machine({}, None))
    assert [spec.registers[i] for i in (0, 1, 2, 3, 4, 11, 12, 20, 21, 22, 23, 31, 64)] == (
        "zero ra tp sp a0 a7 t0 t8 u0 fp s0 s8 csr_era".split()
    )
    assert spec.preserved == {2, 21, 22, *range(23, 32)}
    assert (spec.stack_pointer, spec.frame_pointer, spec.link_register, spec.frame_record) == (3, 22, 1, -16)
    first = spec.trampolines[0]
    # 128 of siginfo; uc_flags, uc_link, uc_stack, 1024 bits of uc_sigmask; sigcontext at a multiple of 16: sc_pc first.
    assert (first.mcontext, first.registers.fields["ra"][1]) == (128 + 8 + 8 + 24 + 128 + 8, 16)  # type: ignore[index]
    assert first.code == struct.pack("<II", 0x0382_2C0B, 0x002B_0000)
