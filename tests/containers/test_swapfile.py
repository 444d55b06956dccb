"""Swap areas as mkswap(8) writes them.

Tests formats/swap.py, containers/blockfile.py.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.swapfile import SwapFile
from vmcore2core.errors import FormatError
from vmcore2core.interfaces import ByteOrder

PAGE = 4096


def area(
    last_page: int = 3, *, version: int = 1, order: str = "<", page: int = PAGE, magic: bytes = b"SWAPSPACE2"
) -> bytes:
    header = bytearray(page)
    struct.pack_into(f"{order}3I16s16s", header, 1024, version, last_page, 2, b"u" * 16, b"label")
    header[page - 10 :] = magic
    return bytes(header) + b"".join(bytes([n]) * page for n in range(1, last_page + 1))


def opened(path: Path, raw: bytes, page: int = PAGE, order: ByteOrder = "little") -> SwapFile:
    path.write_bytes(raw)
    return SwapFile(open_dump_file(path), page, order)


def test_a_slot_is_a_page_of_the_file(tmp_path: Path) -> None:
    swap = opened(tmp_path / "swap", area())
    assert (swap.slots_max, swap.nr_badpages) == (4, 2)
    assert [swap.read(slot) for slot in (1, 3)] == [b"\1" * PAGE, b"\3" * PAGE]
    assert swap.read(4) is None


def test_pages_of_64_kib_and_the_other_byte_order(tmp_path: Path) -> None:
    swap = opened(tmp_path / "swap", area(order=">", page=65536), 65536, "big")
    assert swap.slots_max == 4
    assert swap.read(2) == b"\2" * 65536


def test_a_file_that_is_cut_off_has_no_half_page(tmp_path: Path) -> None:
    swap = opened(tmp_path / "swap", area()[: 3 * PAGE + 100])
    assert swap.read(2) == b"\2" * PAGE
    assert swap.read(3) is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "has nothing"),
        (bytes(PAGE), "expected SWAPSPACE2"),
        (area(magic=b"SWAP-SPACE"), "expected SWAPSPACE2"),
        (area(page=65536), "expected SWAPSPACE2"),
        (area(version=2), "version is 0x2"),
        (area(order=">"), "in the kernel's byte order"),
        (area(0), "last_page is 0"),
    ],
)
def test_what_is_no_swap_area_is_refused_in_one_sentence(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(FormatError) as refused:
        opened(tmp_path / "swap", raw)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(shutil.which("mkswap", path="/usr/sbin:/sbin:/usr/bin") is None, reason="needs mkswap")
@pytest.mark.parametrize("page", [4096, 65536])
def test_what_mkswap_makes_is_read(tmp_path: Path, page: int) -> None:
    path, size = tmp_path / "made", 40 * 65536
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    mkswap = shutil.which("mkswap", path="/usr/sbin:/sbin:/usr/bin") or ""
    made = subprocess.run([mkswap, "-p", str(page), str(path)], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    assert opened(path, path.read_bytes(), page, sys.byteorder).slots_max == size // page
