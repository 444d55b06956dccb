"""Which threads wait for which others, and which wait for each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping

Releasers = Mapping[int, Collection[int]]
"""For each thread that waits without a timeout: all threads that can wake it, any one of which is enough."""


def stuck(releasers: Releasers) -> set[int]:
    """Return the threads that wait for each other, or for a thread that does, and that no other thread can wake.

    If a running thread can wake a waiting one, that one is not stuck, and neither are the threads that it can wake.
    """
    found = {thread for thread, others in releasers.items() if others}
    while True:
        free = {thread for thread in found if any(other not in found for other in releasers[thread])}
        if not free:
            return found
        found -= free


def cycles(releasers: Releasers) -> list[list[int]]:
    """Return the cycles of at least two stuck threads, each in waiting order, beginning with its lowest TID.

    Where several cycles are possible, take the one with the lowest TIDs; a thread is in one cycle at most.
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
    """Return the shortest path from a thread back to itself; empty if there is none."""
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
