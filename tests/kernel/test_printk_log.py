"""The records of Linux before 5.10, put together as kernel/printk/printk.c (v5.4) says: struct printk_log, packed."""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import KernelImage
from vmcore2core.kernel.message import Message
from vmcore2core.kernel.printk import read_messages

# VMCOREINFO's lines of a v5.4 kernel.
PRINTK = {"printk_log": {"ts_nsec": (0, 8), "len": (8, 2), "text_len": (10, 2), "dict_len": (12, 2)}}
SIZE = 256
SECOND = 10**9


class LogBuffer:
    """A log_buf of 256 bytes.

    Args:
        header: bytes of struct printk_log: 16, or 20 with CONFIG_PRINTK_CALLER.
    """

    def __init__(self, header: int = 16) -> None:
        self.image, self.header = KernelImage(PRINTK), header
        self.image.table.sizes |= {"printk_log": header}
        self.buffer = self.image.alloc(SIZE, 64)
        self.image.table.symbols["log_buf"] = self.image.words(self.image.alloc(8), self.buffer)
        self.put("log_buf_len", SIZE)

    def put(self, name: str, value: int) -> None:
        self.image.table.symbols[name] = self.image.write(self.image.alloc(8), struct.pack("<I", value))

    def record(self, at: int, seconds: int, text: bytes, level: int = 6, caller: int = 0, dictionary: int = 0) -> int:
        """Put a record, and return where the next one is; LOG_ALIGN is 4 there."""
        length = self.header + len(text) + dictionary + -(len(text) + dictionary) % 4
        facility, flags = 3, 6  # LOG_NEWLINE | LOG_PREFIX
        raw = struct.pack(
            "<QHHHBBI", seconds * SECOND, length, len(text), dictionary, facility, level << 5 | flags, caller
        )
        self.image.write(self.buffer + at, raw[: self.header] + text + b"\xee" * dictionary)
        return at + length

    def read(self, first: int, following: int) -> tuple[list[Message], str | None]:
        self.put("log_first_idx", first)
        self.put("log_next_idx", following)
        return read_messages(self.image.kernel())


def test_records_come_oldest_first_and_go_on_at_the_start() -> None:
    log = LogBuffer()
    end = log.record(200, 1, b"one\nmore", level=4, dictionary=7)
    log.image.write(log.buffer + end, bytes(16))  # len 0: the next one is at the start
    end = log.record(0, 2, b"two")
    assert log.read(200, end) == (
        [Message(SECOND, "one", 4, 3), Message(SECOND, "more", 4, 3), Message(2 * SECOND, "two", 6, 3)],
        None,
    )


def test_a_header_with_the_caller_is_longer() -> None:
    log = LogBuffer(header=20)
    end = log.record(log.record(0, 1, b"of a task", caller=813), 2, b"of a CPU", caller=0x8000_0003)
    assert [(m.text, m.caller) for m in log.read(0, end)[0]] == [("of a task", "T813"), ("of a CPU", "C3")]


@pytest.mark.parametrize(("at", "value"), [(8, 15), (8, 0xFFFF), (10, 0x100)], ids=["short", "long", "text"])
def test_a_torn_record_ends_the_messages_with_a_sentence(at: int, value: int) -> None:
    log = LogBuffer()
    second = log.record(0, 1, b"one")
    end = log.record(second, 2, b"two")
    log.image.write(log.buffer + second + at, struct.pack("<H", value))
    found, problem = log.read(0, end)
    assert [message.text for message in found] == ["one"]
    assert problem is not None
    assert f"at {log.buffer + second + at:#x}: {value:#x} bytes, expected" in problem


def test_an_end_that_is_never_reached_is_no_loop() -> None:
    log = LogBuffer()
    end = log.record(0, 1, b"one")
    log.image.write(log.buffer + end, bytes(16))
    assert [message.text for message in log.read(0, 2)[0]] == ["one"]


@pytest.mark.parametrize(("first", "following"), [(SIZE, 0), (0, SIZE)])
def test_places_outside_the_buffer_are_refused(first: int, following: int) -> None:
    found, problem = LogBuffer().read(first, following)
    assert found == []
    assert problem is not None
    assert "log_next_idx" in problem
