"""The kernel's time: ``struct timekeeper`` (include/linux/timekeeper_internal.h, kernel/time/timekeeping.c)."""

from __future__ import annotations

from dataclasses import dataclass

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import LayoutUnknown, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

NSEC_PER_SEC = 10**9
CENTURY = 100 * 366 * 86400
"""More seconds than any kernel runs."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The kernel's clock at its last tick.

    Attributes:
        now: seconds since 1970.
        boot: seconds since 1970 when the monotonic clock was 0; messages count from there.
        boottime: the same for the clock that runs while the machine is suspended; tasks' start times count from there.
    """

    now: int
    boot: float
    boottime: float


def clock(kernel: Kernel) -> Clock | None:
    """Return the kernel's clock, or None if it is not known or makes no sense."""
    try:
        timekeeper = _timekeeper(kernel)
        if timekeeper is None:
            return None
        offset = timekeeper.embedded("wall_to_monotonic", "timespec64")
        seconds, nanoseconds = offset.sint("tv_sec", size=8), offset.sint("tv_nsec", size=8)
        now = timekeeper.sint("xtime_sec", size=8)
        suspended = timekeeper.find_uint("offs_boot", 8) or 0
    except (LayoutUnknown, MemoryFault):
        return None
    boot = -seconds - nanoseconds / NSEC_PER_SEC
    if seconds > 0 or not 0 <= nanoseconds < NSEC_PER_SEC or not -1 <= now - boot < CENTURY:
        return None
    return Clock(now, boot, boot - suspended / NSEC_PER_SEC)


def _timekeeper(kernel: Kernel) -> StructView | None:
    layout = kernel.layout
    # Since Linux kernel commit 20c7b582e88c ("timekeeping: Move shadow_timekeeper into tk_core") (in v6.13), it is in
    # struct tk_data, of which there are several since v6.17: timekeeper_data, the core's first. Before that,
    # shadow_timekeeper is a variable of its own and, after each tick, equal.
    within = layout.find_member("tk_data", "timekeeper")
    if within is not None:
        symbol = layout.find_symbol("timekeeper_data") or layout.find_symbol("tk_core")
        return None if symbol is None else kernel.view("timekeeper", KernelAddr(symbol + within.offset))
    symbol = layout.find_symbol("shadow_timekeeper")
    return None if symbol is None else kernel.view("timekeeper", KernelAddr(symbol))
