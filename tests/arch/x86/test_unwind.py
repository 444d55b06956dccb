"""x86-64's unwind data, against the compiler's headers and objdump."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.unwind.processes import need
from tests.unwind.test_cfi import libc
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.arch.x86.unwind import ends_with_call
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.formats import x86_64 as fmt

HEADERS = """
#include <stddef.h>
#include <asm/sigcontext.h>
#include <asm/siginfo.h>
#include <linux/signal.h>
#include <asm/ucontext.h>
"""


def unwind(elf_class: int) -> UnwindSpec:
    spec = ARCH.unwind.spec(CoreMachine(3 if elf_class == 32 else 62, elf_class, ()))
    assert spec is not None
    return spec


def compiles(tmp_path: Path, source: str, *options: str) -> None:
    text = tmp_path / "check.c"
    text.write_text(source)
    done = subprocess.run(
        [need("gcc"), "-fsyntax-only", *options, str(text)], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr


def test_the_64_bit_context_lies_where_the_kernels_headers_say(tmp_path: Path) -> None:
    checks = [f'_Static_assert(offsetof(struct ucontext, uc_mcontext) == {fmt.RT_SIGFRAME_MCONTEXT}, "mcontext");']
    dtype = fmt.sigcontext_64
    for name in dtype.names or ():
        member = {"flags": "eflags"}.get(name, name if name[1:].isdigit() else f"r{name}")
        assert dtype.fields is not None
        checks.append(f'_Static_assert(offsetof(struct sigcontext, {member}) == {dtype.fields[name][1]}, "{name}");')
    compiles(tmp_path, HEADERS + "\n".join(checks))


def test_the_32_bit_context_lies_where_the_kernels_headers_say(tmp_path: Path) -> None:
    multiarch = subprocess.run(
        [need("gcc"), "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    dtype = fmt.sigcontext_32
    checks = [f'_Static_assert(offsetof(struct ucontext, uc_mcontext) == {fmt.UCONTEXT_IA32_MCONTEXT}, "mcontext");']
    names = {"flags": "eflags", "sp_at_signal": "esp_at_signal"}
    for name in dtype.names or ():
        plain = name in ("gs", "fs", "es", "ds", "cs", "ss", "trapno", "err")
        member = names.get(name, name if plain else f"e{name}")
        assert dtype.fields is not None
        checks.append(f'_Static_assert(offsetof(struct sigcontext, {member}) == {dtype.fields[name][1]}, "{name}");')
    compiles(tmp_path, HEADERS + "\n".join(checks), "-m32", "-isystem", f"/usr/include/{multiarch}")


def test_trampolines_are_what_the_assembler_makes_of_them(tmp_path: Path) -> None:
    cases = {
        "mov $15, %rax; syscall": ("--64", fmt.RT_SIGRETURN[0]),
        "mov $15, %eax; syscall": ("--64", fmt.RT_SIGRETURN[1]),
        "mov $0x40000201, %rax; syscall": ("--x32", fmt.RT_SIGRETURN_X32[0]),
        "mov $0x40000201, %eax; syscall": ("--x32", fmt.RT_SIGRETURN_X32[1]),
        "mov $173, %eax; int $0x80": ("--32", fmt.RT_SIGRETURN_IA32),
        "pop %eax; mov $119, %eax; int $0x80": ("--32", fmt.SIGRETURN_IA32),
    }
    for text, (mode, expected) in cases.items():
        (tmp_path / "t.s").write_text(text + "\n")
        subprocess.run([need("as"), mode, "-o", str(tmp_path / "t.o"), str(tmp_path / "t.s")], check=True)
        subprocess.run(
            [need("objcopy"), "-O", "binary", "-j", ".text", str(tmp_path / "t.o"), str(tmp_path / "t.bin")], check=True
        )
        assert (tmp_path / "t.bin").read_bytes() == expected


@pytest.mark.parametrize(("elf_class", "column"), [(64, 16), (32, 8)])
def test_the_return_address_is_the_column_that_gcc_uses(tmp_path: Path, elf_class: int, column: int) -> None:
    (tmp_path / "f.c").write_text("int g(void); int f(void) { return g() + 1; }\n")
    subprocess.run(
        [need("gcc"), f"-m{elf_class}", "-O2", "-c", "-o", str(tmp_path / "f.o"), str(tmp_path / "f.c")], check=True
    )
    text = subprocess.run(
        [need("readelf"), "-wf", str(tmp_path / "f.o")], capture_output=True, text=True, check=True
    ).stdout
    assert int(re.findall(r"Return address column: (\d+)", text)[0]) == column == unwind(elf_class).return_address
    names = dict(re.findall(r"r(\d+) \((\w+)\)", text))
    for number, name in names.items():
        ours = unwind(elf_class).registers[int(number)]
        assert name in (ours, "e" + ours[1:])


def test_register_numbers_are_those_of_the_psabi() -> None:
    numbers = unwind(64).registers
    assert [numbers[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 15)] == "rax rdx rcx rbx rsi rdi rbp rsp r8 r15".split()
    numbers = unwind(32).registers  # eax ecx edx ebx esp ebp esi edi
    assert list(numbers[:8]) == "rax rcx rdx rbx rsp rbp rsi rdi".split()


def test_each_call_that_objdump_shows_is_a_call_and_few_other_places_look_like_one() -> None:
    text = subprocess.run([need("objdump"), "-dw", str(libc())], capture_output=True, text=True, check=True).stdout
    code = b""
    calls = others = mistaken = 0
    for line in text.splitlines():
        found = re.match(r"^ *[0-9a-f]+:\t((?:[0-9a-f]{2} )+) *\t", line)
        if found is None:
            code = b""
            continue
        raw = bytes.fromhex(found[1])
        code = (code + raw)[-8:]
        if "call " in line.split("\t")[2]:
            calls += 1
            assert ends_with_call(code), line
        else:
            others += 1
            mistaken += ends_with_call(code)
    assert calls > 5000
    assert mistaken < others / 100


@pytest.mark.parametrize("code", ["", "e8", "e8000000", "ff", "90", "ffe0", "ff20", "ff2500000000"])
def test_what_is_no_call_is_told(code: str) -> None:
    assert not ends_with_call(bytes.fromhex(code))


@pytest.mark.parametrize(
    "code",
    [
        "e800000000",
        "ffd0",  # call *%rax
        "41ffd4",  # call *%r12
        "ff10",  # call *(%rax)
        "ff5008",  # call *8(%rax)
        "ff9000010000",  # call *256(%rax)
        "ff1500000000",  # call *0(%rip)
        "ff1424",  # call *(%rsp)
        "ff542408",  # call *8(%rsp)
        "ff942400010000",  # call *256(%rsp)
        "ff14c500000000",  # call *0(,%rax,8)
        "43ff54e508",  # call *8(%r13,%r12,8)
        "65ff1510000000",  # call *%gs:16(%rip)
    ],
)
def test_every_form_of_call_is_one(code: str) -> None:
    assert ends_with_call(bytes(4) + bytes.fromhex(code))
    assert ends_with_call(bytes.fromhex(code))


def test_x32_is_64_bit_code_with_a_signal_frame_of_its_own(tmp_path: Path) -> None:
    """struct rt_sigframe_x32 of arch/x86/include/asm/sigframe.h; struct sigcontext is that of 64-bit processes."""
    spec = ARCH.unwind.spec(CoreMachine(62, 32, ()))
    assert spec is not None
    assert (spec.word, spec.registers, spec.return_address) == (8, unwind(64).registers, 16)
    assert {trampoline.mcontext for trampoline in spec.trampolines} == {24}
    declared = """
#include <stddef.h>
struct ucontext_x32 { unsigned uc_flags, uc_link; struct { unsigned ss_sp; int ss_flags; unsigned ss_size; } uc_stack;
                      unsigned uc__pad0; unsigned long long uc_mcontext[32]; unsigned long long uc_sigmask; };
_Static_assert(offsetof(struct ucontext_x32, uc_mcontext) == 24, "uc_mcontext");
"""
    compiles(tmp_path, declared, "-mx32")
