"""Why threads sleep, where layout or memory do not tell; tests/e2e/test_waits.py has what guests' threads wait for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from vmcore2core.errors import LayoutUnknown, MemoryFault
from vmcore2core.process.sleepers import Sleepers
from vmcore2core.unwind.process import UserSpace


def test_a_layout_without_open_files_says_so() -> None:
    processes: Any = SimpleNamespace(kernel=None)
    with (
        mock.patch("vmcore2core.process.sleepers.files.missing", return_value=["files_struct.fdt"]),
        pytest.raises(LayoutUnknown, match=r"files_struct\.fdt and more"),
    ):
        Sleepers(processes)


@pytest.mark.parametrize(
    ("now", "times", "since"),
    [
        (7_500_000_001, [2_500_000_000, 1], "5.000000001"),
        (7_500_000_001, [None, 7_500_000_000], "0.000000001"),
        (7_500_000_001, [0, None], None),
        (7_500_000_001, [7_500_000_002, 1], None),
        (None, [1, 1], None),
        (7_500_000_001, MemoryFault(0x1000, "is not in the dump"), None),
    ],
)
def test_since_when_is_known_or_not(now: int | None, times: Any, since: str | None) -> None:
    """A thread that ran after the latest clock was read cannot have slept since."""
    asked = object.__new__(Sleepers)
    asked._now = now
    task: Any = mock.Mock(find_uint=mock.Mock(side_effect=times))
    captured: Any = None
    found = asked.of((task, task), captured, captured, captured, None)
    assert (found.since, found.wait) == (since, None)


@pytest.mark.parametrize(
    ("vma", "words"),
    [
        (None, "not mapped"),
        (SimpleNamespace(start=0x1000, path=None, pgoff=None, name=""), "anonymous memory at 0x1000+0x10"),
        (SimpleNamespace(start=0x1000, path=None, pgoff=None, name="[heap]"), "[heap]+0x10"),
        (SimpleNamespace(start=0x1000, path=b"/dev/shm/x", pgoff=2, name=""), "/dev/shm/x+0x2010"),
    ],
)
def test_a_place_without_a_variable_is_one_of_its_mapping(vma: Any, words: str) -> None:
    space: Any = SimpleNamespace(
        image_of_data=lambda _at: None, vma=lambda _at: vma, snapshot=SimpleNamespace(page_size=0x1000)
    )
    assert UserSpace.named(space, 0x1010) == words
