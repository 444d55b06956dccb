"""The kernel's messages before Linux 5.10: ``struct printk_log`` records in sequence in ``log_buf``.

References: kernel/printk/printk.c: log_first_idx, log_from_idx(), log_next(), msg_print_text() (Linux 3.6 to 5.9); the
layout is all in VMCOREINFO.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.bounds import struct_size
from vmcore2core.kernel.message import Message, caller_name, level_of
from vmcore2core.kernel.struct import Kernel, StructView

BUFFER_MAX = 1 << 31  # LOG_BUF_LEN_MAX
STRUCT_MAX = 1 << 10
RECORDS_MAX = 1 << 22


def records(kernel: Kernel) -> Iterator[Message]:
    """Yield the records in the buffer, oldest first.

    Raises:
        LayoutUnknown: VMCOREINFO does not tell where the buffer is.
        LayoutInvalid: it tells an impossible size.
        CorruptStructure, MemoryFault: the buffer cannot be read, or not from here on.
    """
    layout = kernel.layout
    buffer = kernel.read_pointer(layout.symbol("log_buf"))
    size = kernel.uint(layout.symbol("log_buf_len"), 4)
    at, end = (kernel.uint(layout.symbol(name), 4) for name in ("log_first_idx", "log_next_idx"))
    header = struct_size(layout, "printk_log", STRUCT_MAX)
    if not header <= size <= BUFFER_MAX or at >= size or end >= size:
        raise CorruptStructure(f"log_first_idx {at:#x} and log_next_idx {end:#x} of {size:#x} bytes", buffer, "log_buf")
    left = size
    for _ in range(RECORDS_MAX):
        if at == end or left <= 0:
            return
        record = kernel.view("printk_log", buffer + at)
        length = record.uint("len", size=2)
        if not length:  # the next one did not fit before the end of the buffer
            left -= size - at
            at = 0
            continue
        if length < header or at + length > size:
            raise record.corrupt("len", f"{length:#x} bytes, expected {header:#x} to {size - at:#x}")
        yield _message(record, header, length)
        left -= length
        at += length


def _message(record: StructView, header: int, length: int) -> Message:
    kernel = record.kernel
    text_len = record.uint("text_len", size=2)
    if header + text_len > length:
        raise record.corrupt("text_len", f"{text_len:#x} bytes, expected at most {length - header:#x}")
    text = kernel.memory.read(KernelAddr(record.address + header), text_len)
    about = int(record.addr_of("dict_len") - record.address) + 2
    if about + 2 > header:
        return Message(record.uint("ts_nsec", size=8), text.decode("utf-8", "replace"))
    facility, bits = kernel.memory.read(KernelAddr(record.address + about), 2)
    # Linux has had caller_id since 5.1, with CONFIG_PRINTK_CALLER alone, which the size tells.
    has_caller = about + 2 + 4 <= header
    return Message(
        record.uint("ts_nsec", size=8),
        text.decode("utf-8", "replace"),
        level_of(bits, little=kernel.arch.byte_order == "little"),
        facility,
        caller_name(kernel.uint(record.address + about + 2, 4)) if has_caller else None,
    )
