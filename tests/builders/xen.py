"""Xen's dumps of guests out of struct.pack and literal numbers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tests.builders.elfdump import note
from tests.builders.samples import PAGES, Sample

HVM, PV = 0xF00FEBEE, 0xF00FEBED
REGISTERS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi".split()


def vcpu(regs: Mapping[str, int]) -> bytes:
    """Return a vcpu_guest_context of 5168 bytes; "gs_base" is that of the mode that ``cs`` tells."""
    raw = bytearray(5168)
    struct.pack_into("<15Q", raw, 520, *(regs[name] for name in REGISTERS))
    struct.pack_into("<QHHIQQ", raw, 648, regs["rip"], regs["cs"], 0, 1, regs["eflags"], regs["rsp"])
    struct.pack_into("<5Q", raw, 680, *(regs[name] for name in "ss es ds fs gs".split()))
    struct.pack_into("<5Q", raw, 4984, *(regs.get(f"cr{i}", 0) for i in range(5)))
    kernel, user = regs["gs_base"], regs["kernel_gs_base"]
    if regs["cs"] & 3:
        kernel, user = user, kernel
    struct.pack_into("<3Q", raw, 5144, regs["fs_base"], kernel, user)
    return bytes(raw)


def build_xen(
    pages: Sequence[tuple[int, bytes]],
    vcpus: Sequence[bytes] = (),
    *,
    magic: int = HVM,
    page_size: int = 4096,
    version: int = 1,
    without: bytes = b"",
    machine: int = 62,
) -> bytes:
    """Return a dump.

    Args:
        pages: (page frame, bytes), in the file's order.
        without: the name of a section that is left out.
    """
    header = struct.pack("<4Q", magic, len(vcpus), len(pages), page_size)
    notes = note(b"Xen", 0x2000000, b"") + note(b"Xen", 0x2000001, header)
    notes += note(b"Xen", 0x2000003, struct.pack("<Q", version))
    pfns = b"".join(struct.pack("<Q", pfn) if magic == HVM else struct.pack("<QQ", pfn, pfn + 7) for pfn, _ in pages)
    sections = {
        b".note.Xen": (7, notes),
        b".xen_prstatus": (1, b"".join(vcpus)),
        b".xen_shared_info": (1, bytes(4096)),
        b".xen_pfn" if magic == HVM else b".xen_p2m": (1, pfns),
        b".xen_pages": (1, b"".join(data for _, data in pages)),
    }
    sections.pop(without, None)
    strings = b"\0.shstrtab\0" + b"\0".join(sections) + b"\0"
    count = len(sections) + 2
    at = 64 + 64 * count
    table = bytes(64)
    body = b""
    rows = b""
    for name, (kind, data) in sections.items():
        rows += struct.pack("<IIQQQQIIQQ", strings.index(name), kind, 0, 0, at + len(body), len(data), 0, 0, 0, 0)
        body += data
    table += struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, at + len(body), len(strings), 0, 0, 0, 0) + rows
    ident = b"\x7fELF\2\1\1\0\1" + bytes(7)
    ehdr = ident + struct.pack("<HHIQQQIHHHHHH", 4, machine, 1, 0, 0, 64, 0, 64, 56, 0, 64, count, 1)
    return ehdr + table + body + strings


SAMPLES = {"xen": Sample("Xen", (build_xen(sorted(PAGES.items(), key=lambda item: -item[0] % 3)),))}
