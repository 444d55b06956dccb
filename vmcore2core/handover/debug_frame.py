"""Writes sections of call frame information from an .eh_frame section that has holes.

In .eh_frame each entry leads to the next, so debuggers cannot read past a hole; gdb 13 stops there with an internal
error. .eh_frame_hdr says where each FDE is. This module copies every known FDE and its CIE to new sections, in which
no entry depends on the section's address: .debug_frame for gdb, and .eh_frame for lldb.

References: DWARF 5, section 6.4.1; LSB Core 5.0, chapter 10.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from vmcore2core.elf.headers import Read
from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import dwarf_cfi as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.cfi_rules import Cie, Fde

FDES_MAX = 1 << 19
HDR_SIZE = 12
TABLE_STEP = 1 << 12  # bytes of entries read at once: a page
USUAL = (1, fmt.EhApplication.DW_EH_PE_pcrel | fmt.EhFormat.DW_EH_PE_sdata4, fmt.EhFormat.DW_EH_PE_udata4)
DEBUG_FRAME_CIE_ID, EH_FRAME_CIE_ID = 0xFFFFFFFF, 0
CIE_VERSION = 1  # DWARF 2's version: the return address's column is one byte


def fdes_of(read: Read, hdr: int, order: ByteOrder, word: int) -> Iterator[Fde]:
    """Yield each FDE that .eh_frame_hdr lists, if all its bytes and its CIE's bytes are known.

    Args:
        read: bytes of the image by its own addresses.
        hdr: address of .eh_frame_hdr.
        order: byte order.
        word: bytes of an address.
    """
    eh_frame = EhFrame(read, order, word)
    for address in _addresses(read, hdr, order):
        try:
            fde = eh_frame.fde(address % (1 << 8 * word))
        except CorruptStructure:
            continue
        if fde is not None:
            yield fde


def _addresses(read: Read, hdr: int, order: ByteOrder) -> Iterator[int]:
    head = read(hdr, HDR_SIZE)
    if head is None or (*head[:3], head[3]) != (*USUAL, fmt.DW_EH_PE_TABLE):
        return
    left, at = min(int.from_bytes(head[8:12], order), FDES_MAX), hdr + HDR_SIZE
    kind = np.dtype("<i4" if order == "little" else ">i4")
    while left:
        # Stop at each page's end, so that one missing page loses only its own entries.
        count = min(left, max((TABLE_STEP - at % TABLE_STEP) // fmt.EH_TABLE_ENTRY, 1))
        raw = read(at, count * fmt.EH_TABLE_ENTRY)
        if raw is not None:
            yield from (hdr + np.frombuffer(raw, kind)[1::2].astype(np.int64)).tolist()
        left, at = left - count, at + count * fmt.EH_TABLE_ENTRY


def debug_frame(fdes: Sequence[Fde], order: ByteOrder, word: int) -> bytes:
    """Return a .debug_frame section with these entries, for gdb."""
    return _section(fdes, order, word, eh=False)


def eh_frame(fdes: Sequence[Fde], order: ByteOrder, word: int) -> bytes:
    """Return an .eh_frame section with these entries, for lldb, with addresses that do not depend on the section's.

    Without a symbol for an address, lldb looks for call frame information in no other section.
    """
    return _section(fdes, order, word, eh=True)


def _section(fdes: Sequence[Fde], order: ByteOrder, word: int, *, eh: bool) -> bytes:
    section = bytearray()
    places: dict[int, int] = {}
    for fde in fdes:
        if fde.cie.return_address > 0xFF:
            continue
        if fde.cie.instructions_at not in places:
            places[fde.cie.instructions_at] = len(section)
            section += _entry(EH_FRAME_CIE_ID if eh else DEBUG_FRAME_CIE_ID, _cie(fde.cie, eh=eh), order, word)
        ends = struct.pack(
            f"{'<' if order == 'little' else '>'}2{'Q' if word == 8 else 'I'}", fde.start, fde.end - fde.start
        )
        augmentation = b"\0" if _augmentation(fde.cie, eh=eh) else b""
        cie = places[fde.cie.instructions_at]
        # In .eh_frame, the CIE's place is counted back from this word, which follows the length.
        section += _entry(len(section) + 4 - cie if eh else cie, ends + augmentation + fde.instructions, order, word)
    return bytes(section)


def _entry(number: int, content: bytes, order: ByteOrder, word: int) -> bytes:
    padded = content.ljust(len(content) + (-(len(content) + 8)) % word, bytes((fmt.DwCfa.DW_CFA_nop,)))
    return (len(padded) + 4).to_bytes(4, order) + number.to_bytes(4, order) + padded


def _cie(cie: Cie, *, eh: bool) -> bytes:
    augmentation = _augmentation(cie, eh=eh)
    aligns = _uleb128(cie.code_align) + _sleb128(cie.data_align)
    head = bytes((CIE_VERSION,)) + augmentation + b"\0" + aligns + bytes((cie.return_address,))
    data = bytes((fmt.EhFormat.DW_EH_PE_absptr,)) if eh else b""
    return head + (_uleb128(len(data)) + data if augmentation else b"") + cie.instructions


def _augmentation(cie: Cie, *, eh: bool) -> bytes:
    """Return the augmentation string without its NUL: z: its data has a size; R: form of addresses; S: of signals."""
    letters = (b"R" if eh else b"") + (b"S" if cie.signal_frame else b"")
    return b"z" + letters if letters else b""


def _uleb128(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _sleb128(value: int) -> bytes:
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value & 0x7F))
