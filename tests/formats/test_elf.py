"""formats/elf.py against <elf.h> through the C compiler, and against the sizes that the gABI gives.

Tests formats/elf_core.py.
"""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest

from tests.needs import need
from vmcore2core.formats import elf, elf_core
from vmcore2core.formats._cabi import C_INTS, align_up, c_struct, offsetof

VARIANTS: tuple[tuple[Literal[32, 64], Literal["little", "big"]], ...] = (
    (32, "little"),
    (32, "big"),
    (64, "little"),
    (64, "big"),
)

MEMBERS = {
    "Ehdr": "e_ident e_type e_machine e_version e_entry e_phoff e_shoff e_flags e_ehsize e_phentsize e_phnum "
    "e_shentsize e_shnum e_shstrndx",
    "Phdr": "p_type p_offset p_vaddr p_paddr p_filesz p_memsz p_flags p_align",
    "Shdr": "sh_name sh_type sh_flags sh_addr sh_offset sh_size sh_link sh_info sh_addralign sh_entsize",
}

CONSTANTS = (
    "EI_CLASS EI_DATA EI_VERSION EI_OSABI EI_NIDENT ELFCLASS32 ELFCLASS64 ELFDATA2LSB ELFDATA2MSB EV_CURRENT "
    "ELFOSABI_NONE ET_NONE ET_REL ET_EXEC ET_DYN ET_CORE EM_NONE EM_386 EM_MIPS EM_PPC EM_PPC64 EM_S390 EM_ARM "
    "EM_SPARCV9 EM_IA_64 EM_X86_64 EM_AARCH64 EM_RISCV PT_NULL PT_LOAD PT_NOTE PN_XNUM SHT_NULL SHN_UNDEF PF_X PF_W "
    "PF_R"
)
NOTE_TYPES = "NT_PRSTATUS NT_FPREGSET NT_PRPSINFO NT_AUXV NT_FILE NT_PRXFPREG NT_386_TLS NT_X86_XSTATE"


def compile_and_run(source: str, directory: Path) -> dict[str, int]:
    """Return what a C program prints as "name number" lines."""
    compiler = need("cc")
    (directory / "p.c").write_text(source)
    subprocess.run([compiler, "-o", directory / "p", directory / "p.c"], check=True)
    out = subprocess.run([directory / "p"], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.rsplit(" ", 1) for line in out.splitlines())}


def test_members_lie_where_elf_h_has_them(tmp_path: Path) -> None:
    lines = []
    for name, bits in itertools.product(MEMBERS, (32, 64)):
        lines.append(f'printf("{name}{bits} %zu\\n", sizeof(Elf{bits}_{name}));')
        lines += [f'printf("{name}{bits}.{m} %zu\\n", offsetof(Elf{bits}_{name}, {m}));' for m in MEMBERS[name].split()]
    body = "\n".join(lines)
    told = compile_and_run(
        f"#include <elf.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{ {body} return 0; }}", tmp_path
    )
    for (bits, order), name in itertools.product(VARIANTS, MEMBERS):
        struct = getattr(elf, name)[bits, order]
        assert struct.sizeof() == told[f"{name}{bits}"]
        for member in MEMBERS[name].split():
            assert offsetof(struct, member) == told[f"{name}{bits}.{member}"], (name, bits, member)
    for bits, order in VARIANTS:
        dtype = elf.PHDR_DTYPE[bits, order]
        assert dtype.itemsize == told[f"Phdr{bits}"]
        assert dtype.fields is not None
        for member in MEMBERS["Phdr"].split():
            assert dtype.fields[member][1] == told[f"Phdr{bits}.{member}"]


@pytest.mark.parametrize(("module", "names"), [(elf, CONSTANTS), (elf_core, NOTE_TYPES)], ids=["elf", "elf_core"])
def test_constants_have_the_numbers_of_elf_h(module: ModuleType, names: str, tmp_path: Path) -> None:
    body = "\n".join(f'printf("{name} %ld\\n", (long){name});' for name in names.split())
    told = compile_and_run(f"#include <elf.h>\n#include <stdio.h>\nint main(void) {{ {body} return 0; }}", tmp_path)
    assert {name: int(getattr(module, name)) for name in names.split()} == told


@pytest.mark.parametrize(("bits", "order"), VARIANTS)
def test_sizes_are_those_of_the_gabi(bits: Literal[32, 64], order: Literal["little", "big"]) -> None:
    sizes = (52, 32, 40) if bits == 32 else (64, 56, 64)
    assert (
        elf.Ehdr[bits, order].sizeof(),
        elf.Phdr[bits, order].sizeof(),
        elf.Shdr[bits, order].sizeof(),
    ) == sizes
    assert elf.Nhdr[order].sizeof() == 12


def test_byte_order_is_that_of_the_variant() -> None:
    raw = bytes([0, 0, 0, 5, 0, 0, 1, 0, 0, 0, 0, 1])
    assert elf.Nhdr["big"].parse(raw).n_descsz == 256
    assert elf.Nhdr["little"].parse(raw).n_descsz == 0x10000
    assert np.frombuffer(b"\x01\0\0\0" * 14, elf.PHDR_DTYPE[64, "big"])["p_type"][0] == 0x01000000


def test_c_struct_pads_as_a_c_compiler_does(tmp_path: Path) -> None:
    u = C_INTS["little"]
    struct = c_struct(("a", u.u8, 1), ("b", u.u64, 8), ("c", u.u16, 2), ("d", u.u32, 4), ("e", u.u8, 1))
    told = compile_and_run(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        "struct s { uint8_t a; uint64_t b; uint16_t c; uint32_t d; uint8_t e; };\n"
        "int main(void) {"
        + "".join(f'printf("{m} %zu\\n", offsetof(struct s, {m}));' for m in "abcde")
        + 'printf("size %zu\\n", sizeof(struct s)); return 0; }',
        tmp_path,
    )
    assert {m: offsetof(struct, m) for m in "abcde"} | {"size": struct.sizeof()} == told
    values = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert {k: v for k, v in struct.parse(struct.build(values)).items() if not k.startswith("_")} == values


def test_offsetof_of_an_unknown_member_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        offsetof(elf.Nhdr["little"], "n_nothing")


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_align_up(size: int, expected: int) -> None:
    assert align_up(size, 8) == expected
