"""Words of kernel structures replaced at random: a core is the same, marked as partial, or there is none.

``python -m tests.fuzz.poke --count 1000`` pokes one 8-byte word a variant, of those that a conversion of the bundled
6.1 guest reads, and compares what comes out with what came out before.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.overlay import poked
from vmcore2core.corefile.notes import notes_of
from vmcore2core.corefile.plan import build_plan
from vmcore2core.elf.notes import build_notes
from vmcore2core.errors import MemoryFault, Vmcore2coreError
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory import mapped, pagetable
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.process.model import NOT_MISSING
from vmcore2core.session import Session, absent_pages

DUMP = Path(__file__).resolve().parents[2] / "fixtures" / "debian-6.1-amd64" / "vmcore"
VICTIMS = (86, 92)
WORD = 8

UNNOTICEABLE = {
    "task_struct.comm": "any process may give itself any name",
    "x86_64:user_regs": "any value is possible, but for some of cs, ss, rflags, rip and rsp",
    "x86_64:thread_bases": "likewise, as far as a base is canonical and a selector in the GDT or LDT",
    "task_struct.thread.pkru": "a register",
    "x86_fpu:_image": "the registers of the floating-point unit",
    "fs:dentry_name": "the characters of a path",
    "consistency:_signals": "any mask without SIGKILL and SIGSTOP may be blocked",
    "prstatus:_sigset": "likewise",
    "task_struct.flags": "any of 32 bits, which only pr_flag has",
    "task_struct.static_prio": "any nice value",
    "cred.gid": "any number",
    **dict.fromkeys(
        [
            "task_struct.utime",
            "task_struct.stime",
            "signal_struct.utime",
            "signal_struct.stime",
            "signal_struct.cutime",
            "signal_struct.cstime",
        ],
        "ticks that were counted: any time that is not longer than all CPUs had since boot",
    ),
    "mm_struct.flags": "any coredump_filter",
    "page.flags": "whether a page of a file that lives in memory is set aside, and reads as zeros, or filled",
}
"""Words whose change into another valid value contradicts nothing else, and why."""

Value = Callable[[random.Random, int], int]
VALUES: dict[str, Value] = {
    "random": lambda rng, _old: rng.getrandbits(64),
    "flip": lambda rng, old: old ^ 1 << rng.randrange(64),
    "zero": lambda _rng, _old: 0,
    "small": lambda rng, _old: rng.randrange(4096),
    "near": lambda rng, old: (old + rng.choice((-4096, -64, -8, 8, 64, 4096))) % (1 << 64),
}


@dataclass(frozen=True)
class Place:
    """A word that a conversion reads.

    Attributes:
        names: "task_struct.mm", or where the code reads it, to a mask of which of the 8 bytes that are.
        paddr: physical address, a multiple of 8.
    """

    names: Mapping[str, int]
    paddr: int

    @property
    def what(self) -> str:
        """The first name."""
        return next(iter(self.names))

    def is_unnoticeable(self, change: int) -> bool:
        """Tell whether all that is read of the bits of ``change`` is in ``UNNOTICEABLE``."""
        mask = sum(1 << i for i in range(WORD) if change >> 8 * i & 0xFF)
        return all(name in UNNOTICEABLE for name, part in self.names.items() if part & mask)


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        counts: variants by what they ended in: "same", "marked", "error", "unnoticeable", "UNNOTICED", "FAILURE".
        failures: what must not be: a sentence each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


def core_digest(session: Session, number: int) -> tuple[str, bool]:
    """Convert a process, and return what its core has, and whether the command would say that it is complete.

    Raises:
        Vmcore2coreError: there is no core.
    """
    leader = session.processes.find(number)
    captured = session.processes.capture(leader, dump_filter=None)
    snapshot = captured.snapshot
    digest = hashlib.blake2b()
    plan = build_plan(snapshot, build_notes(notes_of(snapshot, {}), snapshot.byte_order))
    digest.update(plan.head.read(0, plan.head.size))
    for segment in plan.segments:
        for vaddr, pages in captured.memory.batches([(segment.start, segment.start + segment.filesz)]):
            digest.update(vaddr.tobytes())
            digest.update(pages.tobytes())
    missing = any(reason not in NOT_MISSING for reason in absent_pages(snapshot))
    wrong = missing or snapshot.threads_left_out or snapshot.warnings or session.warnings or captured.memory.damaged
    return digest.hexdigest(), not wrong


@contextmanager
def recorded(session: Session) -> Iterator[dict[int, dict[str, int]]]:
    """Note each word that is read, by its physical address, as ``Place.names``."""
    words: dict[int, dict[str, int]] = {}
    struct_read, kernel_read, walk = StructView._read, KernelMemory.read, pagetable.walk

    def note(address: int, size: int, what: str) -> None:
        for word in range(address & ~(WORD - 1), address + size, WORD):
            try:
                names = words.setdefault(int(session.kernel.memory.to_phys(word)), {})
            except MemoryFault:
                return
            mine = range(max(address, word) - word, min(address + size, word + WORD) - word)
            names[what] = names.get(what, 0) | sum(1 << i for i in mine)

    def of_struct(view: StructView, offset: int, size: int, names: tuple[str, ...]) -> bytes:
        found = struct_read(view, offset, size, names)
        note(view.address + offset, size, f"{view.struct}.{names[-1]}")
        return found

    def of_kernel(memory: KernelMemory, address: int, size: int) -> bytes:
        frame = sys._getframe(1)
        while frame.f_code.co_name in ("read_pointer", "uint", "read_string") and frame.f_back is not None:
            frame = frame.f_back
        if frame.f_code not in (struct_read.__code__, StructView._whole.__code__):
            note(address, size, f"{Path(frame.f_code.co_filename).stem}:{frame.f_code.co_name}")
        return kernel_read(memory, address, size)

    def of_tables(memory: Any, *rest: Any) -> Iterator[Any]:
        read_blocks = memory.read_blocks

        def blocks(paddrs: Any, size: int, *more: Any) -> Any:
            for paddr in paddrs.tolist():
                for word in range(paddr, paddr + size, WORD):
                    words.setdefault(word, {})["page table"] = 0xFF
            return read_blocks(paddrs, size, *more)

        memory.read_blocks = blocks
        try:
            yield from walk(memory, *rest)
        finally:
            del memory.read_blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StructView, "_read", of_struct)
        patch.setattr(KernelMemory, "read", of_kernel)
        patch.setattr(mapped, "walk", of_tables)
        yield words


def places(session: Session, number: int) -> tuple[list[Place], str]:
    """Return the words that converting a process reads, and its digest."""
    fresh = poked(session, {})
    with recorded(fresh) as words:
        digest, complete = core_digest(fresh, number)
    assert complete
    pkru = session.kernel.layout.member("task_struct", "thread.pkru").offset
    for task in session.processes.threads(session.processes.find(number)):
        words[int(session.kernel.memory.to_phys(task.address + pkru)) & ~(WORD - 1)] = {"task_struct.thread.pkru": 0xFF}
    return [Place(names, paddr) for paddr, names in sorted(words.items())], digest


def run(session: Session, count: int, seed: int, values: str = "random", only: str = "") -> Outcome:
    """Poke ``count`` variants."""
    rng = random.Random(seed)
    outcome = Outcome()
    known = {number: places(session, number) for number in VICTIMS}
    for _ in range(count):
        number = rng.choice(VICTIMS)
        candidates, digest = known[number]
        kinds: dict[str, list[Place]] = {}
        for place in candidates:
            if only in place.what:
                kinds.setdefault(place.what, []).append(place)
        place = rng.choice(kinds[rng.choice(list(kinds))])
        old = int.from_bytes(session.kernel.memory.physical.read(place.paddr, WORD), "little")
        new = VALUES[values](rng, old)
        said = f"{number}: {place.what} at {place.paddr:#x}: {old:#x} -> {new:#x}"
        begun = time.process_time()
        try:
            changed = poked(session, {place.paddr: new.to_bytes(WORD, "little")})
            found, complete = core_digest(changed, number)
        except Vmcore2coreError:
            outcome.counts["error"] += 1
        except Exception as error:
            outcome.counts["FAILURE"] += 1
            outcome.failures.append(f"{said}: {error!r}")
        else:
            result = "marked" if not complete else "same" if found == digest else "UNNOTICED"
            if result == "UNNOTICED" and place.is_unnoticeable(new ^ old):
                result = "unnoticeable"
            outcome.counts[result] += 1
            if result == "UNNOTICED":
                outcome.failures.append(said)
        outcome.slowest = max(outcome.slowest, time.process_time() - begun)
    return outcome


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.poke", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--values", choices=VALUES, default="random")
    parser.add_argument("--only", default="", help="words whose name contains this")
    options = parser.parse_args()
    with Session([DUMP]) as session:
        outcome = run(session, options.count, options.seed, options.values, options.only)
    print(dict(outcome.counts), f"slowest {outcome.slowest:.2f} s")
    for failure in sorted(outcome.failures):
        print(failure)
    sys.exit(bool(outcome.failures))


if __name__ == "__main__":
    main()
