"""The devices' state behind memory, found by the description at the end of a stream."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.builders.migration import description, other_section
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.vmstate import DeviceStates

REGS = struct.pack(">4Q", 1, 2, 3, 4)
SEGMENTS = b"".join(struct.pack(">IQ", 0x10 + n, 0x1000 * n) for n in range(2))
CPU = {
    "name": "cpu",
    "instance_id": 0,
    "vmsd_name": "cpu",
    "version": 12,
    "fields": [
        {"name": "env.regs", "array_len": 4, "type": "uint64", "size": 8},
        {
            "name": "env.segs",
            "array_len": 2,
            "type": "struct",
            "struct": {"fields": [{"name": "selector", "size": 4}, {"name": "base", "size": 8}]},
            "size": 12,
        },
        {"name": "env.tr", "type": "struct", "struct": {"fields": [{"name": "selector", "size": 4}]}, "size": 4},
    ],
    "subsections": [{"vmsd_name": "cpu/poll", "version": 1, "fields": [{"name": "poll", "size": 8}]}],
}
STATE = REGS + SEGMENTS + struct.pack(">I", 7) + b"\x05\x08cpu/poll" + struct.pack(">IQ", 1, 9)


def states(tmp_path: Path, raw: bytes) -> DeviceStates:
    path = tmp_path / "saved"
    path.write_bytes(raw)
    return DeviceStates(DumpFile(path), 0)


def test_fields_are_where_the_description_has_them(tmp_path: Path) -> None:
    decoy = b"\x04\0\0\0\x05\x03cpu\0\0\0\0"
    raw = b"memory" + decoy + other_section(4, 5, b"cpu", STATE) + description({"name": "slirp"}, CPU)
    devices = states(tmp_path, raw)
    assert devices.instances(b"cpu") == [0]
    assert devices.size(b"cpu", 0) == len(STATE)
    fields = devices.fields(b"cpu", 0, 6)
    assert fields["env.regs"] == REGS
    assert fields["env.segs[1].base"] == struct.pack(">Q", 0x1000)
    assert fields["env.segs[0].selector"] == struct.pack(">I", 0x10)
    assert fields["env.tr.selector"] == struct.pack(">I", 7)
    assert fields["cpu/poll:poll"] == struct.pack(">Q", 9)


@pytest.mark.parametrize(
    "raw",
    [
        other_section(4, 5, b"cpu", STATE + b"more") + description(CPU),
        other_section(4, 5, b"cpu", STATE),
        other_section(4, 5, b"cpu", STATE) + description(CPU)[:-1],
        other_section(4, 5, b"cpu", STATE) + description(CPU) + b"another",
        other_section(4, 5, b"cpu", STATE) + description(CPU | {"instance_id": "0"}),
        other_section(4, 5, b"cpu", STATE) + description(CPU | {"fields": [{"size": 1 << 40}]}),
        other_section(4, 5, b"cpu", STATE) + description(CPU | {"fields": 7, "subsections": {}}),
        other_section(4, 5, b"cpu", STATE) + b"\x06" + struct.pack(">I", 90000) + b'{"a":' * 18000,
        b"",
    ],
)
def test_what_does_not_fit_has_no_fields(tmp_path: Path, raw: bytes) -> None:
    assert states(tmp_path, raw).fields(b"cpu", 0, 0) == {}


def test_zeros_may_follow(tmp_path: Path) -> None:
    """A block device, or O_DIRECT, pads the file."""
    raw = other_section(4, 5, b"cpu", STATE) + description(CPU) + bytes(512)
    assert states(tmp_path, raw).fields(b"cpu", 0, 0)["env.regs"] == REGS


def test_many_places_where_a_description_may_begin_take_no_time(tmp_path: Path) -> None:
    size = 1 << 22
    raw = b"".join(b"\x06" + struct.pack(">I", size - at - 5) + b"{" for at in range(0, size - 6, 6))
    raw = raw.ljust(size, b"x")
    assert states(tmp_path, raw).instances(b"cpu") == []


def test_a_description_within_itself_ends(tmp_path: Path) -> None:
    inner: dict[str, object] = {"name": "x", "size": 1, "array_len": 1 << 28}
    for _ in range(20):
        inner = {"name": "x", "size": 1, "array_len": 1 << 28, "struct": {"fields": [inner, {"size": 0}]}}
    field = {"name": "y", "size": len(STATE), "struct": {"fields": [inner] * 9}}
    raw = other_section(4, 5, b"cpu", STATE) + description(CPU | {"fields": [field], "subsections": []})
    assert 1 < len(states(tmp_path, raw).fields(b"cpu", 0, 0)) < 1 << 16
