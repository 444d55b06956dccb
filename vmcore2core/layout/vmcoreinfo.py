"""VMCOREINFO, the kernel's own export for dump tools, and the layout source that answers from it.

References: Documentation/admin-guide/kdump/vmcoreinfo.rst, include/linux/vmcore_info.h, kernel/vmcore_info.c
(Linux 7.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import Member
from vmcore2core.layout.base import LayoutSource
from vmcore2core.overrides import override

_LINE = re.compile(rb"([A-Za-z0-9_-]+(?:\([\x21-\x27\x2a-\x7e]+\))?)=([\x20-\x7e]*)")
_RELEASE = re.compile(r"\d+\.\d+")


PER_BOOT = ("KERNELOFFSET", "NUMBER(phys_base)", "CRASHTIME")


class VmcoreInfo:
    """The parsed text.

    Attributes:
        values: key ("OFFSET(task_struct.mm)", "OSRELEASE") -> value, as text. If a key is repeated, the first value
            counts.
        truncated_line: a last line without its newline, or None. The buffer was full, so the line may be cut anywhere
            and is not a value.
        ignored: lines that are not KEY=VALUE.
    """

    def __init__(self, values: Mapping[str, str], truncated_line: str | None = None, ignored: int = 0) -> None:
        self.values = MappingProxyType(dict(values))
        self.truncated_line = truncated_line
        self.ignored = ignored

    def string(self, key: str) -> str | None:
        """Return a value as text."""
        return self.values.get(key)

    def symbol(self, name: str) -> int | None:
        """Return SYMBOL(name): a run-time address, hexadecimal without 0x."""
        return _integer(self.values.get(f"SYMBOL({name})"), 16)

    def offset(self, struct: str, member: str) -> int | None:
        """Return OFFSET(struct.member) in bytes."""
        return _unsigned(self.values.get(f"OFFSET({struct}.{member})"))

    def size(self, name: str) -> int | None:
        """Return SIZE(name) in bytes."""
        return _unsigned(self.values.get(f"SIZE({name})"))

    def length(self, name: str) -> int | None:
        """Return LENGTH(name) in elements."""
        return _unsigned(self.values.get(f"LENGTH({name})"))

    def number(self, name: str) -> int | None:
        """Return NUMBER(name): decimal with a sign, or hexadecimal with 0x."""
        return _integer(self.values.get(f"NUMBER({name})"), 0)

    @property
    def osrelease(self) -> str | None:
        """``init_uts_ns.name.release``."""
        return self.values.get("OSRELEASE")

    @property
    def build_id(self) -> str | None:
        """The kernel's build ID, hexadecimal (since Linux 5.14)."""
        return self.values.get("BUILD-ID")

    @property
    def crash_time(self) -> int | None:
        """CRASHTIME, in seconds since 1970: only a kernel that panicked writes it."""
        found = self.values.get("CRASHTIME")
        return int(found) if found and found.isdigit() else None

    @property
    def page_size(self) -> int | None:
        """PAGE_SIZE in bytes."""
        return _unsigned(self.values.get("PAGESIZE"))

    @property
    def kernel_offset(self) -> int | None:
        """How far KASLR moved the kernel image, in bytes."""
        return _integer(self.values.get("KERNELOFFSET"), 16)


def merged(dumps: VmcoreInfo, supplied: VmcoreInfo) -> VmcoreInfo:
    """Return the dump's keys, overridden by those of a supplied text.

    The text may come from another boot of this kernel: its symbols are moved as KASLR moved the dump's kernel. If the
    dump has a symbol itself, the dump's address counts.

    Raises:
        LayoutInvalid: the text comes from another kernel.
    """
    for key in ("OSRELEASE", "BUILD-ID", "PAGESIZE"):
        ours, theirs = dumps.string(key), supplied.string(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise LayoutInvalid(
                f"the supplied VMCOREINFO is of another kernel: its {key} is {theirs}, the dump's is {ours}"
            )
    moved = dict(supplied.values)
    shift = _kaslr_shift(dumps, supplied)
    for key in [key for key in moved if key.startswith("SYMBOL(")]:
        address = _integer(moved[key], 16)
        if address is not None:
            moved[key] = f"{(address + shift) & (1 << 64) - 1:x}"
    # Not moved along with the kernel: some "symbols" (vmemmap, mem_section) are values of pointers, each random.
    boot = {k: v for k, v in dumps.values.items() if k.startswith("SYMBOL(") or k in PER_BOOT}
    moved |= {key: value for key, value in boot.items() if key in moved}
    return VmcoreInfo({**dumps.values, **moved}, dumps.truncated_line, dumps.ignored)


def _kaslr_shift(dumps: VmcoreInfo, supplied: VmcoreInfo) -> int:
    """Return how many bytes the dump's symbols are above the supplied text's.

    Of the architectures that move their kernel, i386 has no KERNELOFFSET (arch/x86/kernel/vmcore_info_32.c).
    """
    ours, theirs = dumps.symbol("_stext"), supplied.symbol("_stext")
    if dumps.kernel_offset is None and ours is not None and theirs is not None:
        return ours - theirs
    return (dumps.kernel_offset or 0) - (supplied.kernel_offset or 0)


def _integer(text: str | None, base: int) -> int | None:
    try:
        return None if text is None or "_" in text else int(text, base)
    except ValueError:
        return None


def _unsigned(text: str | None) -> int | None:
    value = _integer(text, 10)
    return value if value is None or value >= 0 else None


def parse_vmcoreinfo(text: bytes) -> VmcoreInfo:
    """Parse a VMCOREINFO text; never raise.

    vmcoreinfo_append_str() cuts the text at the end of its buffer (one page in older kernels), in the middle of a
    line. So only lines with a newline are read.
    """
    *lines, rest = text.rstrip(b"\0").split(b"\n")
    values: dict[str, str] = {}
    ignored = 0
    for line in lines:
        match = _LINE.fullmatch(line)
        if match:
            values.setdefault(match[1].decode(), match[2].decode())
        elif line:
            ignored += 1
    return VmcoreInfo(values, rest.decode("ascii", "replace") or None, ignored)


def looks_like_vmcoreinfo(text: bytes) -> VmcoreInfo | None:
    """Return a text found in memory, parsed, if all of it is VMCOREINFO; else None.

    A copy that was partly overwritten has lines that are not KEY=VALUE. The caller must check on the dump whether the
    rest is still true.
    """
    if not text.startswith(b"OSRELEASE="):
        return None
    info = parse_vmcoreinfo(text)
    page_size = info.page_size
    good = (
        info.ignored == 0
        and _RELEASE.match(info.osrelease or "") is not None
        and page_size is not None
        and page_size.bit_count() == 1
        and info.symbol("init_uts_ns") is not None
    )
    return info if good else None


class VmcoreInfoSource(LayoutSource):
    """Layout answers from VMCOREINFO."""

    def __init__(self, info: VmcoreInfo, name: str = "VMCOREINFO") -> None:
        self.info = info
        self.name = name

    @override
    def member(self, struct: str, path: str) -> Member | None:
        """A key has no type, so only the exact path in a key is known.

        The kernel does not tell sizes of members; a file from ``vmcore-tasks layout`` does.
        """
        offset = self.info.offset(struct, path)
        return None if offset is None else Member(offset, self.name, self.info.size(f"{struct}.{path}"))

    @override
    def size(self, struct: str) -> int | None:
        return self.info.size(struct)

    @override
    def symbol(self, name: str) -> int | None:
        return self.info.symbol(name)

    @override
    def constant(self, name: str) -> int | None:
        """NUMBER(), else LENGTH(); and PAGESIZE."""
        if name == "PAGESIZE":
            return self.info.page_size
        value = self.info.number(name)
        return self.info.length(name) if value is None else value
