"""Small programs, stopped by gdb: their memory, and gdb's own backtraces."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.e2e.debuggers import gdb_command
from tests.needs import need as need
from vmcore2core.addresses import PhysAddrs, U8Array, U64Array, UserAddr
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers.base import PageState
from vmcore2core.memory.pages import PageReader, Pages
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.model import ProcessSnapshot, PsInfo, Vma
from vmcore2core.unwind.originals import Files as StackFiles
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.unwinder import Unwinder

PAGE = 4096
HERE = Path(__file__).parent
PF = {"r": 4, "w": 2, "x": 1}


def compile_c(source: str, target: Path, *options: str) -> Path:
    """Compile a C text; a libc without what the options need skips the test."""
    text = target.with_suffix(".c")
    text.write_text(source)
    command = [need("gcc"), "-O2", "-o", str(target), str(text), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"gcc {' '.join(options)}: {done.stderr[-300:]}")
    return target


def spec() -> UnwindSpec:
    found = ARCH.unwind.spec(CoreMachine(62, 64, ()))
    assert found is not None
    return found


@dataclass
class Files:
    """The page cache: whole files; the pages in ``gone`` are not in the dump.

    A "physical address" is file number << 40 | offset.
    """

    data: list[bytes] = field(default_factory=list)
    gone: set[tuple[int, int]] = field(default_factory=set)

    def add(self, data: bytes) -> int:
        self.data.append(data)
        return len(self.data) - 1

    def page(self, number: int, index: int) -> bytes | None:
        data = self.data[number][index * PAGE : (index + 1) * PAGE]
        return data.ljust(PAGE, b"\0") if data and (number, index) not in self.gone else None

    def read_blocks(self, paddrs: U64Array, size: int, _buffer: U8Array | None = None) -> tuple[U8Array, U8Array]:
        assert size == PAGE
        pages = [self.page(int(paddr) >> 40, (int(paddr) & (1 << 40) - 1) // PAGE) for paddr in paddrs]
        data = b"".join(page or bytes(PAGE) for page in pages)
        states = np.array([PageState.MISSING if page is None else PageState.PRESENT for page in pages], np.uint8)
        return np.frombuffer(data, np.uint8).reshape(len(pages), PAGE), states


@dataclass
class CachedFile:
    """``Backing`` of one file."""

    files: Files
    number: int

    def lookup(self, first: int, last: int) -> Pages:
        last = min(last, (len(self.files.data[self.number]) - 1) // PAGE)
        index = np.arange(first, last + 1, dtype=np.uint64)
        return Pages.in_memory(index, PhysAddrs(index * np.uint64(PAGE) + np.uint64(self.number << 40)))


class Process:
    """A process as the unwinder gets it, without a dump.

    Attributes:
        parts: bytes that differ from the mapped files, as (address, bytes); the later ones go first.
    """

    def __init__(self) -> None:
        self.files = Files()
        self.parts: list[tuple[int, bytes]] = []
        self.vmas: list[Vma] = []
        self.regions: list[Region] = []
        self.spec = SimpleNamespace(page_size=PAGE)
        self.reader = PageReader(cast(PhysicalMemory, self.files), PAGE, None)

    def map(self, start: int, end: int, flags: int, path: str = "", number: int | None = None, offset: int = 0) -> None:
        backing = CachedFile(self.files, number) if number is not None else None
        self.vmas.append(
            Vma(
                UserAddr(start),
                UserAddr(end),
                flags,
                pgoff=offset // PAGE if backing else None,
                path=path.encode() if backing else None,
                name="" if backing else path,
                device=1 if backing else None,
                inode=number,
            )
        )
        self.regions.append(Region(UserAddr(start), UserAddr(end), backing is None, offset // PAGE, backing))

    def read(self, address: int, size: int) -> bytes | None:
        assert 0 <= size <= 1 << 24, "UserMemory.read() allocates what is asked for"
        data = bytearray(size)
        known = bytearray(size)
        for region in self.regions:
            for page in range(max(region.start, address & -PAGE), min(region.end, address + size), PAGE):
                if isinstance(region.backing, CachedFile):
                    found = self.files.page(region.backing.number, region.pgoff + (page - region.start) // PAGE)
                    if found is not None:
                        _put(data, known, address, page, found)
        for start, piece in self.parts:
            _put(data, known, address, start, piece)
        return bytes(data) if all(known) else None

    def space(self, files: StackFiles | None = None) -> UserSpace:
        snapshot = ProcessSnapshot(1, b"x", 62, 64, "little", PAGE, (), PsInfo(1, b"x"), tuple(self.vmas))
        return UserSpace(snapshot, cast(UserMemory, self), files)

    def unwinder(self, files: StackFiles | None = None) -> Unwinder:
        return Unwinder(spec(), self.space(files))


def _put(data: bytearray, known: bytearray, address: int, start: int, piece: bytes) -> None:
    low, high = max(address, start), min(address + len(data), start + len(piece))
    if low < high:
        data[low - address : high - address] = piece[low - start : high - start]
        known[low - address : high - address] = b"\1" * (high - low)


@dataclass
class Stop:
    """One thread where it stopped: registers, and gdb's frames."""

    registers: dict[str, int]
    stack: list[Any]
    frames: list[dict[str, Any]]

    @property
    def pcs(self) -> list[int]:
        return [frame["pc"] for frame in self.frames]

    @property
    def names(self) -> list[str | None]:
        return [None if frame["signal"] else frame["name"] for frame in self.frames]


@dataclass
class Recording:
    """A program that gdb stopped; ``stops[step][thread]``."""

    maps: list[str]
    memory: list[tuple[int, bytes]]
    stops: list[list[Stop]]

    def process(self, stop: Stop) -> Process:
        """Return the process as it was at a stop."""
        process = Process()
        numbers: dict[str, int] = {}
        for line in self.maps:
            where, permissions, offset, _, _, *path = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in where.split("-"))
            name = path[0] if path else ""
            if name.startswith("/") and name not in numbers:
                numbers[name] = process.files.add(Path(name).read_bytes())
            flags = sum(PF.get(letter, 0) for letter in permissions)
            process.map(start, end, flags, name, numbers.get(name), int(offset, 16))
        process.parts = [*self.memory, *([(stop.stack[0], bytes.fromhex(stop.stack[1]))] if stop.stack else [])]
        return process


def record(program: Path, *, stop: str = "stop_here", steps: int = 0) -> Recording:
    """Run a program up to a function, and return what it then is."""
    target = program.with_suffix(".json")
    environment = {**os.environ, "WHERE": str(target), "STOP": stop, "STEPS": str(steps), "LC_ALL": "C.UTF-8"}
    script = HERE / "record_in_gdb.py"
    command = [*gdb_command(sysroot=None), "-x", str(script), str(program)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    if not target.exists():
        if "ptrace" in done.stderr:
            pytest.skip(f"gdb cannot run programs here: {done.stderr[-300:]}")
        raise AssertionError(done.stderr)
    found = json.loads(target.read_text())
    return Recording(
        maps=found["maps"],
        memory=[(start, bytes.fromhex(data)) for start, data in found["memory"]],
        stops=[[Stop(**thread) for thread in threads] for threads in found["stops"]],
    )
