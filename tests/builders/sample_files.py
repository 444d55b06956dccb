"""Samples of the formats that builders here write, plain, in parts, flattened and compressed."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma

import zstandard

from tests.builders.elfdump import Load, Order, build_elf_vmcore, note
from tests.builders.flat import build_flattened
from tests.builders.kdump import COMPRESSORS, Abi, build_kdump
from tests.builders.lime import build_avml, build_lime
from tests.builders.lz4 import lz4_frame
from tests.builders.migration import (
    PAGE_BITS,
    POSTCOPY,
    SWITCHOVER_START,
    UUID,
    build_mapped,
    build_stream,
    capabilities,
    description,
    libvirt_header,
    other_section,
)
from tests.builders.samples import PAGE_SIZE, PAGES, Sample, ranges

END = max(PAGES) + 1


def notes(order: Order = "little") -> bytes:
    return note(b"CORE", 1, bytes(336), order) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n", order)


def elf(bits: int = 64, order: Order = "little", *, xnum: bool = False) -> bytes:
    return build_elf_vmcore([Load(*r) for r in ranges()], notes(order), bits=bits, order=order, xnum=xnum)


def kdump(codec: str, version: int = 6, abi: Abi = "64", order: Order = "little") -> bytes:
    with_notes = notes(order) if version >= 4 else b""
    return build_kdump(PAGES, excluded=(5, 6), codec=codec, version=version, abi=abi, order=order, notes=with_notes)


def split_kdump() -> tuple[bytes, ...]:
    parts = itertools.pairwise((0, 3, 10, END))
    return tuple(build_kdump(PAGES, codec="zlib", notes=notes(), split=part) for part in parts)


def saved_machine() -> bytes:
    sent = [(b"pc.ram", pfn * PAGE_SIZE, PAGES.get(pfn, bytes(PAGE_SIZE))) for pfn in range(END)]
    return build_stream({b"pc.ram": END * PAGE_SIZE}, [sent[:5], sent[5:]])


def saved_machine_of_today() -> bytes:
    """Return one with what real streams have besides memory, and the description of a CPU."""
    sent = [(b"pc.ram", pfn * PAGE_SIZE, PAGES.get(pfn, bytes(PAGE_SIZE))) for pfn in range(END)]
    regs = {"name": "env.gpr", "array_len": 32, "size": 8}, {"name": "env.pc", "size": 8}
    inner = {"fields": [{"name": "more", "size": 4}]}
    fields = [*regs, {"name": "segs", "array_len": 2, "size": 4, "struct": inner}]
    cpu = {"name": "cpu", "instance_id": 0, "fields": fields}
    rtc = {"name": "mc146818rtc", "instance_id": 0, "fields": [{"name": "cmos_data", "size": 128}]}
    return build_stream(
        {b"pc.ram": END * PAGE_SIZE},
        [sent[:5], sent[5:]],
        configuration=PAGE_BITS + UUID + capabilities(b"x-ignore-shared"),
        of_block=bytes(8),
        before=POSTCOPY + other_section(1, 7, b"spapr/htab", b"\0\0\0\x18"),
        between=other_section(2, 7, b"", bytes(8) + b"\0\1\0\2" + bytes(24)) + SWITCHOVER_START,
        end=other_section(4, 9, b"mc146818rtc", bytes(128))
        + other_section(4, 8, b"cpu", bytes(272))
        + description(rtc, cpu),
    )


def mapped_machine(head: bytes = b"") -> bytes:
    return build_mapped({b"pc.ram": PAGES}, {b"pc.ram": END * PAGE_SIZE}, head, align=PAGE_SIZE)


def image_borders(parts: list[bytes]) -> frozenset[int]:
    """Return the sizes at which an image ends between two of its parts."""
    return frozenset(itertools.accumulate(len(part) for part in parts))


MAP = ",".join(f"{start:#x}:{len(data):#x}" for start, data in ranges())
HOLES = frozenset(set(range(END)) - set(PAGES))
FLAT = build_flattened([(0, kdump("zlib")[:5000]), (5000, kdump("zlib")[5000:]), (0, kdump("zlib")[:464])])
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress

SAMPLES = {
    "elf": Sample("ELF", (elf(),)),
    "elf32-big": Sample("ELF", (elf(32, "big", xnum=True),)),
    **{f"kdump-{codec}": Sample("kdump-compressed", (kdump(codec),)) for codec in COMPRESSORS},
    "kdump32-padded": Sample("kdump-compressed", (kdump("zlib", 5, "32-padded", "big"),)),
    "kdump32-v1": Sample("kdump-compressed", (kdump("raw", 1, "32-packed"),)),
    "kdump-split": Sample("kdump-compressed", split_kdump()),
    "kdump-flat": Sample("kdump-compressed", (FLAT,)),
    "elf-gzip": Sample("ELF", (gzip.compress(elf(), mtime=0),)),
    "elf-bzip2": Sample("ELF", (bz2.compress(elf()),)),
    "elf-xz": Sample("ELF", (lzma.compress(elf()),)),
    "elf-lz4": Sample("ELF", (lz4_frame(elf(), more=0x14),)),
    "elf-zstd": Sample("ELF", (ZSTD(elf()),)),
    "elf-zstd-frames": Sample("ELF", (ZSTD(elf()[:9000]) + ZSTD(elf()[9000:]),)),
    "lime": Sample("LiME", (build_lime(ranges()),), silent=image_borders([build_lime([r]) for r in ranges()])),
    "avml": Sample("AVML", (build_avml(ranges()),), silent=image_borders([build_avml([r]) for r in ranges()])),
    "raw": Sample("raw", (b"".join(data for _, data in ranges()),), MAP),
    "migration": Sample("QEMU migration", (saved_machine(),), zeros=HOLES),
    "migration-today": Sample("QEMU migration", (saved_machine_of_today(),), zeros=HOLES),
    "migration-mapped": Sample("QEMU migration", (mapped_machine(),), zeros=HOLES),
    "virsh-save-sparse": Sample("QEMU migration", (mapped_machine(libvirt_header(6)),), zeros=HOLES),
    "virsh-save": Sample("QEMU migration", (libvirt_header() + saved_machine(),), zeros=HOLES),
    "virsh-save-big": Sample("QEMU migration", (libvirt_header(char=">") + saved_machine(),), zeros=HOLES),
}
