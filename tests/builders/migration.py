"""QEMU's migration stream out of struct.pack and literal numbers."""

from __future__ import annotations

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


def build_stream(
    blocks: Mapping[bytes, int],
    rounds: Iterable[Iterable[tuple[bytes, int, bytes]]],
    machine: bytes = b"pc-i440fx-7.2",
    end: bytes = b"\x04the devices",
) -> bytes:
    """Return a stream.

    Args:
        blocks: name -> bytes of each RAM block.
        rounds: of each section (block, offset, page).
        machine: QEMU's name of the machine's type.
        end: what follows memory.
    """
    declared = b"".join(name(block) + struct.pack(">Q", size) for block, size in blocks.items())
    stream = b"QEVM" + struct.pack(">I", 3) + struct.pack(">BI", 7, len(machine)) + machine
    stream += section(1, struct.pack(">Q", sum(blocks.values()) | MEM_SIZE) + declared)
    sections = [list(pages) for pages in rounds]
    for i, pages in enumerate(sections):
        records: list[bytes] = []
        last = None
        for block, offset, content in pages:
            records.append(ram_page(None if block == last else block, offset, content))
            last = block
        stream += section(3 if i + 1 == len(sections) else 2, b"".join(records))
    return stream + end


def libvirt_header(
    compressed: int = 0, xml: bytes = b"<domain/>\0", magic: bytes = b"LibvirtQemudSave", char: str = "<"
) -> bytes:
    """Return what virsh save writes in front, on a host of a byte order."""
    return magic + struct.pack(char + "IIIIIII", 2, len(xml), 1, compressed, 0, 0, 0).ljust(76, b"\0") + xml
