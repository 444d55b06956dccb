"""The kernel's clock, put together as include/linux/timekeeper_internal.h has it; offsets are any that are free."""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import KernelImage, Offsets
from vmcore2core.kernel.timekeeping import Clock, clock

TIMEKEEPER: Offsets = {
    "timekeeper": {"xtime_sec": (64, 8), "wall_to_monotonic": (80, 16), "offs_boot": (104, 8)},
    "timespec64": {"tv_sec": (0, 8), "tv_nsec": (8, 8)},
}
SINCE_6_13: Offsets = {"tk_data": {"timekeeper": (16, 0)}}
NOW, UPTIME, SUSPENDED = 1795449347, 100, 3600


def image(
    symbol: str, *offsets: Offsets, at: int = 0, seconds: int = UPTIME - NOW, nanoseconds: int = 5 * 10**8
) -> KernelImage:
    made = KernelImage(TIMEKEEPER, *offsets)
    place = made.alloc(256, 64)
    made.table.symbols[symbol] = place
    made.write(place + at + 64, struct.pack("<qqqqqq", NOW, 0, seconds, nanoseconds, 0, SUSPENDED * 10**9))
    return made


@pytest.mark.parametrize(
    ("symbol", "offsets", "at"),
    [("shadow_timekeeper", (), 0), ("tk_core", (SINCE_6_13,), 16), ("timekeeper_data", (SINCE_6_13,), 16)],
)
def test_the_clock_is_where_each_kernel_has_it(symbol: str, offsets: tuple[Offsets, ...], at: int) -> None:
    boot = NOW - UPTIME - 0.5  # wall_to_monotonic is what is added to the time of day, its nanoseconds never negative
    assert clock(image(symbol, *offsets, at=at).kernel()) == Clock(NOW, boot, boot - SUSPENDED)


@pytest.mark.parametrize(("seconds", "nanoseconds"), [(1, 0), (UPTIME - NOW, 10**9), (UPTIME - NOW, -1), (-NOW - 2, 0)])
def test_a_clock_that_makes_no_sense_is_none(seconds: int, nanoseconds: int) -> None:
    """A boot before 1970, more than a second in the fraction, less than none, a boot after now."""
    assert clock(image("shadow_timekeeper", seconds=seconds, nanoseconds=nanoseconds).kernel()) is None


def test_a_kernel_whose_layout_has_no_timekeeper_has_no_clock() -> None:
    assert clock(KernelImage().kernel()) is None
    assert clock(image("tk_core").kernel()) is None
