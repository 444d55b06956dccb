"""A part of a file as a file object."""

from __future__ import annotations

import io

import pytest

from vmcore2core.elf.readerfile import ReaderFile


def test_it_reads_as_a_file_does_up_to_its_end() -> None:
    data = bytes(range(100))
    ours, theirs = (io.BufferedReader(ReaderFile(lambda at, size: data[at : at + size], 50)), io.BytesIO(data[:50]))
    for offset, whence in ((0, 0), (10, 0), (5, 1), (-3, 2), (60, 0)):
        assert ours.seek(offset, whence) == theirs.seek(offset, whence)
        assert (ours.read(7), ours.tell()) == (theirs.read(7), theirs.tell())
    with pytest.raises(ValueError, match="before the file's beginning"):
        ours.seek(-51, 2)
