"""The kernel's own name: ``init_uts_ns`` (include/uapi/linux/utsname.h)."""

from __future__ import annotations

from typing import NamedTuple

from vmcore2core.interfaces import Memory

UTS_FIELD = 65  # __NEW_UTS_LEN + 1
NAME_WITHIN = 64
NAME_OFFSETS = (0, 4)
"""Where the name may be in struct uts_namespace if no source tells: before Linux 5.11, behind a reference count."""


class UtsName(NamedTuple):
    """``struct new_utsname``."""

    sysname: str
    nodename: str
    release: str
    version: str
    machine: str


def read_utsname(memory: Memory, uts_namespace: int, name_offset: int | None) -> UtsName:
    """Return the names in ``init_uts_ns``.

    Args:
        memory: kernel virtual memory.
        uts_namespace: its address.
        name_offset: OFFSET(uts_namespace.name); None before Linux 5.11, where a reference count comes first: then the
            name begins at "Linux".

    Raises:
        MemoryFault: they cannot be read.
    """
    if name_offset is None:
        name_offset = max(memory.read(uts_namespace, NAME_WITHIN).find(b"Linux\0"), 0)
    raw = memory.read(uts_namespace + name_offset, 5 * UTS_FIELD)
    fields = [raw[i * UTS_FIELD : (i + 1) * UTS_FIELD].split(b"\0", 1)[0].decode("ascii", "replace") for i in range(5)]
    return UtsName(*fields)
