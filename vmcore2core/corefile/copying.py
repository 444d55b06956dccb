"""Copies a core's pages with several processes: Python's global lock lets one thread of a process decode at a time.

Each process is forked from the one that made the plan, takes one piece of the core after another, and writes the pages
where they go. If anything goes wrong in one of them, nothing of it is believed: the parent does it all again, alone,
and says what is wrong.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

from vmcore2core.addresses import align_up

if TYPE_CHECKING:  # most runs do without
    from multiprocessing.connection import Connection

PIECE_SIZE = 16 << 20
"""Bytes of user memory in a piece, about; more where there would be more than ``PIECES_MAX``."""
PIECES_MAX = 4096
_ENDING = (signal.SIGINT, signal.SIGTERM)

Ranges = Sequence[tuple[int, int]]


class Copied(NamedTuple):
    """Pages that were copied, and how many of them hold only zeros."""

    present: int
    zero: int


def pieces(ranges: Ranges) -> Iterator[list[tuple[int, int]]]:
    """Yield ascending ranges in pieces that take about as long as each other."""
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
    """Return what several processes copied together; None if one of them could not.

    Args:
        count: how many.
        work: what is to be copied, in pieces.
        copy: copies a piece.
        told: gets how many pieces are done.
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
                os.kill(pid, signal.SIGTERM)  # those that are done have ended, and wait to be asked
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        pid = os.fork()
        if not pid:
            _serve(connection, todo, work, copy)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, todo: int, work: Sequence[Ranges], copy: Callable[[Ranges], Copied]) -> NoReturn:
    """Copy pieces until there are no more."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's, the parent tells
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        # A pipe gives each reader whole numbers: they were written at once, and a read takes its lock.
        while number := os.read(todo, 2):
            connection.send(copy(work[int.from_bytes(number, "little")]))
    except BaseException:
        with contextlib.suppress(OSError):
            connection.send(None)
    finally:
        os._exit(0)  # what the parent has to flush and to clean up is not this process's
