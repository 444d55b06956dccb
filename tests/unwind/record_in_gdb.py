"""Runs inside gdb: writes what a stopped process is, and gdb's own frames of each thread, as JSON.

``WHERE=out.json STOP=stop_here STEPS=0 gdb -x record_in_gdb.py PROGRAM``
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

gdb: Any = importlib.import_module("gdb")

NAMES = "rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
MASK = (1 << 64) - 1
ROOM = 16384
PAGE = 4096

for command in (
    "set pagination off",
    "set confirm off",
    "set startup-with-shell off",
    "set debug-file-directory /nonexistent",
    "set debuginfod enabled off",
    "set backtrace past-main on",
    "handle all nostop noprint pass",
):
    gdb.execute(command, to_string=True)


def frames() -> list[dict[str, object]]:
    """Return the selected thread's frames, innermost first."""
    found = []
    frame = gdb.newest_frame()
    while frame is not None:
        found.append({"pc": frame.pc(), "signal": frame.type() == gdb.SIGTRAMP_FRAME, "name": frame.name()})
        frame = frame.older()
    return found


def thread() -> dict[str, object]:
    """Return the selected thread's registers, stack and frames."""
    registers = {name: int(gdb.parse_and_eval(f"(unsigned long)${name}")) & MASK for name in NAMES}
    stack = []
    for start, end, _ in writable:
        if start <= registers["rsp"] < end:
            low, high = max(start, registers["rsp"] - 512), min(end, registers["rsp"] + ROOM)
            stack = [low, gdb.selected_inferior().read_memory(low, high - low).tobytes().hex()]
    return {"registers": registers, "stack": stack, "frames": frames()}


def readable(start: int, end: int) -> list[list[object]]:
    """Return a mapping's memory; newer libcs have pages in their stacks that nobody can read (MADV_GUARD_INSTALL)."""
    inferior = gdb.selected_inferior()
    try:
        return [[start, inferior.read_memory(start, end - start).tobytes().hex()]]
    except gdb.MemoryError:
        half = (start + end) // 2 & -PAGE
        return [] if half == start else readable(start, half) + readable(half, end)


def mappings() -> list[str]:
    """Return /proc/PID/maps."""
    return Path(f"/proc/{gdb.selected_inferior().pid}/maps").read_text().splitlines()


gdb.execute(f"break {os.environ['STOP']}", to_string=True)
gdb.execute("run", to_string=True)
lines = mappings()
memory = []
writable = []
for line in lines:
    field = line.split()
    start, end = (int(part, 16) for part in field[0].split("-"))
    if "w" in field[1]:
        writable.append((start, end, line))
    # What was relocated and is read-only since differs from the file, too.
    small = field[1].startswith("r--") and end - start <= 128 << 10 and not field[-1].startswith("[vvar")
    if "r" in field[1] and ("w" in field[1] or len(field) < 6 or field[5] == "[vdso]" or small):
        memory += readable(start, end)
stops = []
for step in range(int(os.environ["STEPS"]) + 1):
    if step:
        gdb.execute("stepi", to_string=True)
    threads = []
    for number in sorted(t.num for t in gdb.selected_inferior().threads()) if not step else [gdb.selected_thread().num]:
        gdb.execute(f"thread {number}", to_string=True)
        threads.append(thread())
    stops.append(threads)
Path(os.environ["WHERE"]).write_text(json.dumps({"maps": lines, "memory": memory, "stops": stops}))
gdb.execute("kill")
