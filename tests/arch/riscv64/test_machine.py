"""riscv64 by literal numbers: the privileged specification, the kernel's headers, the C compiler say what must be."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.arch.cross import cross_numbers
from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry, saved_user_regs, vmcoreinfo
from tests.builders.kernelimage import Table
from tests.builders.paging import FlatContainer
from tests.builders.places import Bytes
from tests.builders.prstatus import elf_prstatus
from tests.process.scene import CODE, VM_EXEC, VM_READ, Scene, prstatus, registers, user_regs
from vmcore2core.addresses import KernelAddr, PhysAddr
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.riscv64.machine import ARCH
from vmcore2core.arch.spec import CpuNote, KernelMap
from vmcore2core.arch.x86_64.cpus import X86_64Cpus
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, NotMapped
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, VmcoreInfoSource, parse_vmcoreinfo
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.process.threads import ThreadRegs

CC = "riscv64-linux-gnu-gcc"

# As Debian's 7.2 kernel writes it on QEMU's virt machine.
TEXT = """\
OSRELEASE=7.2.13
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff8200dd88
SYMBOL(swapper_pg_dir)=ffffffff82307000
SYMBOL(_stext)=ffffffff80002000
NUMBER(phys_ram_base)=2147483648
NUMBER(VA_BITS)=48
NUMBER(VMEMMAP_START)=0xffff8d8000000000
NUMBER(va_kernel_pa_offset)=0xfffffffeffe00000
KERNELOFFSET=0
NUMBER(satp)=0x9000000000082507
"""


def info(*without: str, **changed: str) -> VmcoreInfo:
    """Return the text, less the lines that have a word, with other values for NUMBER() keys."""
    return vmcoreinfo(TEXT, without, {f"NUMBER({key})": value for key, value in changed.items()})


def kernel_map(*without: str, **changed: str) -> KernelMap:
    return ARCH.paging.kernel_map(info(*without, **changed))


SV57 = kernel_map(satp="0xa000000000082507")


def decoded(entry: int, level: str = "pte", made: KernelMap = SV57) -> tuple[int, int]:
    """Return kind and physical address."""
    spec = ARCH.paging.user_page_table(made, MM, ARCH.view(Bytes({}), KernelLayout([])))
    return read_entry(spec, level, entry)


# Privileged specification, figure "Sv39 page table entry": 0 V, 1 R, 2 W, 3 X, 4 U, 5 G, 6 A, 7 D, 8-9 software,
# 10-53 PPN, 54-60 reserved, 61-62 PBMT, 63 N. Linux: arch/riscv/include/asm/pgtable-bits.h.


@pytest.mark.parametrize(
    ("entry", "kind", "paddr"),
    [
        pytest.param(0, NONE, 0, id="nothing"),
        pytest.param(0x1_2345 << 10 | 0xD7, LEAF, 0x1234_5000, id="user rw accessed dirty"),
        pytest.param(0x1_2345 << 10 | 0x5B, LEAF, 0x1234_5000, id="user rx"),
        pytest.param(0x1_2345 << 10 | 0x51, BAD, 0, id="V alone: a table below the last level"),
        pytest.param(0x1_2345 << 10 | 0x59, LEAF, 0x1234_5000, id="execute only"),
        pytest.param(0x1_2345 << 10 | 0xD5, LEAF, 0x1234_5000, id="W alone: a shadow stack (Zicfiss)"),
        pytest.param(0x1_2345 << 10 | 0xDD, BAD, 0, id="W and X without R are reserved"),
        pytest.param(0x3F_FFFF_FFFF_FC43, LEAF, 0xFF_FFFF_FFFF_F000, id="the highest page"),
        pytest.param(0x43, LEAF, 0, id="page 0"),
        pytest.param(0x1_2345 << 10 | 0x3D7, LEAF, 0x1234_5000, id="software bits"),
        pytest.param(1 << 61 | 0x1_2345 << 10 | 0xD7, LEAF, 0x1234_5000, id="Svpbmt NC"),
        pytest.param(1 << 62 | 0x1_2345 << 10 | 0xD7, LEAF, 0x1234_5000, id="Svpbmt IO"),
        pytest.param(0x7000 << 48 | 0x1_2345 << 10 | 0xD7, LEAF, 0x1234_5000, id="T-Head: cacheable, shareable"),
        pytest.param(3 << 59 | 0x1_2345 << 10 | 0xD7, LEAF, 0x1234_5000, id="soft dirty, userfaultfd (Svrsw60t59b)"),
        pytest.param(1 << 63 | 0x1_2348 << 10 | 0xD7, LEAF, 0x1234_0000, id="Svnapot 64 KiB"),
        pytest.param(1 << 63 | 0x1_2344 << 10 | 0xD7, BAD, 0, id="Svnapot of a reserved size"),
        pytest.param(1 << 63 | 0x1_2345 << 10 | 0xD7, BAD, 0, id="Svnapot without a size"),
        # PAGE_NONE: _PAGE_PROT_NONE (G's bit) | _PAGE_READ without V: pte_present() all the same.
        pytest.param(0x1_2345 << 10 | 0xE2, LEAF, 0x1234_5000, id="PROT_NONE"),
        pytest.param(0x1_2345 << 10 | 0x20, LEAF, 0x1234_5000, id="PROT_NONE, no permission bit"),
        # Swap: arch/riscv/include/asm/pgtable.h: bits 0 to 3 and 5 clear, type in 7 to 11, offset above.
        pytest.param(0x1234 << 12 | 1 << 7, NOT_PRESENT, 0, id="swap type 1"),
        pytest.param(0x1234 << 12 | 31 << 7 | 0x40, NOT_PRESENT, 0, id="marker, exclusive"),
        pytest.param(0xFFFF_FFFF_FFFF_FFD0, NOT_PRESENT, 0, id="every swap bit"),
        pytest.param(0x1_2345 << 10 | 0x02, NOT_PRESENT, 0, id="R without V in a pte says nothing"),
    ],
)
def test_a_pte_reads_as_the_specification_says(entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry) == (kind, paddr)


@pytest.mark.parametrize(
    ("entry", "kind", "offset"),
    [
        pytest.param(0x1234 << 12 | 3 << 7, 3, 0x1234, id="type 3"),
        pytest.param(0x1234 << 12 | 31 << 7 | 1 << 6, 31, 0x1234, id="exclusive"),
        pytest.param(0x1235 << 12 | 1 << 4 | 1 << 3, 0, 0x1235, id="userfaultfd, soft dirty (Svrsw60t59b)"),
        pytest.param(0xFFFF_FFFF_FFFF_FFD8, 31, 0xF_FFFF_FFFF_FFFF, id="every bit"),
    ],
)
def test_a_swap_entry_names_type_and_offset(entry: int, kind: int, offset: int) -> None:
    table = Table({"task_struct": {"mm_cid": (0x5C0, 4)}})
    for size in (1 << 12, 1 << 21):
        found = ARCH.swap_entries.type_and_offset(
            np.array([entry], np.uint64), np.array([size], np.uint64), 4096, KernelLayout([table])
        )
        assert found is not None
        assert (found[0].tolist(), found[1].tolist()) == ([kind], [offset])


def test_a_kernel_before_6_3_has_other_swap_entries() -> None:
    """Its type began at bit 6 or 2: slot 0x1234 would pass for slot 0x91a of the same device."""
    entries = np.array([0x1234 << 11], np.uint64)
    assert (
        ARCH.swap_entries.type_and_offset(entries, np.array([4096], np.uint64), 4096, KernelLayout([Table()])) is None
    )


@pytest.mark.parametrize("bit", range(54, 59))
def test_reserved_bits_make_an_entry_bad(bit: int) -> None:
    assert decoded(1 << bit | 0x1_2345 << 10 | 0xD7) == (BAD, 0)
    assert decoded(1 << bit | 0x1_2345 << 10 | 0x01, "pmd") == (BAD, 0)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pmd", 0x1_2200 << 10 | 0xD7, LEAF, 0x1220_0000, id="2M"),
        pytest.param("pmd", 0x1_2201 << 10 | 0xD7, BAD, 0, id="2M, misaligned"),
        pytest.param("pmd", 0x1_2345 << 10 | 0x01, TABLE, 0x1234_5000, id="pte table"),
        pytest.param("pmd", 0x1_2345 << 10 | 0x21, TABLE, 0x1234_5000, id="pte table, global"),
        pytest.param("pmd", 0x1_2200 << 10 | 0xE2, LEAF, 0x1220_0000, id="2M PROT_NONE"),
        pytest.param("pmd", 0x1_2200 << 10 | 0xD6, LEAF, 0x1220_0000, id="2M, being split: V is clear for a moment"),
        pytest.param("pmd", 0x1234 << 12 | 30 << 7, NOT_PRESENT, 0, id="2M migrating"),
        pytest.param("pmd", 1 << 63 | 0x1_2208 << 10 | 0xD7, BAD, 0, id="2M with N: no such size"),
        pytest.param("pud", 0x4_0000 << 10 | 0xD7, LEAF, 0x4000_0000, id="1G"),
        pytest.param("pud", 0x4_0200 << 10 | 0xD7, BAD, 0, id="1G, misaligned"),
        pytest.param("p4d", 0x800_0000 << 10 | 0x63, LEAF, 0x80_0000_0000, id="512G"),
        pytest.param("pgd", 0x1_2345 << 10 | 0x01, TABLE, 0x1234_5000, id="p4d table"),
        *(
            pytest.param(level, bits | 0x1_2345 << 10 | 0x01, BAD, 0, id=f"{level} table with {what}")
            for level in ("pmd", "pgd")
            for what, bits in (("U", 1 << 4), ("A", 1 << 6), ("D", 1 << 7), ("PBMT", 1 << 61), ("N", 1 << 63))
        ),
        *(pytest.param(level, 0, NONE, 0, id=f"no {level}") for level in ("pmd", "pud", "p4d", "pgd")),
    ],
)
def test_an_upper_entry_reads_as_the_specification_says(level: str, entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry, level) == (kind, paddr)


# satp.MODE: 8 Sv39, 9 Sv48, 10 Sv57.
SV = {
    39: [("pgd", 30), ("pmd", 21), ("pte", 12)],
    48: [("pgd", 39), ("pud", 30), ("pmd", 21), ("pte", 12)],
    57: [("pgd", 48), ("p4d", 39), ("pud", 30), ("pmd", 21), ("pte", 12)],
}


@pytest.mark.parametrize(
    ("satp", "va_bits", "bits"),
    [
        pytest.param("0x8000000000082507", "48", 39, id="Sv39"),
        pytest.param("0x9000000000082507", "39", 48, id="Sv48"),
        pytest.param("0xa000000000082507", "48", 57, id="Sv57"),
        pytest.param(None, "39", 39, id="Sv39 by VA_BITS"),
        pytest.param(None, "48", 48, id="Sv48 by VA_BITS"),
        pytest.param(None, "57", 57, id="Sv57 by VA_BITS"),
        pytest.param("0x0", "57", 57, id="satp says Bare: VA_BITS"),
    ],
)
def test_levels_of_the_page_table(satp: str | None, va_bits: str, bits: int) -> None:
    changed = {"VA_BITS": va_bits} | ({} if satp is None else {"satp": satp})
    spec = kernel_map("satp", **changed).spec
    assert [(level.name, level.shift) for level in spec.levels] == SV[bits]
    assert {level.bits for level in spec.levels} == {9}
    assert (spec.page_size, spec.entry_dtype) == (4096, np.dtype("<u8"))


def test_the_page_table_and_the_image_are_where_va_kernel_pa_offset_says() -> None:
    made = kernel_map()
    assert made.root == 0x82507000  # as satp.PPN says
    assert made.linear == ()  # what lies behind the image is not told
    (image,) = made.searched
    assert (image.range.start, image.paddr) == (0xFFFF_FFFF_8000_0000, 0x8020_0000)


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("va_kernel_pa_offset", "NUMBER(va_kernel_pa_offset)"),
        ("swapper_pg_dir", "SYMBOL(swapper_pg_dir)"),
        ("_stext", "SYMBOL(_stext)"),
        ("VA_BITS", "NUMBER(VA_BITS)"),
    ],
)
def test_a_missing_key_is_named(key: str, item: str) -> None:
    with pytest.raises(LayoutUnknown) as caught:
        kernel_map(key, "satp")
    assert item in str(caught.value)


def test_nonsense_in_the_text_stays_within_physical_addresses() -> None:
    made = kernel_map(va_kernel_pa_offset="-0x1234")
    assert 0 <= made.root < 1 << 56
    assert 0 <= made.searched[0].paddr < 1 << 56
    with pytest.raises(LayoutUnknown):
        kernel_map("satp", VA_BITS="40")


def test_what_a_text_lacks_is_offered_for_each_mode() -> None:
    keys = list(ARCH.paging.located_keys(info("satp", "VA_BITS", "va_kernel"), 0xFFFF_FFFF_8200_DD88, 0x8220_DD88))
    assert keys == [
        {"NUMBER(va_kernel_pa_offset)": "0xfffffffeffe00000", "NUMBER(VA_BITS)": bits} for bits in ("39", "48", "57")
    ]
    keys = list(ARCH.paging.located_keys(info("va_kernel"), 0xFFFF_FFFF_8200_DD88, 0x8220_DD88))
    assert [key["NUMBER(VA_BITS)"] for key in keys] == ["48"]
    assert list(ARCH.paging.located_keys(info("VA_BITS"), 0xFFFF_FFFF_8200_DD88, 0x8240_DD88)) == []


def test_the_text_is_known_for_what_it_is() -> None:
    assert ARCH.claims(info())
    assert ARCH.claims(info("va_kernel"))
    assert not ARCH.claims(parse_vmcoreinfo(b"NUMBER(VA_BITS)=48\nNUMBER(phys_base)=0\n"))
    assert arch_for_machine(243) is ARCH


# Walks.


def tables(*entries: tuple[int, int, int], pages: int = 32) -> PhysicalMemory:
    """Return memory with entries (table, slot, entry)."""
    data = bytearray(pages * 4096)
    for table, slot, entry in entries:
        struct.pack_into("<Q", data, table + 8 * slot, entry)
    return PhysicalMemory(FlatContainer(bytes(data)))


def everything(memory: PhysicalMemory, made: KernelMap, start: int, end: int) -> list[tuple[int, int, int]]:
    """Return (address, kind, physical address) of what a walk finds."""
    ranges = Ranges(np.array([start], np.uint64), np.array([end], np.uint64))
    found = []
    for batch in walk(memory, made.spec, PhysAddr(0x1000), ranges):
        found += list(zip(batch.vaddr.tolist(), batch.kind.tolist(), batch.paddr.tolist(), strict=True))
    return found


@pytest.mark.parametrize("bits", [39, 48, 57])
def test_an_address_is_translated_level_by_level(bits: int) -> None:
    address = 0xFF_FFFF_FFFF_5678 & (1 << bits - 1) - 1
    shifts = [shift for _, shift in SV[bits]]
    entries = [(0x1000 * (i + 1), address >> shift & 511, (i + 2) << 10 | 0x01) for i, shift in enumerate(shifts)]
    entries[-1] = (*entries[-1][:2], 0x7777 << 10 | 0xD7)
    made = kernel_map("satp", VA_BITS=str(bits))
    assert translate(tables(*entries), made.spec, PhysAddr(0x1000), address) == (0x777_7000, 4096)
    with pytest.raises(NotMapped):
        translate(tables(*entries), made.spec, PhysAddr(0x1000), address - 0x1000)


def test_the_pages_of_a_napot_entry_follow_each_other() -> None:
    """Svnapot: 16 equal entries; the low bits of the PPN are those of the virtual address."""
    made, entry = kernel_map(), 1 << 63 | (0x4320 | 8) << 10 | 0xD7
    upper = [(0x1000, 0, 2 << 10 | 1), (0x2000, 0, 3 << 10 | 1), (0x3000, 0, 4 << 10 | 1)]
    memory = tables(*upper, *((0x4000, slot, entry) for slot in range(16, 32)), (0x4000, 32, 0x9999 << 10 | 0xD7))
    assert everything(memory, made, 0, 1 << 30) == [
        *((0x1_0000 + n * 0x1000, RunKind.LEAF, 0x432_0000 + n * 0x1000) for n in range(16)),
        (0x2_0000, RunKind.LEAF, 0x999_9000),
    ]
    for n in (0, 7, 8, 15):
        assert translate(memory, made.spec, PhysAddr(0x1000), 0x1_0123 + n * 0x1000) == (0x432_0000 + n * 0x1000, 4096)


def test_tables_that_lead_to_themselves_end() -> None:
    memory = tables(*((0x1000, slot, 1 << 10 | 1) for slot in range(256)))
    assert {kind for _, kind, _ in everything(memory, kernel_map(), 0, 1 << 47)} == {RunKind.BAD}
    memory = tables((0x1000, 0, 2 << 10 | 1), (0x2000, 0, 3 << 10 | 1), (0x3000, 0, 2 << 10 | 1))
    assert everything(memory, kernel_map(), 0, 1 << 47) == [(0, RunKind.BAD, 0)]


# Registers.

# struct pt_regs, arch/riscv/include/asm/ptrace.h, in its order.
PT_REGS = (
    "epc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6 "
    "status badaddr cause orig_a0"
).split()
GREGS = ["pc", *PT_REGS[1:32]]
# SPIE, FS initial, UXL 64.
USER = {
    **{name: int.from_bytes(name.encode().rjust(7), "big") for name in PT_REGS},
    "epc": 0x7FFF_A0BD_5ABA,
    "sp": 0x7FFF_FA75_1CF0,
    "status": 0x2_0000_2020,
}
TASK = MM = KernelAddr(0xFFFF_AF80_0000_1000)
STACK = 0xFFFF_8F80_0010_0000


def frame(regs: dict[str, int]) -> bytes:
    """Pack struct pt_regs: 36 words."""
    return struct.pack("<36Q", *(regs[name] for name in PT_REGS))


def saved(top: bytes, size: int = 16384, table: Table | None = None) -> dict[str, int] | None:
    return saved_user_regs(ARCH, TASK, STACK, Bytes({STACK: top.rjust(size, b"\0")}), table or Table())


@pytest.mark.parametrize("size", [16384, 32768])
def test_user_registers_are_at_the_top_of_the_kernel_stack(size: int) -> None:
    expected = {name: USER["epc" if name == "pc" else name] for name in GREGS}
    assert saved(frame(USER), size) == expected
    assert saved(frame(USER), size, Table(constants={"THREAD_SIZE": size})) == expected
    symbols = {"__start_init_stack": STACK - 0x10_0000, "__end_init_stack": STACK - 0x10_0000 + size}
    assert saved(frame(USER), size, Table(symbols=symbols)) == expected
    assert saved(frame(USER), size, Table(constants={"THREAD_SIZE": size // 2})) is None


def test_a_larger_pt_regs_ends_at_a_multiple_of_16() -> None:
    table = Table(sizes={"pt_regs": 296})
    assert saved(frame(USER) + bytes(16), table=table) == saved(frame(USER))
    assert saved(frame(USER) + bytes(8), table=table) is None


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"status": 0x2_0000_2120}, id="SPP: from the kernel"),
        pytest.param({"status": 0x2_0000_2000}, id="interrupts were off"),
        pytest.param({"status": 0x1_0000_2020}, id="UXL 32: a compat process"),
        pytest.param({"status": 0}, id="never in user mode"),
        pytest.param({"status": 0x2_0000_2022}, id="interrupts were still on in the trap"),
        pytest.param({"status": 0x74_0000_2020}, id="bits of status that are reserved"),
        pytest.param({"epc": 0xFFFF_FFFF_8000_1000}, id="kernel pc"),
        pytest.param({"epc": 0x1001}, id="odd pc"),
        pytest.param({"sp": 0xFFFF_8F80_0010_3000}, id="kernel sp"),
    ],
)
def test_what_cannot_be_user_registers_is_none(wrong: dict[str, int]) -> None:
    assert saved(frame({**USER, **wrong})) is None


def test_an_empty_or_lost_stack_has_no_user_registers() -> None:
    assert saved(b"") is None
    assert saved(b"\xff" * 16384) is None
    assert ARCH.registers.user_regs(TASK, KernelAddr(STACK), ARCH.view(Bytes({}), KernelLayout([Table()]))) is None


def test_registers_are_struct_user_regs_struct(tmp_path: Path) -> None:
    names = list(ARCH.registers.names)
    assert names == GREGS
    expressions = [f"offsetof(struct user_regs_struct, {name})" for name in names]
    *offsets, size = cross_numbers(CC, tmp_path, [*expressions, "sizeof(struct user_regs_struct)"], "asm/ptrace.h")
    raw = ARCH.cores.gregs({name: 0x100 + i for i, name in enumerate(names)}, ARCH.cores.machine({}, None))
    assert len(raw) == size
    found = {name: int.from_bytes(raw[at : at + 8], "little") for name, at in zip(names, offsets, strict=True)}
    assert found == {name: 0x100 + i for i, name in enumerate(names)}


# Notes of the CPUs.


def cpu_note(pid: int, regs: dict[str, int]) -> bytes:
    return elf_prstatus(pid, struct.pack("<32Q", *(regs[name] for name in GREGS)))


LIVE = {name: 0x1000 + 2 * i for i, name in enumerate(GREGS)}
IN_KERNEL = {**LIVE, "pc": 0xFFFF_FFFF_80DB_E370}


def test_cpu_notes_carry_number_and_registers() -> None:
    notes = (
        Note("CORE", 1, cpu_note(1, LIVE)),
        Note("CORE", 3, bytes(136)),
        Note("CORE", 1, cpu_note(2, IN_KERNEL)),
        Note("CORE", 1, bytes(375)),
        Note("LINUX", 0x901, bytes(376)),
    )
    first, second = ARCH.cpus.notes(notes)
    assert (first.number, first.pr_pid, first.user_mode, dict(first.regs)) == (0, 1, True, LIVE)
    assert (second.number, second.pr_pid, second.user_mode, dict(second.regs)) == (1, 2, False, IN_KERNEL)
    assert (ARCH.cpus.assumed_user_pc(first), ARCH.cpus.assumed_user_pc(second)) == (0x1000, None)
    assert (dict(ARCH.cpus.bases(first)), ARCH.cpus.uses_pgd(first, 0)) == ({}, None)
    assert dict(ARCH.registers.thread_bases(TASK, ARCH.view(Bytes({}), KernelLayout([Table()])))) == {}
    assert ARCH.registers.thread_pointer(first.regs) == 0x1008


def test_a_note_is_of_the_hart_that_the_kernel_gave_the_number() -> None:
    layout = KernelLayout([Table(symbols={"__cpuid_to_hartid_map": 0x5000})])
    memory = Bytes({0x5000: struct.pack("<3Q", 2, 0, 1)})
    assert [ARCH.cpu_numbers.number(cpu, ARCH.view(memory, layout)) for cpu in range(3)] == [2, 0, 1]
    assert ARCH.cpu_numbers.number(1, ARCH.view(memory, KernelLayout([Table()]))) == 1
    with pytest.raises(NotMapped):
        ARCH.cpu_numbers.number(3, ARCH.view(memory, layout))


def on_cpu(monkeypatch: pytest.MonkeyPatch, pc: int) -> ThreadRegs | str:
    """Return the registers of a thread that runs at ``pc``, of an architecture whose notes do not tell the mode."""

    def assumed(_: X86_64Cpus, note: CpuNote) -> int:
        return note.regs["rip"]

    monkeypatch.setattr(X86_64Cpus, "assumed_user_pc", assumed)
    scene = Scene()
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC), (CODE + 0x1000, CODE + 0x2000, VM_READ))
    scene.group(scene.task(100, on_cpu=1), mm=mm)
    processes = scene.processes(Note("CORE", 1, prstatus(1, user_regs(0xAA, rip=pc))))
    ((_, found),) = processes.thread_registers(processes.find(100))
    return found


def test_a_cpu_in_firmware_has_no_user_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """M-mode runs at physical addresses, which look like a process's."""
    for pc in (CODE + 0x1000, 0x8000_1234):
        assert on_cpu(monkeypatch, pc) == (
            f"CPU 0, which was running it, was at {pc:#x}: firmware, none of the process's code"
        )
    found = on_cpu(monkeypatch, CODE + 0xFFE)
    assert isinstance(found, ThreadRegs)
    assert (found.regs["rip"], found.source) == (CODE + 0xFFE, "crash note of CPU 0")
    assert registers(struct.pack("<27Q", *range(27)))["r15"] == 0


# Notes of threads.

OFFSETS = {
    "task_struct": {
        "stack": (8, 8),
        "mm": (16, 8),
        "thread.fstate": (0x100, 264),
        "thread.envcfg": (0x300, 8),
        "thread.vstate": (0x310, 48),
    },
    "__riscv_v_ext_state": {"vlenb": (32, 8)},
    "mm_struct": {"context.pmlen": (0x20, 1), "saved_e_flags": (0x28, 8)},
}
SYMBOLS = {"riscv_v_vsize": 0x6000, "have_user_pmlen_7": 0x6008, "have_user_pmlen_16": 0x6009}
FSTATE = struct.pack("<32QI4x", *(0xF000 + i for i in range(32)), 0x61)
OWNER, DATA = 0xFFFF_AF80_0000_9000, 0xFFFF_AF80_0002_0000


def thread_notes(
    *,
    status: int = 0x2_0000_2020,
    vsize: int = 512,
    envcfg: int = 0,
    pmlen: int = 0,
    able: bytes = b"\0\0",
    tables: tuple[dict[str, dict[str, tuple[int, int]]], ...] = (OFFSETS,),
) -> list[Note] | None:
    task = bytearray(0x400)
    struct.pack_into("<QQ", task, 8, STACK, OWNER)
    task[0x100:0x208] = FSTATE[:256] + struct.pack("<I", 0x61) + b"\xee\xee\xee\xee"
    struct.pack_into("<Q", task, 0x300, envcfg)
    struct.pack_into("<6Q", task, 0x310, 1, 16, 0xC0, 6, 16, DATA)
    memory = Bytes(
        {
            TASK: bytes(task),
            STACK: frame({**USER, "status": status}).rjust(16384, b"\0"),
            OWNER: bytes(0x20) + bytes([pmlen]) + bytes(7) + struct.pack("<Q", 0xDEAD_0000_0000_0005),
            0x6000: struct.pack("<Q", vsize) + able,
            DATA: bytes(range(256)) * 2,
        }
    )
    layout = KernelLayout([Table(*tables, symbols=SYMBOLS)])
    found = ARCH.cores.regsets(TASK, {}, ARCH.cores.machine({}, None), ARCH.view(memory, layout))
    return None if found is None else list(found)


def test_nt_fpregset_is_the_fstate_with_zeros_for_padding() -> None:
    """riscv_fpr_get(): 32 registers, fcsr, four bytes of zeros."""
    assert thread_notes() == [Note("CORE", 2, FSTATE)]
    assert len(FSTATE) == 264
    assert thread_notes(tables=({"task_struct": {"stack": (8, 8)}},)) is None


def test_the_size_of_nt_fpregset_is_the_compilers(tmp_path: Path) -> None:
    numbers = cross_numbers(
        CC,
        tmp_path,
        ["sizeof(struct __riscv_d_ext_state)", "offsetof(struct __riscv_d_ext_state, fcsr)"],
        "asm/ptrace.h",
    )
    assert numbers == [264, 256]


@pytest.mark.parametrize("vs", [0x200, 0x400, 0x600], ids=["initial", "clean", "dirty"])
def test_nt_riscv_vector_has_the_header_and_all_registers(vs: int) -> None:
    """riscv_vr_get(): vstart, vl, vtype, vcsr, vlenb, then riscv_v_vsize bytes of datap."""
    assert thread_notes(status=0x2_0000_2020 | vs) == [
        Note("CORE", 2, FSTATE),
        Note("LINUX", 0x901, struct.pack("<5Q", 1, 16, 0xC0, 6, 16) + bytes(range(256)) * 2),
    ]


def test_a_vlenb_that_is_not_known_leaves_the_vector_registers_out() -> None:
    without = {**OFFSETS, "__riscv_v_ext_state": {}}
    assert thread_notes(status=0x2_0000_2620, tables=(without,)) == [Note("CORE", 2, FSTATE)]


@pytest.mark.parametrize("vsize", [0, 511, 32 * 8192 + 32, 1 << 60])
def test_a_vector_size_that_cannot_be_is_an_error(vsize: int) -> None:
    with pytest.raises(LayoutInvalid, match="riscv_v_vsize"):
        thread_notes(status=0x2_0000_2620, vsize=vsize)


def test_vector_registers_that_are_lost_are_an_error() -> None:
    with pytest.raises(NotMapped):
        thread_notes(status=0x2_0000_2620, vsize=1024)


@pytest.mark.parametrize(
    ("envcfg", "pmlen", "value"),
    [
        (0, 0, 0),
        (2 << 32, 0, 7 << 24),
        (2 << 32 | 1, 7, 7 << 24 | 1),
        (3 << 32, 16, 16 << 24 | 1),
        (1 << 32, 0, 0),
    ],
)
@pytest.mark.parametrize("able", [b"\1\0", b"\0\1"])
def test_nt_riscv_tagged_addr_ctrl(envcfg: int, pmlen: int, value: int, able: bytes) -> None:
    """get_tagged_addr_ctrl(): PR_PMLEN_MASK is 0x7f << 24, PR_TAGGED_ADDR_ENABLE 1; envcfg.PMM is bits 32 and 33."""
    notes = thread_notes(envcfg=envcfg, pmlen=pmlen, able=able)
    assert notes == [Note("CORE", 2, FSTATE), Note("LINUX", 0x902, struct.pack("<Q", value))]


def test_e_flags_are_those_that_the_kernel_saved() -> None:
    memory = Bytes({OWNER: bytes(0x28) + struct.pack("<Q", 0xDEAD_0000_0000_0005)})
    layout = KernelLayout([Table(OFFSETS)])
    assert ARCH.cores.flags(KernelAddr(OWNER), ARCH.view(memory, layout)) == 5
    assert ARCH.cores.flags(KernelAddr(OWNER), ARCH.view(memory, KernelLayout([Table()]))) == 0
    with pytest.raises(NotMapped):
        ARCH.cores.flags(KernelAddr(OWNER + 0x1000), ARCH.view(memory, layout))


def test_a_compat_process_is_not_supported_and_says_so() -> None:
    assert ARCH.cores.machine({}, 0x8000_0000).unsupported == "a 32-bit (rv32) process, which is not supported"
    for task_size in (None, 1 << 38, 1 << 47, 1 << 56):
        machine = ARCH.cores.machine({}, task_size)
        assert (machine.e_machine, machine.elf_class, machine.unsupported) == (243, 64, None)


# vmemmap: arch/riscv/include/asm/pgtable.h.

START = 0xFFFF_8D80_0000_0000


def vmemmap(symbols: dict[str, int], places: dict[int, bytes], text: VmcoreInfo | None = None) -> int | None:
    layout = KernelLayout([VmcoreInfoSource(text or info()), Table(symbols=symbols, sizes={"page": 64})])
    return ARCH.paging.vmemmap(ARCH.view(Bytes(places), layout))


def test_vmemmap_begins_at_the_first_page_of_memory() -> None:
    symbols = {"vmemmap_start_pfn": 0x7000}
    assert vmemmap(symbols, {0x7000: struct.pack("<Q", 0x8_0000)}) == START - 0x8_0000 * 64
    assert vmemmap(symbols, {0x7000: struct.pack("<Q", 0)}) == START
    # Linux 6.8: of phys_ram_base, without the variable.
    assert vmemmap({}, {START: bytes(64)}) == START - 0x8_0000 * 64
    # Before: nothing is mapped where page 0 would be.
    assert vmemmap({}, {}) == START
    assert vmemmap({}, {START: bytes(64)}, info("phys_ram_base")) is None
    assert vmemmap({}, {START: bytes(64)}, info("VMEMMAP_START")) is None
