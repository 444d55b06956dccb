"""The kernel's messages: the printk ring buffer, as dmesg(1) shows it.

References: kernel/printk/printk_ringbuffer.h and .c: prb_read_valid(), get_data() (Linux 5.10 to 7.2); the layout is
all in VMCOREINFO. Linux before 5.10 has records of another form: ``printk_log``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel import printk_log
from vmcore2core.kernel.bounds import struct_size
from vmcore2core.kernel.message import Message, caller_name, level_of
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.printable import counted

COUNT_BITS_MAX, SIZE_BITS_MAX = 22, 31
STRUCT_MAX = 1 << 10
PANIC = "Kernel panic - not syncing: "
DESCS_AT_ONCE = 1 << 12
TEXT_MAX = 1 << 16
DESC_COMMITTED, DESC_FINALIZED = 1, 2


def messages(kernel: Kernel) -> Iterator[Message]:
    """Yield the records in the buffer, oldest first; skip broken ones.

    Raises:
        LayoutUnknown: VMCOREINFO does not tell where the buffer is (before Linux 5.10).
        LayoutInvalid: it tells impossible sizes.
        CorruptStructure, MemoryFault: the buffer cannot be read; at the end, records in it could not.
    """
    ring = kernel.view("printk_ringbuffer", kernel.read_pointer(kernel.layout.symbol("prb")))
    descs = ring.embedded("desc_ring", "prb_desc_ring")
    data = ring.embedded("text_data_ring", "prb_data_ring")
    word_bits = 8 * kernel.arch.pointer_size
    id_mask = (1 << (word_bits - 2)) - 1
    count_bits, size_bits = descs.uint("count_bits", size=4), data.uint("size_bits", size=4)
    if count_bits > COUNT_BITS_MAX or size_bits > SIZE_BITS_MAX:
        raise CorruptStructure(
            f"2**{count_bits} descriptors and 2**{size_bits} bytes", ring.address, "printk_ringbuffer"
        )
    buffer = _Buffer(kernel, descs, data, count_bits, size_bits)
    head, tail = descs.ulong("head_id") & id_mask, descs.ulong("tail_id") & id_mask
    left = 1 << size_bits
    lost = 0
    for number in buffer.whole(tail, min(buffer.count, (head - tail & id_mask) + 1), id_mask):
        message, taken = buffer.record(number)
        left -= taken
        if left < 0:  # no two records share bytes
            raise CorruptStructure(
                f"records have more text than 2**{size_bits} bytes", ring.address, "printk_ringbuffer"
            )
        if message is not None:
            yield message
        else:
            lost += 1
    if lost:
        raise CorruptStructure(f"{counted(lost, 'record')} whose memory is not in the dump", ring.address, ring.struct)


class _Buffer:
    """The two rings of the buffer."""

    def __init__(self, kernel: Kernel, descs: StructView, data: StructView, count_bits: int, size_bits: int) -> None:
        layout = kernel.layout
        self.kernel = kernel
        self.count, self.size_bits = 1 << count_bits, size_bits
        self.descs, self.infos, self.data = descs.pointer("descs"), descs.pointer("infos"), data.pointer("data")
        self.sizeof_desc = struct_size(layout, "prb_desc", STRUCT_MAX)
        self.sizeof_info = struct_size(layout, "printk_info", STRUCT_MAX)

    def whole(self, tail: int, count: int, id_mask: int) -> Iterator[int]:
        """Yield the numbers of descriptors with a complete record, among ``count`` from ``tail`` on.

        The ring's size comes from the dump, so a flipped bit may make it huge. It is read page by page, and pages that
        are not there are skipped.
        """
        word, order = self.kernel.arch.pointer_size, "<" if self.kernel.arch.byte_order == "little" else ">"
        at, done = self.kernel.layout.member("prb_desc", "state_var").offset, 0
        if at + word > self.sizeof_desc:
            return
        while done < count:
            index = (tail + done) & (self.count - 1)
            size = min(DESCS_AT_ONCE, count - done, self.count - index)
            raw = np.frombuffer(
                self._or_zeros(self.descs + index * self.sizeof_desc, size * self.sizeof_desc), np.uint8
            )
            states = raw.reshape(size, self.sizeof_desc)[:, at : at + word].copy().view(f"{order}u{word}").ravel()
            numbers = (np.arange(size, dtype=np.uint64) + np.uint64(tail + done)) & np.uint64(id_mask)
            mine = (states & id_mask) == numbers
            ended = np.isin(states >> id_mask.bit_length(), (DESC_COMMITTED, DESC_FINALIZED))
            yield from numbers[mine & ended].tolist()
            done += size

    def _or_zeros(self, start: int, size: int) -> bytes:
        """Return memory, with zeros for pages that are not in the dump: no complete record consists of zeros."""
        pieces, end, page = [], start + size, self.kernel.memory.kernel_map.spec.page_size
        while start < end:
            part = min(end, (start // page + 1) * page) - start
            try:
                pieces.append(self.kernel.memory.read(start, part))
            except MemoryFault:
                pieces.append(bytes(part))
            start += part
        return b"".join(pieces)

    def record(self, number: int) -> tuple[Message | None, int]:
        """Return the record of descriptor ``number`` (None if it is not in the dump), and the length of its text."""
        kernel, index = self.kernel, number & (self.count - 1)
        try:
            desc = kernel.view("prb_desc", self.descs + index * self.sizeof_desc)
            info = kernel.view("printk_info", self.infos + index * self.sizeof_info)
            text = self._text(desc.embedded("text_blk_lpos", "prb_data_blk_lpos"), info.uint("text_len", size=2))
            about = self._about(info)
            nanoseconds = info.uint("ts_nsec", size=8)
        except MemoryFault:
            return None, 0
        return Message(nanoseconds, text.decode("utf-8", "replace"), *about), len(text)

    def _about(self, info: StructView) -> tuple[int, int, str] | tuple[()]:
        """Return level, facility and caller. VMCOREINFO has the members around the first two, not these."""
        length, caller = (self.kernel.layout.find_member("printk_info", name) for name in ("text_len", "caller_id"))
        if length is None or caller is None or caller.offset != length.offset + 4:
            return ()
        facility, bits = self.kernel.memory.read(KernelAddr(info.address + length.offset + 2), 2)
        little = self.kernel.arch.byte_order == "little"
        return level_of(bits, little=little), facility, caller_name(info.uint("caller_id", size=4))

    def _text(self, block: StructView, length: int) -> bytes:
        begin, following = block.ulong("begin"), block.ulong("next")
        if begin & 1:
            return b""  # a record without data
        word, size = self.kernel.arch.pointer_size, 1 << self.size_bits
        # A block that would wrap is at the start of the buffer instead; the record's ID precedes the text.
        wraps = begin >> self.size_bits != (following - 1) >> self.size_bits
        at = (0 if wraps else begin & (size - 1)) + word
        return self.kernel.memory.read(self.data + at, max(0, min(length, TEXT_MAX, size - at)))


def panic_message(lines: list[Message]) -> str | None:
    """Return the last line that says why the kernel died, or None."""
    for message in reversed(lines):
        _, found, reason = message.text.partition(PANIC)
        if found:
            return reason
    return None


def read_messages(kernel: Kernel) -> tuple[list[Message], str | None]:
    """Return all readable messages, one for each line, and a reason if some could not be read."""
    found: list[Message] = []
    before_5_10 = kernel.layout.find_symbol("prb") is None and kernel.layout.find_symbol("log_first_idx") is not None
    try:
        for message in printk_log.records(kernel) if before_5_10 else messages(kernel):
            # As record_print_text() does: each line of a message gets the message's time.
            found.extend(replace(message, text=line) for line in message.text.split("\n"))
    except (LayoutError, CorruptStructure, MemoryFault) as error:
        return found, str(error)
    return found, None
