"""Blocks of a zram device that is laid out by hand, with the flags of Linux 6.1."""

from __future__ import annotations

import random
import struct

import cramjam
import pytest
import zstandard

from tests.builders.kernelimage import Offsets
from tests.builders.zspool import NEXT, PAGE, VMEMMAP, ZsImage
from vmcore2core.errors import CodecError, CorruptStructure, LayoutInvalid, LayoutUnknown
from vmcore2core.kernel.zram import Zram
from vmcore2core.memory.pages import UserPageState as State

ZRAM: Offsets = {
    "gendisk": {"private_data": (88, 8)},
    "zram": {"table": (0, 8), "mem_pool": (8, 8), "disk": (40, 8), "disksize": (56, 8), "comp_algs": (72, 32)},
    "zram_table_entry": {"handle": (0, 8), "flags": (8, 8)},
}
PARAMS: Offsets = {"zram": {"params": (112, 96)}, "zcomp_params": {"dict": (0, 8)}}
FLAGS = {"ZRAM_LOCK": 13, "ZRAM_SAME": 14, "ZRAM_WB": 15, "ZRAM_HUGE": 17, "ZRAM_COMP_PRIORITY_BIT1": 20}
SAME, WB, HUGE, SECOND = 1 << 14, 1 << 15, 1 << 17, 1 << 20
TEXT_PAGE = random.Random(5).randbytes(1500) + bytes(1000) + b"compressible" * 133
NOISE = random.Random(6).randbytes(PAGE)
NR_BLOCKS = 600


class Device:
    """A zram device whose blocks the tests fill."""

    def __init__(self, *offsets: Offsets) -> None:
        self.image = image = ZsImage(NEXT, ZRAM, *offsets)
        image.table.sizes |= {"zram_table_entry": 16, "zcomp_params": 24}
        image.table.constants |= FLAGS
        self.table = image.alloc(16 * NR_BLOCKS, 64)
        self.zram = image.make("zram", table=self.table, mem_pool=image.pool, disksize=NR_BLOCKS * PAGE)
        image.words(self.zram + 72, image.string(b"lz4"), image.string(b"zstd"), image.string(b"rot13"))
        self.disk = image.make("gendisk", private_data=self.zram)
        image.set("zram", self.zram, disk=self.disk)

    def block(self, index: int, handle: int, flags: int) -> None:
        self.image.words(self.table + 16 * index, handle, flags)

    def keep(self, index: int, data: bytes, flags: int = 0) -> None:
        self.block(index, self.image.kept(data), flags | len(data))

    def open(self) -> Zram:
        kernel = self.image.kernel()
        return Zram(kernel, kernel.view("gendisk", self.disk), VMEMMAP)


def lz4(page: bytes) -> bytes:
    return bytes(cramjam.lz4.compress_block(page, store_size=False))


def test_blocks_of_every_kind() -> None:
    assert len(TEXT_PAGE) == PAGE
    device = Device()
    device.keep(1, lz4(TEXT_PAGE), 1 << 13)  # locked just then
    device.keep(599, zstandard.compress(TEXT_PAGE), SECOND)
    device.keep(300, NOISE, HUGE)
    device.block(5, 0x4142434445464748, SAME)
    device.block(6, 0, SAME)
    zram = device.open()
    assert [zram.find(n) for n in (1, 599, 300, 5, 6)] == [State.STORED] * 5
    assert [zram.read(n) for n in (1, 599, 300)] == [TEXT_PAGE, TEXT_PAGE, NOISE]
    assert (zram.read(5), zram.read(6)) == (struct.pack("<Q", 0x4142434445464748) * 512, bytes(PAGE))


def test_what_zram_has_not_is_told_apart() -> None:
    device = Device()
    device.block(7, 0x1234, WB)
    zram = device.open()
    assert (zram.find(7), zram.find(8)) == (State.SWAPPED_TO_DISK, State.SWAP_UNREADABLE)
    with pytest.raises(CorruptStructure, match="block 0x258, expected 0x258"):
        zram.find(NR_BLOCKS)


def test_a_block_that_cannot_be_decoded_is_refused() -> None:
    device = Device()
    device.keep(1, b"\xff" * 100)
    device.block(2, 0x1234, 2 << 20 | 100)
    device.block(3, 0x1234, 3 << 20 | 100)
    zram = device.open()
    with pytest.raises(CodecError, match="LZ4"):
        zram.read(1)
    for index, words in ((2, "'rot13', which cannot be decoded"), (3, "'', which cannot be decoded")):
        with pytest.raises(CodecError, match=words):
            zram.find(index)


def test_a_dictionary_is_refused() -> None:
    device = Device(PARAMS)
    device.keep(1, lz4(TEXT_PAGE))
    device.keep(2, lz4(TEXT_PAGE), SECOND)
    device.image.words(device.zram + 112 + 24, 0xFFFF_8880_0000_0000)
    zram = device.open()
    assert zram.read(1) == TEXT_PAGE
    with pytest.raises(CodecError, match="dictionary"):
        zram.find(2)


def test_a_device_that_is_none_is_refused() -> None:
    device = Device()
    device.image.set("zram", device.zram, disk=device.disk + 8)
    with pytest.raises(CorruptStructure, match="disk is"):
        device.open()


@pytest.mark.parametrize(
    ("name", "value"), [("ZRAM_SAME", -1), ("ZRAM_LOCK", 64), ("ZRAM_HUGE", 1 << 40), ("ZRAM_COMP_PRIORITY_BIT1", -9)]
)
def test_a_flag_that_is_no_bit_is_refused(name: str, value: int) -> None:
    device = Device()
    device.image.table.constants[name] = value
    with pytest.raises(LayoutInvalid, match=name):
        device.open()
    device.image.table.constants.pop("ZRAM_SAME")
    device.image.table.constants["ZRAM_LOCK"] = 13
    with pytest.raises(LayoutUnknown, match="ZRAM_SAME"):
        device.open()


@pytest.mark.parametrize("size", [0, 1 << 40])
def test_entries_of_an_impossible_size_are_refused(size: int) -> None:
    device = Device()
    device.image.table.sizes["zram_table_entry"] = size
    with pytest.raises(LayoutInvalid, match="zram_table_entry"):
        device.open()
