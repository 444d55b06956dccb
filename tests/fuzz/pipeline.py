"""The whole way from a dump to cores, over bundled guests with words of their memory replaced."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import zstandard

from tests.fuzz.harness import Choices, Harness, Parts
from tests.fuzz.overlay import poked
from tests.fuzz.poke import DUMP, core_digest, recorded
from vmcore2core.choose import Choice, choose
from vmcore2core.kernel import printk, sched
from vmcore2core.process.threads import thread_rows
from vmcore2core.session import Session
from vmcore2core.tasks import ps
from vmcore2core.tasks.crash import cause
from vmcore2core.unwind.stacks import backtraces

GUESTS = ("debian-6.1-amd64", "debian-7.2-s390x")


def seeds() -> Sequence[bytes]:
    return [bytes([guest, number]) + bytes(range(48)) for guest in range(len(GUESTS)) for number in range(4)]


@cache
def guest(number: int) -> tuple[Session, tuple[int, ...], tuple[int, ...]]:
    """Return an open guest, its processes' numbers, and the words that their conversion reads."""
    name = GUESTS[number]
    path = DUMP.parents[1] / name / "vmcore"
    if not path.exists():
        folder = Path(tempfile.mkdtemp())
        packed = path.with_suffix(".zst").read_bytes()
        path = folder / "vmcore"
        path.write_bytes(zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed).read())
    session = Session([path])
    session.kernel.layout.find_symbol("init_task")
    numbers = tuple(sched.task_pid(leader) for leader in session.processes.with_mm())
    fresh = poked(session, {})
    with recorded(fresh) as words:
        for pid in numbers:
            core_digest(fresh, pid)
        look_at_all(fresh)
    return session, numbers, tuple(words)


def look_at_all(session: Session) -> None:
    chosen, _ = choose(session.processes, Choice(), session.processes.leaders)
    list(ps.threads(session, chosen, ps.EVERYTHING))


def run(data: bytes) -> str:
    parts, choices = Parts(), Choices(data)
    session, numbers, words = guest(choices.take(1)[0] % len(GUESTS))
    victim = numbers[choices.take(1)[0] % len(numbers)]
    order = session.kernel.arch.byte_order
    pokes = {}
    for _ in range(min(choices.left // 8, 16)):
        at = words[choices.below(len(words))]
        old = int.from_bytes(session.kernel.memory.physical.read(at, 8), order)
        if choices.below(4) == 0:  # what another word has: pointers that lead somewhere
            old = int.from_bytes(session.kernel.memory.physical.read(words[choices.below(len(words))], 8), order)
        pokes[at] = choices.word(old).to_bytes(8, order)
    changed = poked(session, pokes)
    look_at_all(changed)
    cause(printk.read_messages(changed.kernel)[0])
    with parts.one():
        core_digest(changed, victim)
    with parts.one():
        leader = changed.processes.find(victim)
        captured = changed.processes.capture(leader)
        rows = list(thread_rows(changed.processes.thread_registers(leader)))
        list(backtraces(captured, changed.kernel.arch, rows, 64))
    return parts.result


HARNESS = Harness("pipeline", seeds, run, 512)
