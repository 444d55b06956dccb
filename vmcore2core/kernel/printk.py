"""The kernel's messages: the printk ring buffer, as dmesg(1) shows it.

References: kernel/printk/printk_ringbuffer.h and .c: prb_read_valid(), get_data() (Linux 5.10 to 7.2); the layout is
all in VMCOREINFO. Linux before 5.10 has a record buffer of another form, which is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

RECORDS_MAX = 1 << 22
TEXT_MAX = 1 << 16
DESC_COMMITTED, DESC_FINALIZED = 1, 2


@dataclass(frozen=True, slots=True)
class Message:
    """One record: seconds since boot, text without its newline."""

    seconds: float
    text: str


def messages(kernel: Kernel) -> Iterator[Message]:
    """Yield the records that are in the buffer, oldest first; a broken one is passed over.

    Raises:
        LayoutUnknown: VMCOREINFO does not tell where the buffer is (before Linux 5.10).
        CorruptStructure, MemoryFault: the buffer cannot be read.
    """
    ring = kernel.view("printk_ringbuffer", kernel.read_pointer(kernel.layout.symbol("prb")))
    descs = ring.embedded("desc_ring", "prb_desc_ring")
    data = ring.embedded("text_data_ring", "prb_data_ring")
    word_bits = 8 * kernel.arch.pointer_size
    id_mask = (1 << (word_bits - 2)) - 1
    count_bits, size_bits = descs.uint("count_bits", size=4), data.uint("size_bits", size=4)
    if count_bits > 22 or size_bits > 31:
        raise CorruptStructure(
            f"2**{count_bits} descriptors and 2**{size_bits} bytes", ring.address, "printk_ringbuffer"
        )
    buffer = _Buffer(kernel, descs, data, count_bits, size_bits)
    head, number = descs.ulong("head_id") & id_mask, descs.ulong("tail_id") & id_mask
    for _ in range(min(RECORDS_MAX, 1 << count_bits)):
        message = buffer.record(number, id_mask)
        if message is not None:
            yield message
        if number == head:
            return
        number = (number + 1) & id_mask


class _Buffer:
    """The two rings of the buffer."""

    def __init__(self, kernel: Kernel, descs: StructView, data: StructView, count_bits: int, size_bits: int) -> None:
        layout = kernel.layout
        self.kernel = kernel
        self.count, self.size_bits = 1 << count_bits, size_bits
        self.descs, self.infos, self.data = descs.pointer("descs"), descs.pointer("infos"), data.pointer("data")
        self.sizeof_desc, self.sizeof_info = layout.size("prb_desc"), layout.size("printk_info")

    def record(self, number: int, id_mask: int) -> Message | None:
        """Return the record of descriptor ``number``, or None where it holds none that is whole."""
        kernel, index = self.kernel, number & (self.count - 1)
        try:
            desc = kernel.view("prb_desc", self.descs + index * self.sizeof_desc)
            info = kernel.view("printk_info", self.infos + index * self.sizeof_info)
            state = desc.ulong("state_var")
            if state & id_mask != number or state >> id_mask.bit_length() not in (DESC_COMMITTED, DESC_FINALIZED):
                return None
            text = self._text(desc.embedded("text_blk_lpos", "prb_data_blk_lpos"), info.uint("text_len", size=2))
            nanoseconds = info.uint("ts_nsec", size=8)
        except MemoryFault:
            return None
        return Message(nanoseconds / 1e9, text.decode("utf-8", "replace"))

    def _text(self, block: StructView, length: int) -> bytes:
        begin, following = block.ulong("begin"), block.ulong("next")
        if begin & 1:
            return b""  # a record without data
        word, size = self.kernel.arch.pointer_size, 1 << self.size_bits
        # A block that would wrap stands at the start of the buffer instead; the record's ID precedes the text.
        wraps = begin >> self.size_bits != (following - 1) >> self.size_bits
        at = (0 if wraps else begin & (size - 1)) + word
        return self.kernel.memory.read(self.data + at, max(0, min(length, TEXT_MAX, size - at)))


def panic_message(lines: list[Message]) -> str | None:
    """Return the last line that says why the kernel died, or None."""
    for message in reversed(lines):
        _, found, reason = message.text.partition("Kernel panic - not syncing: ")
        if found:
            return reason
    return None


def read_messages(kernel: Kernel) -> tuple[list[Message], str | None]:
    """Return all messages that can be read, one for each of their lines, and why there are no more, if so."""
    found: list[Message] = []
    try:
        for message in messages(kernel):
            # As record_print_text() does: each line of a message gets the message's time.
            found.extend(Message(message.seconds, line) for line in message.text.split("\n"))
    except (LayoutUnknown, CorruptStructure, MemoryFault) as error:
        return found, str(error)
    return found, None
