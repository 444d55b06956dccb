"""The special types of swp_entry_t, by the numbers of include/linux/swap.h of each kernel."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import Table
from vmcore2core.kernel.swapops import SoftLeaf, special_types
from vmcore2core.layout.resolver import KernelLayout

HWPOISON, MIGRATION, MARKER = SoftLeaf.HWPOISON, SoftLeaf.MIGRATION, SoftLeaf.MARKER
PRIVATE, EXCLUSIVE = SoftLeaf.DEVICE_PRIVATE, SoftLeaf.DEVICE_EXCLUSIVE


def told(*symbols: str, since_5_19: bool = True) -> dict[int, SoftLeaf]:
    table = Table(
        symbols=dict.fromkeys(symbols, 1), constants={"PG_anon_exclusive" if since_5_19 else "PG_uptodate": 17}
    )
    return special_types(KernelLayout([table]))


@pytest.mark.parametrize(
    ("symbols", "numbers"),
    [
        # v7.2: MAX_SWAPFILES is 24; SWP_HWPOISON, SWP_MIGRATION_READ, _READ_EXCLUSIVE, _WRITE, SWP_DEVICE_WRITE, _READ,
        # SWP_DEVICE_EXCLUSIVE, SWP_PTE_MARKER.
        (
            ("memory_failure", "migrate_pages", "make_device_exclusive"),
            [HWPOISON, MIGRATION, MIGRATION, MIGRATION, PRIVATE, PRIVATE, EXCLUSIVE, MARKER],
        ),
        # v6.1: 23; SWP_DEVICE_EXCLUSIVE_WRITE and _READ.
        (
            ("memory_failure", "migrate_pages", "make_device_exclusive_range"),
            [HWPOISON, MIGRATION, MIGRATION, MIGRATION, PRIVATE, PRIVATE, EXCLUSIVE, EXCLUSIVE, MARKER],
        ),
        (("memory_failure", "migrate_pages"), [HWPOISON, MIGRATION, MIGRATION, MIGRATION, MARKER]),
        (("migrate_pages",), [MIGRATION, MIGRATION, MIGRATION, MARKER]),
        ((), [MARKER]),
    ],
)
def test_the_types_end_at_31(symbols: tuple[str, ...], numbers: list[SoftLeaf]) -> None:
    assert told(*symbols) == {32 - len(numbers) + i: kind for i, kind in enumerate(numbers)}


def test_linux_5_15_has_two_migration_types_and_no_marker() -> None:
    found = told("memory_failure", "migrate_pages", "make_device_exclusive_range", since_5_19=False)
    assert found == dict(
        zip(range(25, 32), [HWPOISON, MIGRATION, MIGRATION, PRIVATE, PRIVATE, EXCLUSIVE, EXCLUSIVE], strict=True)
    )


def test_a_kernel_that_does_not_tell_has_unknown_types_alone() -> None:
    assert set(told("memory_failure", "migrate_pages", since_5_19=False).values()) == {SoftLeaf.UNKNOWN}


def test_enumerators_that_nothing_tells_are_not_missing_ones() -> None:
    """kallsyms without BTF: a guard marker of Linux 6.13 would pass for a page that a device works on."""
    table = Table(symbols=dict.fromkeys(("make_device_exclusive", "migrate_pages"), 1))
    assert set(special_types(KernelLayout([table])).values()) == {SoftLeaf.UNKNOWN}
