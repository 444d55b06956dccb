"""Copies a core's pages with several processes, because Python's global lock lets only one thread decode at a time.

The process that made the plan forks the others. Each takes one piece of the core after another, and writes its pages
to their offsets. If one of them fails, the parent discards their work, copies all pages itself, and reports the error.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

from vmcore2core.addresses import align_up
from vmcore2core.signals import ENDING, blocked

if TYPE_CHECKING:  # most runs do without
    from multiprocessing.connection import Connection

PIECE_SIZE = 16 << 20
"""Approximate bytes of user memory in a piece; more if there would be more than ``PIECES_MAX`` pieces."""
PIECES_MAX = 4096

Ranges = Sequence[tuple[int, int]]


class Copied(NamedTuple):
    """The number of pages copied, and how many of them hold only zeros."""

    present: int
    zero: int


def pieces(ranges: Ranges) -> Iterator[list[tuple[int, int]]]:
    """Yield ascending ranges in pieces that take about the same time to copy."""
    total = sum(end - start for start, end in ranges)
    room = size = max(align_up(-(-total // PIECES_MAX), PIECE_SIZE), PIECE_SIZE)
    piece: list[tuple[int, int]] = []
    for start, end in ranges:
        while end - start >= room:
            yield [*piece, (start, start + room)]
            start, piece, room = start + room, [], size
        if start < end:
            piece.append((start, end))
            room -= end - start
    if piece:
        yield piece


def copy_with(
    count: int, work: Sequence[Ranges], copy: Callable[[Ranges], Copied], told: Callable[[int], None]
) -> Copied | None:
    """Copy pieces with several processes; return the totals, or None if a process failed.

    Args:
        count: number of processes.
        work: the pieces to copy.
        copy: copies one piece.
        told: called with the number of pieces done.
    """
    from multiprocessing.connection import Pipe

    todo, given = os.pipe()
    children: dict[Connection, int] = {}
    try:
        os.write(given, b"".join(number.to_bytes(2, "little") for number in range(len(work))))
        os.close(given)
        for _ in range(min(count, len(work))):
            ours, theirs = Pipe(duplex=False)
            children[ours] = _forked(theirs, todo, work, copy)
            theirs.close()
        return _gathered(list(children), len(work), told)
    finally:
        os.close(todo)
        for connection, pid in children.items():
            connection.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)  # a finished one is a zombie until waitpid()
            os.waitpid(pid, 0)


def _gathered(connections: list[Connection], count: int, told: Callable[[int], None]) -> Copied | None:
    from multiprocessing.connection import wait

    total, done = Copied(0, 0), 0
    while done < count and connections:
        for connection in cast("list[Connection]", wait(connections)):
            try:
                copied: Copied | None = connection.recv()
            except (EOFError, OSError):
                connections.remove(connection)
                continue
            if copied is None:
                return None
            total = Copied(total.present + copied.present, total.zero + copied.zero)
            done += 1
            told(done)
    return total if done == count else None


def _forked(connection: Connection, todo: int, work: Sequence[Ranges], copy: Callable[[Ranges], Copied]) -> int:
    with blocked(*ENDING):
        pid = os.fork()
        if not pid:
            _serve(connection, todo, work, copy)
        return pid


def _serve(connection: Connection, todo: int, work: Sequence[Ranges], copy: Callable[[Ranges], Copied]) -> NoReturn:
    """Copy pieces until none are left."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent reports Ctrl-C
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        # Each read gets one whole number: the parent wrote them all at once, and the pipe's lock serialises readers.
        while number := os.read(todo, 2):
            connection.send(copy(work[int.from_bytes(number, "little")]))
    except BaseException:
        with contextlib.suppress(OSError):
            connection.send(None)
    finally:
        os._exit(0)  # skip the parent's buffers and exit handlers
