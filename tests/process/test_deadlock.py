"""Which threads wait for each other, and which only wait."""

from __future__ import annotations

import pytest

from vmcore2core.process.deadlock import Releasers, cycles, stuck


@pytest.mark.parametrize(
    ("releasers", "expected"),
    [
        ({}, []),
        ({1: [2], 2: [1]}, [[1, 2]]),
        ({1: [2], 2: [3], 3: [1]}, [[1, 2, 3]]),
        ({3: [1], 2: [3], 1: [2], 4: [1]}, [[1, 2, 3]]),  # 4 waits for one of them, and nobody for it
        ({1: [2], 2: [3]}, []),  # 3 goes on
        ({1: [2, 3], 2: [1]}, []),  # 3 can end the wait of 1
        ({1: [2, 3], 2: [1], 3: [1]}, [[1, 2]]),
        ({1: [1]}, []),  # a pipe of its own, which a signal's handler may write to
        ({1: []}, []),  # nobody is known who can end it
        ({1: [2], 2: [1], 5: [6], 6: [5]}, [[1, 2], [5, 6]]),
        ({1: [2], 2: [3], 3: [2]}, [[2, 3]]),
    ],
)
def test_circles_are_found_and_nothing_else_is(releasers: Releasers, expected: list[list[int]]) -> None:
    assert cycles(releasers) == expected


def test_who_waits_for_a_deadlock_is_stuck_too() -> None:
    assert stuck({1: [2], 2: [1], 4: [1], 5: [4, 6]}) == {1, 2, 4}


def test_a_long_way_around_is_no_deeper_than_the_stack() -> None:
    ring = {thread: [(thread + 1) % 5000] for thread in range(5000)}
    assert cycles(ring) == [list(range(5000))]
