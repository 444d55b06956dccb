"""Names and arguments of system calls, by a small fake kernel; tests/e2e has those of real kernels."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import TEXT, KernelImage, Table
from vmcore2core.arch.kernel_stack import SystemCall
from vmcore2core.interfaces import SymbolAt
from vmcore2core.kernel.kallsyms import KernelNames
from vmcore2core.kernel.syscall import SystemCalls, futex_op
from vmcore2core.layout.base import LayoutSource

ALL = (0x7F00_0000_1000, 1 << 32 | 5, 0xFFFF_FFFF_FFFF_FFFF, 7, 0x1234, 6)


class Core(LayoutSource):
    """Functions of 16 bytes each."""

    name = "kallsyms"

    def symbol_at(self, address: int) -> SymbolAt | None:
        names = {TEXT: b"__arm64_sys_openat", TEXT + 16: b"__x64_sys_read", TEXT + 32: b"compat_sys_ioctl"}
        start = address & ~15
        return SymbolAt(names[start], start, 16) if start in names else None


class Image(KernelImage):
    """A kernel with a table of functions, and one of what its tracer knows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(
            {
                "syscall_metadata": {
                    "name": (0, 8),
                    "syscall_nr": (8, 4),
                    "nb_args": (12, 4),
                    "types": (16, 8),
                    "args": (24, 8),
                }
            },
            symbols={"_stext": TEXT, "_etext": TEXT + 0x1000},
        )
        self.alloc(0x100)
        entries = self.alloc(8 * 8)
        self.words(entries, TEXT, TEXT + 16, TEXT + 32, TEXT + 8)
        self.table.symbols["sys_call_table"] = entries

    def metadata(self, number: int, name: bytes, *parameters: tuple[bytes, bytes]) -> int:
        strings = [(self.string(kind), self.string(label)) for kind, label in parameters]
        types, args = self.alloc(64), self.alloc(64)
        self.words(types, *(kind for kind, _ in strings), 0)
        self.words(args, *(label for _, label in strings), 0)
        found = self.make(
            "syscall_metadata",
            name=self.string(name),
            syscall_nr=number,
            nb_args=len(parameters),
            types=types,
            args=args,
        )
        entries = self.alloc(8 * 16)
        self.words(entries + 8 * number, found)
        self.table.symbols["syscalls_metadata"] = self.words(self.alloc(8), entries)
        return found

    def shown(self, number: int, *, native: bool = True) -> str:
        kernel = self.kernel(lambda _: Core())
        return str(SystemCalls(kernel, KernelNames(kernel)).named(SystemCall(number, ALL, native=native)))


def test_arguments_are_shown_as_their_types_are() -> None:
    image = Image()
    kinds = [(b"const char *", b"path"), (b"int", b"fd"), (b"int", b"flags"), (b"umode_t", b"mode"), (b"size_t", b"n")]
    image.metadata(5, b"sys_openat", *kinds, (b"unsigned long", b"last"))
    assert image.shown(5) == "openat(path=0x7f0000001000, fd=5, flags=-1, mode=7, n=4660, last=6)"
    image.metadata(5, b"sys_x", (b"struct x *", b"p"), (b"long", b"a"), (b"long", b"b"), (b"u32 *", b"c"))
    assert image.shown(5) == "x(p=0x7f0000001000, a=4294967301, b=-1, c=0x7)"


@pytest.mark.parametrize(("number", "name"), [(0, "openat"), (1, "read"), (2, "ioctl")])
def test_without_a_tracer_the_table_of_functions_tells_the_name(number: int, name: str) -> None:
    values = "0x7f0000001000, 0x100000005, 0xffffffffffffffff, 0x7, 0x1234, 0x6"
    assert Image().shown(number) == f"{name}({values})"


@pytest.mark.parametrize("number", [3, 4, 100_000, -1])
def test_a_number_that_no_table_names_is_a_number(number: int) -> None:
    assert Image().shown(number).startswith(f"system call {number}(0x7f0000001000, ")


def test_compat_calls_are_not_named_by_the_native_tracer() -> None:
    image = Image()
    image.metadata(1, b"sys_write")
    assert image.shown(1) == "write()"
    assert image.shown(1, native=False).startswith("read(0x7f")
    del image.table.symbols["sys_call_table"]
    assert image.shown(1, native=False).startswith("system call 1(0x7f")


def test_what_the_tracer_cannot_have_is_not_believed() -> None:
    image = Image()
    found = image.metadata(1, b"sys_write")
    image.set("syscall_metadata", found, nb_args=7)
    assert image.shown(1).startswith("write(0x7f0000001000, ")
    image.set("syscall_metadata", found, syscall_nr=2)
    assert image.shown(1).startswith("read(0x7f")
    image.table.symbols["syscalls_metadata"] = 0xFFFF_FFFF_8F00_0000
    assert image.shown(1).startswith("system call 1(")


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (0, "FUTEX_WAIT"),
        (0x189, "FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME"),
        (0x86, "FUTEX_LOCK_PI_PRIVATE"),
        (0x7F, "0x7f"),
    ],
)
def test_operations_of_futex_have_names(op: int, name: str) -> None:
    assert futex_op(op) == name
