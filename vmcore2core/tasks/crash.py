"""When and why the kernel died, as far as the dump tells."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.message import Message
from vmcore2core.kernel.printk import PANIC
from vmcore2core.kernel.struct import Kernel
from vmcore2core.kernel.timekeeping import clock
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.printable import text

CPUS_MAX = 1 << 16
"""More than CONFIG_NR_CPUS of any kernel."""
REPORT_LINES = 8
"""Most lines from a report's first line to the last one that also looks like a first line."""
TRACE_MAX = 64
"""Most lines of a trace to show; only recursion makes the kernel print deeper stacks."""

# The first lines of reports: arch/*/kernel/traps.c, arch/*/mm/fault.c, lib/bug.c, kernel/watchdog.c.
_OOPS = re.compile(
    r"BUG: |kernel BUG at |Oops\b|Unable to handle kernel |Internal error: |general protection fault|"
    r"double fault|stack guard page was hit|Watchdog detected hard LOCKUP|Unhandled fault"
)
_COUNTER = re.compile(r"(RIP: |pc : |NIP |epc ?: |PC is at |Krnl PSW : )")
_TRACE = re.compile(r"Call [Tt]race:")
_FRAME = re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+|^ ?</?[A-Za-z_#]+>$")


@dataclass(frozen=True)
class Cause:
    """Why the kernel died, from its messages; printable text.

    Attributes:
        panic: the text after "Kernel panic - not syncing: ".
        oops: the first line of the report that led to it, if any.
        trace: the lines of the call trace without their times; the program counter's line first, if it has one.
    """

    panic: str | None
    oops: str | None
    trace: tuple[str, ...]


def cause(messages: list[Message]) -> Cause | None:
    """Return why the kernel died, from its last panic or oops; None if it had neither."""
    at = _last(messages, PANIC)
    if at is None:
        return None if (at := _last(messages, _OOPS)) is None else _cause(messages, at, None)
    reason = messages[at].text.partition(PANIC)[2]
    # A panic that follows from an oops has no trace of its own: the oops had it (kernel/panic.c: panic()).
    return _cause(messages, at, text(reason.encode()))


def _last(messages: list[Message], what: str | re.Pattern[str]) -> int | None:
    found = (i for i in range(len(messages) - 1, -1, -1) if re.search(what, messages[i].text))
    return next(found, None)


def _cause(messages: list[Message], at: int, panic: str | None) -> Cause:
    """Return the cause whose last or only line is ``messages[at]``; other CPUs' messages may lie in between."""
    own = [(i, message.text) for i, message in enumerate(messages) if message.caller == messages[at].caller]
    after = [line for i, line in own if i > at]
    trace = _trace(after)
    oops = None
    if panic is None:
        oops = messages[at].text
    elif not trace:
        before = [line for i, line in own if i < at]
        began = max((i for i, line in enumerate(before) if _TRACE.search(line)), default=None)
        first = [i for i, line in enumerate(before[:began]) if _OOPS.search(line)] if began is not None else []
        if first:
            # Several lines of one report match: the first of a close series says the most.
            start = next((i for i in first if i >= first[-1] - REPORT_LINES), first[-1])
            oops, trace = before[start], _trace(before[start:])
    return Cause(panic, None if oops is None else text(oops.encode()), tuple(text(line.encode()) for line in trace))


def _trace(lines: list[str]) -> list[str]:
    """Return the first call trace in the messages of one caller, after the program counter's line."""
    start = next((i for i, line in enumerate(lines) if _TRACE.search(line)), None)
    if start is None:
        return []
    counter = [line for line in lines[:start] if _COUNTER.match(line)][-1:]
    frames = []
    for line in lines[start + 1 : start + 1 + TRACE_MAX]:
        if not _FRAME.search(line):
            break
        frames.append(line)
    return counter + frames


def panic_cpu(kernel: Kernel) -> int | None:
    """Return the CPU that panicked (kernel/panic.c: panic_cpu), or None if none did or it is not known."""
    symbol = kernel.layout.find_symbol("panic_cpu")
    if symbol is None:
        return None
    try:
        number = kernel.uint(symbol, 4)
    except MemoryFault:
        return None
    return number if number < CPUS_MAX else None  # PANIC_CPU_INVALID is -1


def boot_time(kernel: Kernel, info: VmcoreInfo, messages: list[Message]) -> tuple[float | None, str | None]:
    """Return the start of the messages' clock, in seconds since 1970, and a sentence if that is not exact.

    Args:
        kernel: the dumped one.
        info: its VMCOREINFO.
        messages: the kernel's, oldest first.
    """
    known = clock(kernel)
    if known is not None:
        return known.boot, None
    crashed = info.crash_time
    if crashed is None or not messages:
        return None, "the time of day is not known: the layout has no timekeeper, and VMCOREINFO no CRASHTIME"
    return crashed - messages[-1].seconds, "times of day are some seconds off: they are counted back from CRASHTIME"
