"""Who waits for whom, and which of them wait for each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping

Releasers = Mapping[int, Collection[int]]
"""Of a thread that waits without an end in time: the threads any of which can end that, all of them known."""


def stuck(releasers: Releasers) -> set[int]:
    """Return the threads that wait for each other, or for one that does, whatever any other thread does.

    A thread whose wait some thread can end that itself goes on is not one, nor are those that it can wake.
    """
    found = {thread for thread, others in releasers.items() if others}
    while True:
        free = {thread for thread in found if any(other not in found for other in releasers[thread])}
        if not free:
            return found
        found -= free


def cycles(releasers: Releasers) -> list[list[int]]:
    """Return the circles of at least two threads that are stuck, each in its order, from its lowest number on.

    Of several ways around, the one by the lowest numbers; a thread is in one circle at most.
    """
    among = stuck(releasers)
    found: list[list[int]] = []
    taken: set[int] = set()
    for start in sorted(among):
        if start in taken:
            continue
        circle = _around(start, releasers, among - taken)
        if len(circle) > 1:
            found.append(circle)
            taken.update(circle)
    return found


def _around(start: int, releasers: Releasers, among: set[int]) -> list[int]:
    """Return the shortest way from a thread back to itself; nothing where there is none."""
    before: dict[int, int] = {}
    waiting = [start]
    for thread in waiting:
        for other in sorted(set(releasers[thread]) & among):
            if other == start:
                way = [thread]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            if other not in before:
                before[other] = thread
                waiting.append(other)
    return []
