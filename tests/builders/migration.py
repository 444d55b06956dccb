"""QEMU's migration stream out of struct.pack and literal numbers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping

ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def ram_page(block: bytes | None, offset: int, content: bytes) -> bytes:
    """Return the record of a page; without a block's name, of the block before."""
    flag = (PAGE if content.strip(b"\0") else ZERO) | (0 if block else CONTINUE)
    return struct.pack(">Q", offset | flag) + (name(block) if block else b"") + (content if flag & PAGE else b"\0")


def section(kind: int, records: bytes, number: int = 2) -> bytes:
    """Return a section of memory: 1 start, 2 part, 3 end; with a footer, as since QEMU 2.4."""
    head = struct.pack(">BI", kind, number) + (name(b"ram") + struct.pack(">II", 0, 4) if kind == 1 else b"")
    return head + records + struct.pack(">Q", EOS) + struct.pack(">BI", 0x7E, number)


def subsection(text: bytes, fields: bytes) -> bytes:
    """Return a subsection of the configuration."""
    return b"\x05" + name(text) + struct.pack(">I", 1) + fields


def capabilities(*names: bytes) -> bytes:
    return subsection(b"configuration/capabilities", struct.pack(">I", len(names)) + b"".join(map(name, names)))


PAGE_BITS = subsection(b"configuration/target-page-bits", struct.pack(">I", 12))
UUID = subsection(b"configuration/uuid", bytes(range(16)))


def command(number: int, argument: bytes = b"") -> bytes:
    return struct.pack(">BHH", 8, number, len(argument)) + argument


POSTCOPY = command(1) + command(2, bytes(4)) + command(3, struct.pack(">QQ", 0x1000, 0x1000))
"""What QEMU 7.2 sends with postcopy-ram."""
SWITCHOVER_START = command(0xB)
"""What QEMU 10 sends before the last round."""


def other_section(kind: int, number: int, text: bytes, content: bytes) -> bytes:
    """Return a section of a device: 4 full; or, of what is saved in turns, 1 start, 2 part, 3 end."""
    head = name(text) + struct.pack(">II", 0, 1) if kind in (1, 4) else b""
    return struct.pack(">BI", kind, number) + head + content + struct.pack(">BI", 0x7E, number)


def build_stream(
    blocks: Mapping[bytes, int],
    rounds: Iterable[Iterable[tuple[bytes, int, bytes]]],
    machine: bytes = b"pc-i440fx-7.2",
    end: bytes = b"\x04the devices",
    configuration: bytes = b"",
    before: bytes = b"",
    between: bytes = b"",
    of_block: bytes = b"",
) -> bytes:
    """Return a stream.

    Args:
        blocks: name -> bytes of each RAM block.
        rounds: of each section (block, offset, page).
        machine: QEMU's name of the machine's type.
        end: what follows memory.
        configuration: its subsections.
        before: sections and commands before memory's.
        between: those between the first of memory's and its pages.
        of_block: what each block's header has behind its size.
    """
    declared = b"".join(name(block) + struct.pack(">Q", size) + of_block for block, size in blocks.items())
    stream = b"QEVM" + struct.pack(">I", 3) + struct.pack(">BI", 7, len(machine)) + machine + configuration + before
    stream += section(1, struct.pack(">Q", sum(blocks.values()) | MEM_SIZE) + declared) + between
    sections = [list(pages) for pages in rounds]
    for i, pages in enumerate(sections):
        records: list[bytes] = []
        last = None
        for block, offset, content in pages:
            records.append(ram_page(None if block == last else block, offset, content))
            last = block
        stream += section(3 if i + 1 == len(sections) else 2, b"".join(records))
    return stream + end


def build_mapped(
    blocks: Mapping[bytes, Mapping[int, bytes]],
    sizes: Mapping[bytes, int],
    head: bytes = b"",
    order: str = "<",
    names: tuple[bytes, ...] = (b"mapped-ram",),
    align: int = 0x100000,
    end: bytes = b"\x04the devices",
) -> bytes:
    """Return a stream with mapped-ram, behind a header of ``head``.

    Args:
        blocks: name -> page number -> content; pages that are not there are zero.
        sizes: name -> bytes.
        head: what is in front of the stream: offsets are the file's.
        order: the host's byte order, of the bitmap's longs.
        names: capabilities.
        align: of each block's pages.
        end: what follows memory.
    """
    machine = b"pc-q35-11.1"
    out = bytearray(head + b"QEVM" + struct.pack(">I", 3) + struct.pack(">BI", 7, len(machine)) + machine)
    out += capabilities(*names) + struct.pack(">BI", 1, 2) + name(b"ram") + struct.pack(">II", 0, 4)
    out += struct.pack(">Q", sum(sizes.values()) | MEM_SIZE)
    for block, size in sizes.items():
        out += name(block) + struct.pack(">Q", size) + (bytes(8) if b"x-ignore-shared" in names else b"")
        bitmap = [0] * -(-size // 4096 // 64)
        for page in blocks[block]:
            bitmap[page // 64] |= 1 << page % 64
        at = len(out) + 28
        pages_at = -(-(at + 8 * len(bitmap)) // align) * align
        out += struct.pack(">IQQQ", 1, 4096, at, pages_at) + struct.pack(f"{order}{len(bitmap)}Q", *bitmap)
        out += bytes(pages_at + size - len(out))
        for page, content in blocks[block].items():
            out[pages_at + page * 4096 : pages_at + page * 4096 + 4096] = content
    out += struct.pack(">Q", EOS) + struct.pack(">BI", 0x7E, 2)
    return bytes(out) + struct.pack(">BIQBI", 3, 2, EOS, 0x7E, 2) + end


def description(*devices: object) -> bytes:
    """Return the end of a stream, with what describes the devices' state."""
    text = json.dumps({"page_size": 4096, "devices": devices}).encode()
    return struct.pack(">BBI", 0, 6, len(text)) + text


def libvirt_header(
    compressed: int = 0, xml: bytes = b"<domain/>\0", magic: bytes = b"LibvirtQemudSave", char: str = "<"
) -> bytes:
    """Return what virsh save writes in front, on a host of a byte order."""
    return magic + struct.pack(char + "IIIIIII", 2, len(xml), 1, compressed, 0, 0, 0).ljust(76, b"\0") + xml
