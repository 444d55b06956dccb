#!/usr/bin/env python3
"""Measures the converter and its peers side by side, in one run: ratios, as times are of the machine.

usage: bench.py [--rounds N] [--minutes N]
                [--drgn PYTHON --gcore SCRIPT --ps SCRIPT --vmlinux FILE] [--crash EXTENSION] FOLDER

FOLDER is what make_dump.py wrote. PYTHON is an interpreter that has drgn, the SCRIPTs its contrib/gcore.py and ps.py,
FILE the kernel's vmlinux with DWARF, EXTENSION crash's gcore.so. What is not given is not measured. Prints Markdown
with commit, date and machine; each title says what was done, so that no row can measure nothing. Each row is measured
once, and again until there were N rounds or its share of the minutes is used up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CODECS = ("zlib", "lzo", "snappy", "zstd")
DISTINCT_MIN = 10_000
"""Pages that must be decoded for a row of a codec: equal descriptors are decoded once."""
TITLES = 18
"""Rows with a title, about: what the minutes are divided by."""
LOOPED = 10  # processes of the loop over a peer, which is then taken to last as long for each of the others
Command = Sequence[str | Path]


@dataclass
class Series:
    """One command's measurements: seconds of wall, user and system time, peak KiB, a round each."""

    wall: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)
    system: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def busy(self) -> list[float]:
        """Processor time of each round."""
        return [user + system for user, system in zip(self.user, self.system, strict=True)]

    def run(self, command: Command, folder: Path, text: str | None = None) -> None:
        """Runs the command once, in a folder that is empty, with a disk that has nothing left to do of the one before.

        What the last one wrote is removed first: its memory is what the next one's file goes into. A command that
        replaced a file would take memory that nobody had before, which costs a virtual machine several times as much.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.sync()
        begin = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(text or "")
            process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 3):
            raise RuntimeError(f"exit status {process.returncode}: {' '.join(map(str, command))}")
        self.wall.append(time.perf_counter() - begin)
        self.user.append(usage.ru_utime)
        self.system.append(usage.ru_stime)
        self.peak = max(self.peak, usage.ru_maxrss)


@dataclass(frozen=True)
class Tools:
    """What is measured, and with what."""

    folder: Path
    out: Path
    drgn: Path | None
    gcore: Path | None
    ps: Path | None
    vmlinux: Path | None
    crash: Path | None

    @property
    def written(self) -> Path:
        """The folder that each command begins with empty."""
        return self.out / "written"

    def ours(self, dump: Path, *arguments: str | Path, kept: bool = False) -> Command:
        """Returns our command; with the layout that an earlier run kept, or without."""
        cache = self.out / "cache" if kept else os.devnull
        return ["env", f"XDG_CACHE_HOME={cache}", sys.executable, "-m", "vmcore2core", dump, *arguments]

    def with_drgn(self, dump: Path, pid: int) -> Command | None:
        """Returns drgn's command for one process."""
        return self.drgn_script(dump, self.gcore, str(pid), "core")

    def drgn_script(self, dump: Path, script: Path | None, *arguments: str) -> Command | None:
        """Returns drgn's command for one of its scripts."""
        if self.drgn is None or script is None or self.vmlinux is None:
            return None
        drgn = self.drgn.parent / "drgn"
        return [drgn, "-q", "--architecture", "x86_64", "-c", dump, "-s", self.vmlinux, script, *arguments]

    def tasks(self, *arguments: str | Path) -> Command:
        """Returns the command of ``vmcore-tasks``; with the layout that an earlier run kept."""
        program = "from vmcore2core.__main__ import vmcore_tasks; vmcore_tasks()"
        return ["env", f"XDG_CACHE_HOME={self.out / 'cache'}", sys.executable, "-c", program, *arguments]


def seconds(series: Series) -> str:
    """Returns a cell: median wall, user and system time, peak memory."""
    wall, user, system = (statistics.median(times) for times in (series.wall, series.user, series.system))
    return f"{wall:.2f} s ({user:.2f} user, {system:.2f} system, {series.peak >> 10} MB)"


def ratio(ours: Series, other: Series) -> str:
    """Returns the medians of the rounds' ratios: of wall time, and of processor time."""
    wall, busy = (
        statistics.median(a / b for a, b in zip(one, two, strict=True))
        for one, two in ((ours.wall, other.wall), (ours.busy, other.busy))
    )
    return f"{wall:.2f} ({busy:.2f})"


@dataclass(frozen=True)
class Rounds:
    """How often is measured: ``most`` times, but once at least, no more when ``seconds`` have passed."""

    most: int
    seconds: float

    def __iter__(self) -> Iterator[int]:
        begin = time.monotonic()
        for number in range(self.most):
            if number and (time.monotonic() - begin) * (number + 1) / number > self.seconds:
                return
            yield number


def race(rounds: Rounds, commands: dict[str, Callable[[Series], None]]) -> dict[str, Series]:
    """Runs all commands in each round, so that a slow minute of the machine is everybody's."""
    series = {name: Series() for name in commands}
    for _ in rounds:
        for name, run in commands.items():
            run(series[name])
    return series


def where() -> str:
    """Returns what was measured, when, and on what machine."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), os.uname().machine)
    cpus, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"Commit {commit.strip()}, {time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}; {cpus} processors "
        f"({model}), {memory} GiB; load before: {load}."
    )


def said(command: Command) -> Any:
    """Returns what a command of ours says as JSON."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def pids(dump: Path, comm: str) -> list[int]:
    """Returns the PIDs of processes whose name matches."""
    tasks = "from vmcore2core.__main__ import vmcore_tasks; vmcore_tasks()"
    command = [sys.executable, "-c", tasks, "ps", str(dump), "--comm", comm, "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["tasks"]
    return [int(row["pid"]) for row in rows]


def floor(tools: Tools, rounds: Rounds) -> Iterator[str]:
    """Yields the rows for what each command of ours takes before it does anything."""
    yield from _raced(tools, {"python -c 'import numpy'": [sys.executable, "-c", "import numpy"]}, rounds)


def instructions(tools: Tools, dump: Path, pid: int) -> Iterator[str]:
    """Yields the rows for what a conversion takes besides its pages, counted by valgrind, if it is there."""
    if shutil.which("valgrind") is None:
        return
    kept = tools.ours(dump, "--pid", str(pid), "-o", tools.out / "core", "--force", kept=True)
    subprocess.run([str(part) for part in kept], check=True, stdout=subprocess.DEVNULL)
    yield "| **a small process with the layout kept, instructions** | | |"
    counts = {
        "python -c 'import numpy'": _instructions([sys.executable, "-c", "import numpy"]),
        "vmcore2core": _instructions(kept),
    }
    for name, count in counts.items():
        yield f"| {name} | {count / 1e6:,.0f} million | {counts['vmcore2core'] / count:.2f} |"


def _instructions(command: Command) -> int:
    """Returns how many a command of ours takes."""
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={os.devnull}"]
    split = next(at for at, part in enumerate(command) if part == sys.executable)
    counted = [str(part) for part in (*command[:split], *valgrind, *command[split:])]
    done = subprocess.run(counted, check=True, capture_output=True, text=True)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1].replace(",", ""))


def decoded(tools: Tools, dump: Path, pid: int, rounds: Rounds) -> Iterator[str]:
    """Yields the rows for one process of a compressed dump, decompressed by one processor and by two."""
    core = tools.out / "core"
    what = said(tools.ours(dump, "--pid", str(pid), "-o", core, "--force", "--json", kept=True))["cores"][0]
    pages, written = what["pages"]["present"], core.stat().st_blocks << 9
    assert written >> 12 >= DISTINCT_MIN, f"{dump} has {pages} pages of {pid}, and {written} bytes were written"
    yield f"| pages: {pages:,}; MiB written: {written >> 20} | | |"
    one, two = (tools.ours(dump, "--pid", str(pid), "-o", "core", "--jobs", jobs, kept=True) for jobs in ("1", "2"))
    yield from _raced(tools, {"vmcore2core --jobs 1": one, "vmcore2core --jobs 2": two}, rounds)


def one_process(tools: Tools, dump: Path, pid: int, rounds: Rounds, *, copied: bool) -> Iterator[str]:
    """Yields the table's rows for one process."""
    arguments = ("--pid", str(pid), "-o", "core")
    commands: dict[str, Callable[[Series], None]] = {
        "vmcore2core": lambda s: s.run(tools.ours(dump, *arguments), tools.written),
        "vmcore2core, the layout kept": lambda s: s.run(tools.ours(dump, *arguments, kept=True), tools.written),
    }
    core = tools.out / "core"
    what = said(tools.ours(dump, "--pid", str(pid), "-o", core, "--force", "--json", kept=True))["cores"][0]
    pages, written = what["pages"]["present"], core.stat().st_blocks << 9
    threads = len(what["threads"])
    assert written >= pages << 10, f"{dump} has {pages} pages of {pid}, and {written} bytes were written"
    yield f"| pages: {pages:,}; threads: {threads:,}; MiB written: {written >> 20} | | |"
    drgn = tools.with_drgn(dump, pid)
    if drgn is not None:
        commands["drgn contrib/gcore.py"] = lambda s: s.run(drgn, tools.written)
    if tools.crash is not None and tools.vmlinux is not None:
        script = f"extend {tools.crash}\ngcore -v 0 {pid}\nquit\n"
        crash: Command = ["crash", "-s", "--no_crashrc", tools.vmlinux, dump]
        commands["crash gcore"] = lambda s: s.run(crash, tools.written, script)
    if copied:
        commands["cp of the same bytes"] = lambda s: s.run(
            ["cp", "--sparse=never", "--reflink=never", core, "core"], tools.written
        )
        plain = [sys.executable, HERE / "read_write.py", core, "core"]
        commands["preadv and pwrite of the same bytes"] = lambda s: s.run(plain, tools.written)
    series = race(rounds, commands)
    for name, measured in series.items():
        yield f"| {name} | {seconds(measured)} | {ratio(series['vmcore2core'], measured)} |"


def all_processes(tools: Tools, dump: Path, rounds: Rounds) -> Iterator[str]:
    """Yields the table's rows for every process of the dump."""
    everyone = [*pids(dump, "small-*"), *pids(dump, "large")]

    def ours(jobs: int) -> Callable[[Series], None]:
        command = tools.ours(dump, "--comm", "small-*", "-o", "cores", "--jobs", str(jobs))
        return lambda series: series.run(command, tools.written)

    commands = {"vmcore2core --jobs 1": ours(1), "vmcore2core --jobs 2": ours(2)}
    series = race(rounds, commands)
    first = series["vmcore2core --jobs 1"]
    for name, measured in series.items():
        yield f"| {name} | {seconds(measured)} | {ratio(first, measured)} |"
    looped = [command for pid in everyone[:LOOPED] if (command := tools.with_drgn(dump, pid)) is not None]
    if looped:
        total = Series()
        for command in looped:
            total.run(command, tools.written)
        scaled = sum(total.wall) / len(looped) * (len(everyone) - 1)
        wall, busy = (
            statistics.median(ours) / sum(theirs) * len(looped) / (len(everyone) - 1)
            for ours, theirs in ((first.wall, total.wall), (first.busy, total.busy))
        )
        yield f"| drgn in a loop, as {len(looped)} of them say | {scaled:.1f} s | {wall:.2f} ({busy:.2f}) |"


def many(tools: Tools, dump: Path, rounds: Rounds) -> Iterator[str]:
    """Yields the table's rows for many tasks, mappings and threads."""
    tasks = said(tools.tasks("ps", dump, "--json"))["tasks"]
    assert sum(row["rss_kib"] is not None for row in tasks) > 1000
    commands = {"vmcore-tasks ps": tools.tasks("ps", dump), "drgn contrib/ps.py": tools.drgn_script(dump, tools.ps)}
    yield f"| **ps of {len(tasks):,} tasks** | | |"
    yield from _raced(tools, commands, rounds)
    small = next(row for row in tasks if row["comm"].startswith("small-"))
    begun = yield from _process(tools, dump, small, rounds)
    for kind in ("map-", "thr-"):
        sizes = sorted((int(row["comm"][4:]), row) for row in tasks if row["comm"].startswith(kind))
        measured = {}
        for size, row in sizes:
            measured[size] = yield from _process(tools, dump, row, rounds)
        yield from _exponents(begun, measured)


def _process(tools: Tools, dump: Path, row: dict[str, Any], rounds: Rounds) -> Generator[str, None, dict[str, Series]]:
    """Yields the rows for a process; returns what was measured."""
    ours = tools.ours(dump, "--pid", str(row["pid"]), "-o", "core", kept=True)
    core = said(tools.ours(dump, "--pid", str(row["pid"]), "-o", tools.out / "core", "--force", "--json", kept=True))
    threads, pages = len(core["cores"][0]["threads"]), core["cores"][0]["pages"]["present"]
    asked = row["comm"].partition("-")[2]
    assert not row["comm"].startswith("thr-") or threads == int(asked), f"{row['comm']} has {threads} threads"
    # A fourth of the mappings is of a file, whose pages a core leaves out.
    assert not row["comm"].startswith("map-") or 4 * pages >= 3 * int(asked), f"{row['comm']} has {pages} pages"
    yield f"| **{row['comm']}; threads: {threads:,}; pages: {pages:,}** | | |"
    peers = {"vmcore2core": ours, "drgn contrib/gcore.py": tools.with_drgn(dump, row["pid"])}
    return (yield from _raced(tools, peers, rounds))


def _exponents(begun: dict[str, Series], measured: dict[int, dict[str, Series]]) -> Iterator[str]:
    """Yields a row for each program: how its processor time grows from the second size to the last one.

    Args:
        begun: of a process with one of everything, whose time is taken away: it is the start-up's.
        measured: of each size.
    """
    low, high = sorted(measured)[1], max(measured)
    for name, start in begun.items():
        first, last = (min(measured[size][name].busy) - min(start.busy) for size in (low, high))
        if first > 0:
            exponent = math.log(last / first) / math.log(high / low)
            yield f"| {name}: exponent from {low:,} to {high:,} | {exponent:.2f} | |"


def _raced(
    tools: Tools, commands: dict[str, Command | None], rounds: Rounds
) -> Generator[str, None, dict[str, Series]]:
    def run(command: Command) -> Callable[[Series], None]:
        return lambda series: series.run(command, tools.written)

    series = race(rounds, {name: run(command) for name, command in commands.items() if command is not None})
    first = next(iter(series.values()))
    for name, measured in series.items():
        yield f"| {name} | {seconds(measured)} | {ratio(first, measured)} |"
    return series


def page_rate(tools: Tools, dump: Path, rounds: Rounds) -> Iterator[str]:
    """Yields the table's rows for reading all pages of a kdump-compressed file."""
    counts = said([sys.executable, HERE / "read_ours.py", dump, "count"])
    assert counts["distinct"] > DISTINCT_MIN, f"{dump}: {counts}"
    yield f"| {counts['pages']:,} pages, {counts['distinct']:,} of them distinct and not zero | | |"
    commands: dict[str, Callable[[Series], None]] = {
        "vmcore2core": lambda s: s.run([sys.executable, HERE / "read_ours.py", dump], tools.written)
    }
    if tools.drgn is not None:
        drgn = tools.drgn
        commands["libkdumpfile, through drgn"] = lambda s: s.run([drgn, HERE / "read_drgn.py", dump], tools.written)
    series = race(rounds, commands)
    for name, measured in series.items():
        yield f"| {name} | {seconds(measured)} | {ratio(series['vmcore2core'], measured)} |"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Measures the converter and its peers side by side.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=7, help="that it may take, about")
    for name in ("drgn", "gcore", "ps", "vmlinux", "crash"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    # The commands run in a folder of their own.
    for name in ("folder", "drgn", "gcore", "ps", "vmlinux", "crash"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).absolute())
    with tempfile.TemporaryDirectory(dir=options.folder) as out:
        peers = options.drgn, options.gcore, options.ps, options.vmlinux, options.crash
        tools = Tools(options.folder, Path(out), *peers)
        elf = options.folder / "vmcore.elf"
        (large,), small = pids(elf, "large"), pids(elf, "small-*")[0]
        rounds = Rounds(options.rounds, options.minutes * 60 / TITLES)
        print(where(), "", "| | median of wall time | ours to this: wall (processor) |\n| --- | --- | --- |", sep="\n")
        print("| **what takes no dump at all** | | |", *floor(tools, rounds), sep="\n")
        print("| **one process of 1.2 GB, ELF** | | |")
        print(*one_process(tools, elf, large, rounds, copied=True), sep="\n")
        print("| **one small process, kdump zlib** | | |")
        print(*one_process(tools, options.folder / "vmcore.zlib", small, rounds, copied=False), sep="\n")
        print(*instructions(tools, options.folder / "vmcore.zlib", small), sep="\n")
        print("| **one process of 1.2 GB, kdump zlib** | | |")
        print(*decoded(tools, options.folder / "vmcore.zlib", large, rounds), sep="\n")
        print(*many(tools, options.folder / "many.elf", rounds), sep="\n")
        print("| **150 small processes, ELF** | | |", *all_processes(tools, elf, rounds), sep="\n")
        for codec in CODECS:
            print(f"| **all pages, kdump {codec}** | | |")
            print(*page_rate(tools, options.folder / f"vmcore.{codec}", rounds), sep="\n")


if __name__ == "__main__":
    main()
