"""The printk ring buffer, put together as kernel/printk/printk_ringbuffer.h says, with literal offsets of Linux 7.2.

Tests kernel/message.py.
"""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import KernelImage
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.message import Message
from vmcore2core.kernel.printk import messages, panic_message, read_messages
from vmcore2core.memory.kernel import KernelMemory

PRINTK = {
    "printk_ringbuffer": {"desc_ring": (0, 48), "text_data_ring": (48, 32)},
    "prb_desc_ring": {"count_bits": (0, 4), "descs": (8, 8), "infos": (16, 8), "head_id": (24, 8), "tail_id": (32, 8)},
    "prb_desc": {"state_var": (0, 8), "text_blk_lpos": (8, 16)},
    "prb_data_blk_lpos": {"begin": (0, 8), "next": (8, 8)},
    "prb_data_ring": {"size_bits": (0, 4), "data": (8, 8)},
    "printk_info": {"ts_nsec": (8, 8), "text_len": (16, 2)},
}
COMMITTED, FINALIZED, REUSABLE = 1 << 62, 2 << 62, 3 << 62
COUNT_BITS, SIZE_BITS = 2, 7
SECOND = 10**9


class Ring:
    """A buffer of 4 descriptors and 128 bytes of text."""

    def __init__(self) -> None:
        self.image = KernelImage(PRINTK)
        self.image.table.sizes |= {"prb_desc": 24, "printk_info": 88}
        self.descs, self.infos, self.data = (self.image.alloc(n, 64) for n in (24 * 4, 88 * 4, 128))
        self.prb = self.image.alloc(128, 64)
        self.image.table.symbols["prb"] = self.image.words(self.image.alloc(8), self.prb)
        self.head(tail=0, head=0)

    def head(self, tail: int, head: int, count_bits: int = COUNT_BITS, size_bits: int = SIZE_BITS) -> None:
        self.image.words(self.prb, count_bits, self.descs, self.infos, head, tail, 0, size_bits, self.data)

    def record(self, number: int, text: bytes, begin: int, at: int | None = None, state: int = FINALIZED) -> None:
        """Put a record; the block's length is the text's with its ID, rounded up to 8."""
        slot = number % 4
        following = begin + 8 + -(-len(text) // 8) * 8
        self.image.words(self.descs + 24 * slot, state | number, begin, following if at is None else 128 + following)
        self.image.write(self.infos + 88 * slot, struct.pack("<QQH", number, number * 10**9, len(text)))
        self.image.write(self.data + (begin % 128 if at is None else at), struct.pack("<Q", number) + text)

    def read(self) -> list[Message]:
        return list(messages(self.image.kernel()))


def test_records_come_oldest_first_with_their_times() -> None:
    ring = Ring()
    ring.record(1, b"one", 0)
    ring.record(2, b"two", 16, state=COMMITTED)
    ring.head(tail=1, head=2)
    assert ring.read() == [Message(1 * SECOND, "one"), Message(2 * SECOND, "two")]


def test_each_line_of_a_message_gets_its_time() -> None:
    ring = Ring()
    ring.record(1, b"first\nsecond", 0)
    ring.head(tail=1, head=1)
    assert read_messages(ring.image.kernel()) == ([Message(1 * SECOND, "first"), Message(1 * SECOND, "second")], None)


def test_a_block_that_would_cross_the_end_stands_at_the_start() -> None:
    ring = Ring()
    ring.record(6, b"at the start, whole", 112, at=0)
    ring.head(tail=6, head=6)
    assert [message.text for message in ring.read()] == ["at the start, whole"]


@pytest.mark.parametrize("state", [0, REUSABLE, FINALIZED | 4])
def test_a_descriptor_that_is_written_or_of_another_record_is_passed_over(state: int) -> None:
    ring = Ring()
    ring.record(1, b"one", 0)
    ring.record(2, b"half", 16, state=state)
    ring.record(3, b"three", 32)
    ring.head(tail=1, head=3)
    assert [message.text for message in ring.read()] == ["one", "three"]


def test_a_record_without_text_is_empty() -> None:
    ring = Ring()
    ring.record(1, b"", 1)  # NO_LPOS and FAILED_LPOS are odd
    ring.head(tail=1, head=1)
    assert [message.text for message in ring.read()] == [""]


def test_a_head_that_is_never_reached_ends_after_all_descriptors() -> None:
    ring = Ring()
    for number in range(4):
        ring.record(number, b"x", 16 * number)
    ring.head(tail=0, head=1 << 40)
    assert len(ring.read()) == 4


def test_descriptors_go_on_at_the_start_of_the_ring() -> None:
    ring = Ring()
    for number in range(2, 6):
        ring.record(number, b"%d" % number, 16 * number)
    ring.head(tail=2, head=5)
    assert [message.text for message in ring.read()] == ["2", "3", "4", "5"]


def test_a_ring_that_says_it_is_large_is_read_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four million descriptors, of which the image has four, and no more memory behind them."""
    ring = Ring()
    for number in range(4):
        ring.record(number, b"x", 16 * number)
    ring.head(tail=0, head=1 << 40, count_bits=22)
    kernel, reads = ring.image.kernel(), 0
    real = KernelMemory.read

    def counted(memory: KernelMemory, address: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return real(memory, address, size)

    monkeypatch.setattr(KernelMemory, "read", counted)
    assert len(list(messages(kernel))) == 4
    assert reads < (24 << 22) // 4096 + 100


def test_more_text_than_the_buffer_has_is_refused() -> None:
    """Each record's text is the whole buffer's."""
    ring = Ring()
    for number in range(4):
        ring.record(number, b"x" * 119, 0)
    ring.head(tail=0, head=3)
    lines, problem = read_messages(ring.image.kernel())
    assert [line.text for line in lines] == ["x" * 119]
    assert problem is not None
    assert "more text than 2**7 bytes" in problem


@pytest.mark.parametrize("size", [0, 1 << 40])
@pytest.mark.parametrize("struct", ["prb_desc", "printk_info"])
def test_structures_of_sizes_that_cannot_be_are_refused(struct: str, size: int) -> None:
    ring = Ring()
    ring.record(0, b"x", 0)
    ring.image.table.sizes[struct] = size
    lines, problem = read_messages(ring.image.kernel())
    assert lines == []
    assert problem is not None
    assert f"SIZE({struct})" in problem


@pytest.mark.parametrize(("count_bits", "size_bits"), [(23, 7), (2, 32), (255, 7)])
def test_sizes_that_no_kernel_has_are_refused(count_bits: int, size_bits: int) -> None:
    ring = Ring()
    ring.head(0, 0, count_bits, size_bits)
    with pytest.raises(CorruptStructure, match="descriptors"):
        ring.read()


def test_a_text_length_beyond_the_buffer_is_cut() -> None:
    ring = Ring()
    ring.record(1, b"one", 0)
    ring.image.write(ring.infos + 88 + 16, struct.pack("<H", 0xFFFF))
    ring.head(tail=1, head=1)
    (message,) = ring.read()
    assert len(message.text) == 120


def test_the_last_reason_to_die_counts() -> None:
    lines = [Message(0, text) for text in ("Kernel panic - not syncing: a", "b", "Kernel panic - not syncing: c", "d")]
    assert panic_message(lines) == "c"
    assert panic_message(lines[1:2]) is None
