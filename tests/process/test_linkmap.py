"""The dynamic linker's list from literal bytes, of both classes and byte orders; a hostile one ends.

Tests formats/elf_dynamic.py, formats/link.py.
"""

from __future__ import annotations

import struct

import pytest

from tests.corefile.snapshots import snapshot, vma
from vmcore2core.interfaces import ByteOrder
from vmcore2core.process import linkmap
from vmcore2core.process.linkmap import LinkMap, link_map, program_path
from vmcore2core.process.model import ProcessSnapshot

BASE, SIZE = 0x40_0000, 0x2000
PHDR, DYNAMIC, R_DEBUG, MAPS, NAMES = BASE + 0x40, BASE + 0x800, BASE + 0x900, BASE + 0xA00, BASE + 0x1000


def process(elf_class: int, order: ByteOrder) -> tuple[ProcessSnapshot, bytearray]:
    """Return a process with three objects in its list, and its only mapping's bytes."""
    form, word = "<" if order == "little" else ">", "Q" if elf_class == 64 else "I"
    size = elf_class // 8
    memory = bytearray(SIZE)

    def put(at: int, layout: str, *values: int) -> None:
        struct.pack_into(form + layout, memory, at - BASE, *values)

    def phdr(at: int, p_type: int, vaddr: int, memsz: int) -> None:
        if elf_class == 64:
            put(at, "IIQQQQQQ", p_type, 4, 0, vaddr, 0, memsz, memsz, 8)
        else:
            put(at, "8I", p_type, 0, vaddr, 0, memsz, memsz, 4, 4)

    phdr(PHDR, 6, 0x40, 0x70)  # PT_PHDR: addresses of the file count from 0
    phdr(PHDR + (56 if elf_class == 64 else 32), 2, DYNAMIC - BASE, 6 * size)
    put(DYNAMIC, 6 * word, 1, 7, 21, R_DEBUG, 0, 0)  # DT_NEEDED, DT_DEBUG, DT_NULL
    put(R_DEBUG, 5 * word, 1, MAPS, 0, 0, 0)
    for i, name in enumerate((b"", b"/lib/libc.so.6", b"/lib64/ld.so")):
        at, text = MAPS + i * 0x40, NAMES + i * 0x40
        put(at, 5 * word, 0x1000 * i, text, DYNAMIC + i, at + 0x40 if i < 2 else 0, at - 0x40 if i else 0)
        memory[text - BASE : text - BASE + len(name)] = name
    auxv = struct.pack(form + 6 * word, 3, PHDR, 5, 2, 0, 0)
    captured = snapshot(vma(BASE, BASE + SIZE, path=b"/bin/app", pgoff=0), auxv=auxv)
    return captured._replace(elf_class=elf_class, byte_order=order), memory


def followed(captured: ProcessSnapshot, memory: bytearray) -> LinkMap:
    def read(address: int, size: int) -> bytes | None:
        if address < BASE or address + size > BASE + SIZE:
            return None
        return bytes(memory[address - BASE : address - BASE + size])

    return link_map(captured, read)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("elf_class", [64, 32])
def test_the_list_is_followed(elf_class: int, order: ByteOrder) -> None:
    captured, memory = process(elf_class, order)
    found = followed(captured, memory)
    assert [(o.l_addr, o.l_name, o.l_ld) for o in found.objects] == [
        (0, b"", DYNAMIC),
        (0x1000, b"/lib/libc.so.6", DYNAMIC + 1),
        (0x2000, b"/lib64/ld.so", DYNAMIC + 2),
    ]
    size = elf_class // 8
    assert {(R_DEBUG, R_DEBUG + 5 * size), (MAPS, MAPS + 5 * size), (NAMES + 0x40, NAMES + 0x4F)} <= set(found.extents)
    assert program_path(captured) == b"/bin/app"


@pytest.mark.parametrize(
    ("at", "value", "count"),
    [
        (MAPS + 24, MAPS, 1),  # comes back to the first
        (MAPS + 0x80 + 24, MAPS, 3),  # the last does
        (MAPS + 0x80 + 24, MAPS + 0x40, 3),  # into its midst
        (MAPS + 0x40 + 24, MAPS + 0x40, 2),  # to itself
        (MAPS + 24, BASE + SIZE - 8, 1),  # across the end of what is mapped
        (MAPS + 24, 0xFFFF_FFFF_FFFF_FFF8, 1),  # leads to nothing
        (R_DEBUG + 8, 8, 0),
        (DYNAMIC + 24, 0, 0),  # DT_DEBUG as the file has it: the linker never ran
        (DYNAMIC + 16, 22, 0),
        (PHDR + 56 + 40, 1 << 40, 0),  # a dynamic section of a terabyte
    ],
)
def test_a_broken_list_ends(at: int, value: int, count: int) -> None:
    captured, memory = process(64, "little")
    struct.pack_into("<Q", memory, at - BASE, value)
    assert len(followed(captured, memory).objects) == count


def test_a_name_without_an_end_is_none() -> None:
    captured, memory = process(64, "little")
    memory[NAMES - BASE :] = b"x" * (SIZE - (NAMES - BASE))
    assert [loaded.l_name for loaded in followed(captured, memory).objects] == [b"", b"", b""]


def test_a_long_list_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkmap, "OBJECTS_MAX", 2)
    assert len(followed(*process(64, "little")).objects) == 2


def test_without_an_auxiliary_vector_there_is_none() -> None:
    captured, memory = process(64, "little")
    for auxv in (None, b"", struct.pack("<4Q", 3, PHDR, 0, 0)):
        assert followed(captured._replace(auxv=auxv), memory) == LinkMap()
