"""Reading minidumps by struct alone: nothing of vmcore2core is used to judge it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

MODULE, THREAD = 108, 48
AMD64 = {name: 120 + 8 * i for i, name in enumerate("rax rcx rdx rbx rsp rbp rsi rdi".split())}
AMD64 |= {f"r{number}": 184 + 8 * (number - 8) for number in range(8, 16)} | {"rip": 248}
AMD64_XMM = 256 + 160
X86 = {
    name: 140 + 4 * i for i, name in enumerate("gs fs es ds edi esi ebx edx ecx eax ebp eip cs eflags esp ss".split())
}


@dataclass
class Minidump:
    """A minidump, by the offsets that breakpad's headers give.

    Attributes:
        streams: type -> bytes.
        modules: (start, size, name, CodeView record).
        threads: TID -> (context, stack's address, stack's bytes).
        memory: (address, size, offset in the file).
    """

    path: Path
    streams: dict[int, bytes] = field(default_factory=dict)
    modules: list[tuple[int, int, str, bytes]] = field(default_factory=list)
    threads: dict[int, tuple[bytes, int, bytes]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    memory: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = data = self.path.read_bytes()
        magic, _, count, at = struct.unpack_from("<4sIII", data)
        assert magic == b"MDMP"
        for i in range(count):
            kind, size, rva = struct.unpack_from("<III", data, at + 12 * i)
            assert kind not in self.streams
            assert rva + size <= len(data)
            self.streams[kind] = data[rva : rva + size]
        self._modules()
        self._threads()
        ranges, place = struct.unpack_from("<QQ", self.streams[9])
        for i in range(ranges):
            start, size = struct.unpack_from("<QQ", self.streams[9], 16 + 16 * i)
            self.memory.append((start, size, place))
            place += size
        assert place <= len(data)

    def _modules(self) -> None:
        raw = self.streams[4]
        for at in range(4, 4 + MODULE * struct.unpack_from("<I", raw)[0], MODULE):
            start, size, _, _, name = struct.unpack_from("<QIIII", raw, at)
            self.modules.append((start, size, self.string(name), self.located(raw, at + 76)))

    def _threads(self) -> None:
        raw = self.streams[3]
        for at in range(4, 4 + THREAD * struct.unpack_from("<I", raw)[0], THREAD):
            tid, _, _, _, _, stack = struct.unpack_from("<IIIIQQ", raw, at)
            self.threads[tid] = self.located(raw, at + 40), stack, self.located(raw, at + 32)
        raw = self.streams[24]
        for at in range(4, 4 + 12 * struct.unpack_from("<I", raw)[0], 12):
            tid, name = struct.unpack_from("<IQ", raw, at)
            self.names[tid] = self.string(name)

    def located(self, raw: bytes, at: int) -> bytes:
        """Return what an MDLocationDescriptor leads to."""
        size, rva = struct.unpack_from("<II", raw, at)
        return self.data[rva : rva + size]

    def string(self, at: int) -> str:
        size = struct.unpack_from("<I", self.data, at)[0]
        assert self.data[at + 4 + size : at + 6 + size] == b"\0\0"
        return self.data[at + 4 : at + 4 + size].decode("utf-16-le")

    def read(self, address: int, size: int) -> bytes | None:
        for start, length, place in self.memory:
            if start <= address and address + size <= start + length:
                return self.data[place + address - start : place + address - start + size]
        return None

    def pages(self) -> dict[int, bytes]:
        return {
            start + at: self.data[place + at : place + at + 4096]
            for start, size, place in self.memory
            for at in range(0, size, 4096)
        }
