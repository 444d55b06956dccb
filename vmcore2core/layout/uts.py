"""The kernel's own name of itself: ``init_uts_ns`` (include/uapi/linux/utsname.h)."""

from __future__ import annotations

from dataclasses import dataclass

from vmcore2core.interfaces import Memory

UTS_FIELD = 65  # __NEW_UTS_LEN + 1


@dataclass(frozen=True, slots=True)
class UtsName:
    """``struct new_utsname``."""

    sysname: str
    nodename: str
    release: str
    version: str
    machine: str


def read_utsname(memory: Memory, uts_namespace: int, name_offset: int) -> UtsName:
    """Return the names at ``struct uts_namespace`` + OFFSET(uts_namespace.name).

    Raises:
        MemoryFault: they cannot be read.
    """
    raw = memory.read(uts_namespace + name_offset, 5 * UTS_FIELD)
    fields = [raw[i * UTS_FIELD : (i + 1) * UTS_FIELD].split(b"\0", 1)[0].decode("ascii", "replace") for i in range(5)]
    return UtsName(*fields)
