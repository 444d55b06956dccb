"""Feed a harness with broken inputs: ``python -m tests.fuzz HARNESS --seconds N --seed S``.

Seconds are of CPU time. Each case has 10 of them; memory is bounded; what it needs does not grow. With ``--atheris``,
where that is installed (the extra ``fuzz``), coverage guides the mutation.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

HARNESSES = ("vmcoreinfo", "kallsyms", "btf", "chains", "pagetables", "notes", "containers", "pipeline")
CASE_SECONDS = 10.0
MEMORY_MAX = 512 << 20
GROWTH_MAX = 48 << 20
FAILURES_MAX = 5
KEPT_MAX = 256
LED_FURTHER = ("read", "partly read", "marked", "unnoticed")
"""Results of inputs, broken or not, from which others are made."""


class Hang(BaseException):
    """A case took too long; no code catches this."""


@dataclass
class Report:
    """What came of a run; ``growth`` is bytes of resident memory from a tenth of the run to its end."""

    harness: str
    seed: int
    cases: int = 0
    results: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0
    growth: int = 0


def main() -> None:
    """Run a harness in a process of its own, so that its memory is bounded."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("harness", choices=HARNESSES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="let coverage guide the mutation")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child:
        # BLAS takes address space for each of its threads.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--child"]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    if options.atheris:
        guided(options.harness, options.seconds, options.seed)
        return
    report = fuzz(options.harness, options.seconds, options.seed)
    print(json.dumps(vars(report)), flush=True)
    sys.exit(bool(report.failures))


def fuzz(name: str, seconds: float, seed: int) -> Report:
    """Mutate inputs until the CPU time is used up."""
    from tests.fuzz.mutation import mutated

    harness = importlib.import_module(f"tests.fuzz.{name}").HARNESS
    rng = random.Random(seed)
    pool = list(harness.seeds())
    report = Report(name, seed)
    for data in pool:
        case(harness.run, data, report)
    bound_memory()
    signal.signal(signal.SIGPROF, _hang)
    begun, early = time.process_time(), 0
    while (spent := time.process_time() - begun) < seconds and len(report.failures) < FAILURES_MAX:
        if not early and spent > seconds / 10:
            early = resident()
        data = mutated(rng.choice(pool), rng, pool, harness.sizes)
        if case(harness.run, data, report) in LED_FURTHER and rng.random() < 0.1:
            pool.append(data)  # a broken input that is still read leads further
            if len(pool) > KEPT_MAX:
                del pool[rng.randrange(len(pool))]
    report.seconds = round(time.process_time() - begun, 2)
    report.growth = max(0, resident() - early) if early else 0
    if report.growth > GROWTH_MAX:
        report.failures.append(f"memory grew by {report.growth >> 20} MiB")
    return report


def case(run: Callable[[bytes], str | None], data: bytes, report: Report) -> str:
    """Run one input, and count what came of it."""
    from vmcore2core.errors import Vmcore2coreError

    begun = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    try:
        result = run(data) or "read"
    except Vmcore2coreError as error:
        result = type(error).__name__
        if not str(error).isprintable():
            report.failures.append(f"a message with control characters: {str(error)!r}")
    except (Exception, Hang):
        result = "FAILURE"
        report.failures.append(f"{traceback.format_exc(limit=-6)}input {b64encode(data).decode()}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    report.cases += 1
    report.results[result] += 1
    report.slowest = max(report.slowest, round(time.process_time() - begun, 3))
    return result


def guided(name: str, seconds: float, seed: int) -> None:
    """Let atheris mutate; it ends the process."""
    import atheris

    from vmcore2core.errors import Vmcore2coreError

    with atheris.instrument_imports(include=["vmcore2core"]):
        harness = importlib.import_module(f"tests.fuzz.{name}").HARNESS
    seeds = list(harness.seeds())
    for data in seeds:
        harness.run(data)

    def one(data: bytes) -> None:
        with contextlib.suppress(Vmcore2coreError):
            harness.run(data)

    arguments = [
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        f"-timeout={int(CASE_SECONDS)}",
        "-rss_limit_mb=512",
    ]
    atheris.Setup([sys.argv[0], *arguments, f"-max_len={harness.sizes}"], one)
    atheris.Fuzz()


def _hang(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Hang


def bound_memory() -> None:
    """Bound the address space: all that is imported late was imported by the seeds."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
