"""The devices' state behind memory in QEMU's migration stream, read with the description at the end of the stream.

The description is JSON. For each device's section it has the fields (name, size, number) and the subsections.

References: QEMU's migration/vmstate.c: vmstate_save_state_v(), vmsd_desc_field_start(), vmstate_subsection_save(),
migration/savevm.c: vmstate_save(), qemu_savevm_state_complete_precopy(), scripts/analyze-migration.py (7.2 to 11.1).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.formats import qemu_migration as fmt

DESCRIPTION_MAX = 1 << 23
"""Most bytes of a section; a CPU's has some 13,000."""
DESCRIPTIONS_MAX = 4
"""How many places are tried for the start of the description; its length must lead to the end of the file."""
STATE_MAX = 1 << 26
"""Most bytes of all devices' state, without the memory that some devices have."""
DEPTH_MAX = 16
FIELDS_MAX = 1 << 16
FIELD_MAX = 1 << 28
"""Size of an element of a field, and the number of elements."""

_DESCRIPTION = re.compile(rb"\x06(.{4})(?=\{)", re.DOTALL)


class DeviceStates:
    """The devices' state, as far as it is known.

    Args:
        file: of the stream.
        start: where in it the stream begins.
    """

    def __init__(self, file: DumpFile, start: int) -> None:
        self._file = file
        self._devices: dict[tuple[bytes, int], Mapping[str, Any]] = {}
        self._end, text = _description(file, start)
        for device in text:
            name, instance = device.get("name"), device.get("instance_id")
            if isinstance(name, str) and isinstance(instance, int):
                self._devices[name.encode("latin-1", "replace"), instance] = device

    def size(self, name: bytes, instance: int) -> int | None:
        """Return the size of a device's state behind its section's header; None if it is not described."""
        device = self._devices.get((name, instance))
        return None if device is None else _size(device, 0)

    def instances(self, name: bytes) -> list[int]:
        """Return the instance numbers of all devices with this name, ascending."""
        return sorted(number for device, number in self._devices if device == name)

    def fields(self, name: bytes, instance: int, at: int) -> dict[str, bytes]:
        """Return the bytes of a device's fields (an array's in one); none if its section is not found.

        Names: ``field.member`` in a structure, ``field[index].member`` in an array of structures, ``subsection:field``
        in a subsection.

        Args:
            name: the device's.
            instance: its number.
            at: where the search begins: the end of memory.
        """
        device, size = self._devices.get((name, instance)), self.size(name, instance)
        if device is None or size is None:
            return {}
        raw = self._file.read(at, min(self._end - at, STATE_MAX))
        state = _section(raw, name, instance, size)
        return {} if state is None else dict(islice(_fields(device, "", state, 0), FIELDS_MAX))


def _description(file: DumpFile, start: int) -> tuple[int, list[Mapping[str, Any]]]:
    """Return where the description begins, and each device's description; none if the stream does not end with it."""
    first = max(start, file.size - DESCRIPTION_MAX)
    raw = file.read(first, DESCRIPTION_MAX)
    for begins, ends in islice(_candidates(raw), DESCRIPTIONS_MAX):
        try:
            description = json.loads(raw[begins:ends])
        except (ValueError, RecursionError):
            continue
        devices = description.get("devices") if isinstance(description, dict) else None
        if isinstance(devices, list):
            return first + begins, [device for device in devices if isinstance(device, dict)]
    return file.size, []


def _candidates(raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield where a description may begin and end: only zeros follow it."""
    end = len(raw.rstrip(b"\0"))
    for match in _DESCRIPTION.finditer(raw):
        ends = match.end() + int.from_bytes(match[1], "big")
        if end <= ends <= len(raw):
            yield match.end(), ends


def _section(raw: bytes, name: bytes, instance: int, size: int) -> bytes | None:
    """Return the state in a full section; its footer must be where its description ends."""
    header = bytes([len(name)]) + name + struct.pack(">I", instance & 0xFFFF_FFFF)
    at = -1
    while (at := raw.find(header, at + 1)) >= 0:
        state = at + len(header) + 4  # its version
        footer = bytes([fmt.QEMU_VM_SECTION_FOOTER]) + raw[at - 4 : at]
        if at >= 5 and raw[at - 5] == fmt.QEMU_VM_SECTION_FULL and raw[state + size : state + size + 5] == footer:
            return raw[state : state + size]
    return None


def _each(description: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    """Yield the fields or subsections of a description."""
    entries = description.get(key, [])
    yield from (entry for entry in (entries if isinstance(entries, list) else []) if isinstance(entry, dict))


def _number(field: Mapping[str, Any], key: str, default: int) -> int:
    """Return a number of a description; the default if it is not a possible number."""
    number = field.get(key, default)
    return number if isinstance(number, int) and 0 <= number <= FIELD_MAX else default


def _size(description: Mapping[str, Any], depth: int) -> int:
    """Return the size of the fields and subsections of a section or subsection."""
    size = sum(_number(field, "size", 0) * _number(field, "array_len", 1) for field in _each(description, "fields"))
    if depth < DEPTH_MAX:
        for subsection in _each(description, "subsections"):
            size += _header_size(subsection) + _size(subsection, depth + 1)
    return size


def _fields(description: Mapping[str, Any], prefix: str, raw: bytes, depth: int) -> Iterator[tuple[str, bytes]]:
    """Yield each field with its name, including members of structures; then, recursively, those of subsections."""
    at = 0
    for field in _each(description, "fields"):
        name, size, count = f"{prefix}{field.get('name')}", _number(field, "size", 0), _number(field, "array_len", 1)
        yield name, raw[at : at + size * count]
        inner = field.get("struct")
        if isinstance(inner, dict) and inner.get("fields") and depth < DEPTH_MAX and size:
            for index in range(min(count, (len(raw) - at) // size)):
                element = f"{name}[{index}]." if "array_len" in field else f"{name}."
                yield from _fields(inner, element, raw[at + index * size : at + (index + 1) * size], depth + 1)
        at += size * count
        if at > len(raw):
            return
    for subsection in _each(description, "subsections"):
        name, begins = str(subsection.get("vmsd_name")), at + _header_size(subsection)
        if depth == DEPTH_MAX or raw[at + 2 : begins - 4] != name.encode("latin-1", "replace"):
            return
        at = begins + _size(subsection, depth + 1)
        yield from _fields(subsection, f"{name}:", raw[begins:at], depth + 1)


def _header_size(subsection: Mapping[str, Any]) -> int:
    """Return the size of a subsection's header: its kind, its name with a length, its version."""
    return 1 + 1 + len(str(subsection.get("vmsd_name"))) + 4
