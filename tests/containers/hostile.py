"""Breaks every sample in every way, in a process of its own whose memory and time are bounded.

``python -m tests.containers.hostile --flips 10000`` prints what came of it, a line a sample;
``tests.containers.test_hostile`` runs some hundred of each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np

from tests.builders.samples import PAGE_SIZE, PAGES, Sample, all_samples
from tests.needs import memory_folder
from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.containers.compression import CODEC_NAMES, page_decoder
from vmcore2core.errors import MemoryFault, Vmcore2coreError
from vmcore2core.memory.physical import BULK_PAGES, PhysicalMemory

MEMORY_MAX = 256 << 20
CPU_SECONDS_MAX = 2.0
"""Of one file: those here have 50 KB and less."""

HEADER_SIZES = (*range(160), *range(160, 640, 4), *range(4096, 4096 + 104, 4))
"""Sizes to cut to that end at each field of each header."""

FLIPS_NEAR_START = 640
RUN = BULK_PAGES + 4
"""Pages that are read in one call, which takes another way than few do."""
SENTENCE_MAX = 1000

Damage = tuple[str, list[bytes]]
"""What was done, and the files after it."""


class Hang(BaseException):
    """A file took too long; no code catches this."""


@dataclass
class Outcome:
    """What came of one sample.

    Attributes:
        counts: how many files ended in an error, were marked as partial, or read as if nothing were wrong.
        failures: what must not be.
        peak: bytes of memory that the process took more than before.
        slowest: seconds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    peak: int = 0
    slowest: float = 0.0


def truncations(sample: Sample, rng: random.Random, count: int) -> Iterator[Damage]:
    """Yield the first file cut at each field of a header and at ``count`` random places."""
    first, *others = sample.files
    random_sizes = [rng.randrange(len(first)) for _ in range(count)]
    for size in (*HEADER_SIZES, *random_sizes):
        if size < len(first) and size not in sample.silent:
            yield f"cut to {size}", [first[:size], *others]


def flips(sample: Sample, rng: random.Random, count: int) -> Iterator[Damage]:
    """Yield one of the files with some bits flipped or a word overwritten, ``count`` times."""
    for number in range(count):
        files = [bytearray(content) for content in sample.files]
        victim = rng.choice(files)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(min(len(victim), FLIPS_NEAR_START) if rng.random() < 0.5 else len(victim))
            if rng.random() < 0.8:
                victim[at] ^= 1 << rng.randrange(8)
            else:
                size = rng.choice((1, 2, 4, 8))
                word = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << 8 * size - 1, rng.randrange(1 << 8 * size)))
                victim[at : at + size] = word.to_bytes(size, rng.choice(("little", "big")))[: len(victim) - at]
        yield f"flip {number}", [bytes(content) for content in files]


def check(sample: Sample, paths: list[Path], *, whole_truth: bool) -> str:
    """Open files, read everything, and return "error", "marked" or "unnoticed".

    Args:
        whole_truth: what reads as present must be as it was, and what is missing must have been said.
    """
    try:
        with open_container(paths, sample.memory_map) as container:
            warnings = container.warnings
            assert all(type(note.desc) is bytes for note in container.notes)
            container.memory_ranges()
            pfns = np.array([*range(64), 1 << 20, 1 << 40, (1 << 64) - 1], np.uint64)
            out = np.full((len(pfns), container.page_size), 0xEE, np.uint8)
            expected = container.page_states(pfns)
            states = container.read_pages(pfns, out)
            usable = np.isin(states, (PageState.PRESENT, PageState.ZERO))
            assert not out[~usable].any(), "rows that must not be used are not zeros"
            assert not np.isin(expected[usable], (PageState.MISSING, PageState.EXCLUDED)).any()
            if whole_truth:
                assert container.page_size == PAGE_SIZE
                for pfn in pfns[usable].tolist():
                    assert out[pfn].tobytes() == PAGES.get(pfn, bytes(PAGE_SIZE)), f"page {pfn:#x} is another one"
                assert warnings or usable[list(PAGES)].all(), "pages are missing, and nothing says so"
            same_in_pieces(container, pfns, states, out)
            marked = bool(warnings) or not usable[list(PAGES)].all()
    except Vmcore2coreError as error:
        sentences, result = [str(error)], "error"
    else:
        sentences, result = warnings, "marked" if marked else "unnoticed"
    for sentence in sentences:
        assert 0 < len(sentence) < SENTENCE_MAX, sentence
        assert sentence.isprintable(), sentence
    return result


def same_in_pieces(container: DumpContainer, pfns: U64Array, states: U8Array, pages: U8Array) -> None:
    """Check that pages read one by one, last first, and through ``PhysicalMemory`` are those that were read at once."""
    rows = [*range(RUN), *sorted(set(PAGES) - set(range(RUN))), *range(64, len(pfns))]
    for row in reversed(rows):
        alone = np.full_like(pages[:1], 0xEE)
        state = container.read_pages(pfns[row : row + 1], alone)
        assert state[0] == states[row], f"page {int(pfns[row]):#x} alone is {PageState(state[0]).name}"
        assert np.array_equal(alone[0], pages[row]), "a page alone has other bytes"
        assert container.read_page(int(pfns[row])) == (pages[row].tobytes(), states[row]), "one page is another one"
    memory, size = PhysicalMemory(container), container.page_size
    memory.read_blocks(pfns[rows[1:-3:3]] * np.uint64(size), size)  # some of them are kept, where they were compressed
    blocks, block_states = memory.read_blocks(pfns[rows[:-3]] * np.uint64(size), size)
    assert np.array_equal(block_states, states[rows[:-3]])
    assert np.array_equal(blocks, pages[rows[:-3]])
    one_by_one = _or_error(lambda: b"".join(memory.read(pfn * size, size) for pfn in range(RUN)))
    assert _or_error(lambda: memory.read(0, RUN * size)) == one_by_one


def _or_error(read: Callable[[], bytes]) -> bytes | str:
    try:
        return read()
    except MemoryFault as fault:
        return str(fault)


def _hang(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Hang


def torture(sample: Sample, seed: int, cuts: int, nr_flips: int) -> Outcome:
    """Break a sample in every way; the caller has bounded the memory."""
    before_us = signal.signal(signal.SIGPROF, _hang)
    rng = random.Random(seed)
    outcome = Outcome()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        paths = [folder / f"vmcore{number}" for number in range(len(sample.files))]
        before = _peak()
        for generator, count in ((truncations, cuts), (flips, nr_flips)):
            for what, files in generator(sample, rng, count):
                for path, content in zip(paths, files, strict=True):
                    path.write_bytes(content)
                _trial(sample, paths, what, generator is truncations, outcome)
                shutil.rmtree(folder / "cache", ignore_errors=True)
        outcome.peak = _peak() - before
    signal.signal(signal.SIGPROF, before_us)
    return outcome


def _trial(sample: Sample, paths: list[Path], what: str, whole_truth: bool, outcome: Outcome) -> None:
    begun = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_MAX)
        try:
            result = check(sample, paths, whole_truth=whole_truth)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except (Exception, Hang):
        result = "failure"
        outcome.failures.append(f"{what}: {traceback.format_exc(limit=-4)}")
    outcome.counts[result] += 1
    outcome.slowest = max(outcome.slowest, time.process_time() - begun)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def bound_memory() -> None:
    """Let the process have ``MEMORY_MAX`` bytes more than it has; what is imported late is imported before."""
    for flags in CODEC_NAMES:
        page_decoder(flags)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Run the samples named, or all."""
    samples = all_samples()
    parser = argparse.ArgumentParser(prog="python -m tests.containers.hostile", description=__doc__)
    parser.add_argument("samples", nargs="*", metavar="SAMPLE", choices=[*samples, []])
    parser.add_argument("--cuts", type=int, default=100, help="random truncations of each")
    parser.add_argument("--flips", type=int, default=200, help="files with random bits flipped of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bound_memory()
    logging_off = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    failed = False
    for name in options.samples or samples:
        with contextlib.redirect_stderr(logging_off):
            outcome = torture(samples[name], options.seed, options.cuts, options.flips)
        failed = failed or bool(outcome.failures)
        if options.json:
            print(json.dumps({"name": name, **vars(outcome)}), flush=True)
            continue
        counts = ", ".join(f"{count} {what}" for what, count in sorted(outcome.counts.items()))
        print(f"{name:16} {counts}; {outcome.peak >> 20} MiB, slowest {outcome.slowest * 1000:.0f} ms", flush=True)
        for failure in outcome.failures[:3]:
            print(failure)
    sys.exit(failed)


if __name__ == "__main__":
    main()
