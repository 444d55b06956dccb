"""Names and arguments of system calls, from the kernel's own tables.

The tracer of system calls (CONFIG_FTRACE_SYSCALLS, as in distributions) has the names and types of the arguments.
Without it, the table of functions tells only a call's name.

References: include/trace/syscall.h: struct syscall_metadata; kernel/trace/trace_syscalls.c: init_ftrace_syscalls();
include/linux/syscalls.h (Linux 4.18 to 7.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmcore2core.arch.kernel_stack import SystemCall
from vmcore2core.errors import LayoutError, MemoryFault
from vmcore2core.kernel.kallsyms import KernelNames
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.overrides import override
from vmcore2core.printable import text

NUMBERS_MAX = 1 << 13
ARGUMENTS_MAX = 6
NAME_MAX = 64
_PREFIX = re.compile(r"^(?:__(?:x64|ia32|arm64|riscv|s390x?|se|do|powerpc)_)?(?:compat_)?sys_")
SIGNED = re.compile(r"^(?:int|long|pid_t|.*ssize_t|.*loff_t|clockid_t|const clockid_t|key_t|timer_t)$")
WIDE = re.compile(r"\*|long|size_t|off_t|__u64|u64|aio_context_t")

# include/uapi/linux/futex.h
FUTEX_COMMANDS = (
    *("WAIT", "WAKE", "FD", "REQUEUE", "CMP_REQUEUE", "WAKE_OP", "LOCK_PI", "UNLOCK_PI", "TRYLOCK_PI"),
    *("WAIT_BITSET", "WAKE_BITSET", "WAIT_REQUEUE_PI", "CMP_REQUEUE_PI", "LOCK_PI2"),
)
FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME = 0x80, 0x100


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument; ``name`` is None if the kernel does not tell it, ``text`` is the value in readable form."""

    name: str | None
    value: int
    text: str


@dataclass(frozen=True, slots=True)
class NamedCall:
    """A system call.

    Attributes:
        number: of the machine's table.
        name: "futex"; None if no table has it.
        arguments: as many as it takes; all six registers if that is not known.
    """

    number: int
    name: str | None
    arguments: tuple[Argument, ...]

    @override
    def __str__(self) -> str:
        name = self.name or f"system call {self.number}"
        return (
            f"{name}({', '.join(one.text if one.name is None else f'{one.name}={one.text}' for one in self.arguments)})"
        )


class SystemCalls:
    """The system calls of a kernel.

    Args:
        kernel: the dumped kernel.
        names: of its functions.
    """

    def __init__(self, kernel: Kernel, names: KernelNames) -> None:
        self._kernel, self._names = kernel, names
        self._known: dict[tuple[str, int], tuple[str | None, tuple[tuple[str, str], ...] | None]] = {}

    def named(self, call: SystemCall) -> NamedCall:
        """Return a system call with its name and its arguments."""
        key = call.table, call.number
        if key not in self._known:
            self._known[key] = self._look_up(call)
        name, parameters = self._known[key]
        if parameters is None:
            arguments = tuple(Argument(None, value, f"{value:#x}") for value in call.arguments)
        else:
            values = zip(parameters, call.arguments, strict=False)
            arguments = tuple(
                Argument(label, value, _shown(name, label, kind, value)) for (kind, label), value in values
            )
        return NamedCall(call.number, name, arguments)

    def _look_up(self, call: SystemCall) -> tuple[str | None, tuple[tuple[str, str], ...] | None]:
        """Return the name, and type and name of each argument; None is "not known"."""
        if not 0 <= call.number < NUMBERS_MAX:
            return None, None
        try:
            metadata = self._metadata(call.number) if call.native else None
            if metadata is not None:
                return _PREFIX.sub("", text(self._string(metadata, "name"))), self._parameters(metadata)
            return self._function(call), None
        except (MemoryFault, LayoutError):
            return None, None

    def _metadata(self, number: int) -> StructView | None:
        """Return ``struct syscall_metadata`` of a system call."""
        table = self._kernel.layout.find_symbol("syscalls_metadata")
        if table is None or self._kernel.layout.find_member("syscall_metadata", "nb_args") is None:
            return None
        entries = self._kernel.read_pointer(table)
        found = self._kernel.read_pointer(entries + number * self._kernel.arch.pointer_size) if entries else 0
        if not found:
            return None
        view = self._kernel.view("syscall_metadata", found)
        return view if view.uint("syscall_nr", size=4) == number else None

    def _parameters(self, metadata: StructView) -> tuple[tuple[str, str], ...] | None:
        count = metadata.uint("nb_args", size=4)
        if count > ARGUMENTS_MAX:
            return None
        kernel, word = self._kernel, self._kernel.arch.pointer_size
        found = []
        for i in range(count):
            pair = (kernel.read_pointer(metadata.pointer(name) + i * word) for name in ("types", "args"))
            found.append(tuple(text(kernel.read_string(at, NAME_MAX)) for at in pair))
        return tuple((kind, label) for kind, label in found)

    def _string(self, view: StructView, name: str) -> bytes:
        return self._kernel.read_string(view.pointer(name), NAME_MAX)

    def _function(self, call: SystemCall) -> str | None:
        table = self._kernel.layout.find_symbol(call.table)
        if table is None:
            return None
        found = self._names.of(self._kernel.read_pointer(table + call.number * self._kernel.arch.pointer_size))
        return None if found is None or found.offset else _PREFIX.sub("", found.name)


def _shown(name: str | None, label: str, kind: str, value: int) -> str:
    """Return the value of an argument by its type, in strace's form, without following pointers."""
    if not WIDE.search(kind):
        value &= 0xFFFF_FFFF
    if name == "futex" and label == "op":
        return futex_op(value)
    if "*" in kind:
        return f"{value:#x}" if value else "NULL"
    bits = 64 if WIDE.search(kind) else 32
    if SIGNED.match(kind):
        return str(value - (1 << bits) if value >> (bits - 1) else value)
    return str(value) if value < 10 or "size_t" in kind else f"{value:#x}"


def futex_op(op: int) -> str:
    """Return the operation of futex(2) by name: "FUTEX_WAIT_PRIVATE"."""
    command = op & ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)
    if command >= len(FUTEX_COMMANDS):
        return f"{op:#x}"
    private = "_PRIVATE" if op & FUTEX_PRIVATE_FLAG else ""
    return f"FUTEX_{FUTEX_COMMANDS[command]}{private}" + ("|FUTEX_CLOCK_REALTIME" if op & FUTEX_CLOCK_REALTIME else "")
