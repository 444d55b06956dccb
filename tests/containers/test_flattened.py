"""Flattened files read as the file that makedumpfile -R would make of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.flat import build_flattened
from tests.needs import need
from vmcore2core.containers import open_container
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.flattened import FlattenedFile
from vmcore2core.errors import DumpError, FormatError

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


def opened(tmp_path: Path, data: bytes) -> FlattenedFile:
    path = tmp_path / "flat"
    path.write_bytes(data)
    return FlattenedFile(DumpFile(path))


def rearranged(pieces: list[tuple[int, bytes]]) -> bytes:
    """What writing the pieces to a file one after the other makes."""
    result = bytearray()
    for offset, data in pieces:
        if not data:
            continue
        result.extend(bytes(max(0, offset + len(data) - len(result))))
        result[offset : offset + len(data)] = data
    return bytes(result)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=30)), max_size=8),
    start=st.integers(0, 100),
    size=st.integers(0, 120),
)
def test_reads_as_the_pieces_written_in_turn(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bytes]], start: int, size: int
) -> None:
    file = opened(tmp_path_factory.mktemp("flat"), build_flattened(pieces))
    whole = rearranged(pieces)
    assert file.size == len(whole)
    assert file.read(start, size) == whole[start : start + size]
    assert file.read(0, len(whole)) == whole
    file.close()


def test_a_cut_off_file_ends_where_its_last_piece_ends(tmp_path: Path) -> None:
    data = build_flattened([(0, b"a" * 100), (100, b"b" * 100)])
    file = opened(tmp_path, data[: 4096 + 16 + 100 + 16 + 40])
    assert file.read(0, 1000) == b"a" * 100 + b"b" * 40
    assert file.size == 140
    assert file.cut_off is not None
    assert "cut off" in file.cut_off


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"makedumpfile\0\0\0\0", "cut off"),
        (build_flattened([], kind=2), "type 2 at file offset 0x10, expected 1"),
        (build_flattened([], version=9), "version 9 at file offset 0x18, expected 1"),
        (build_flattened([(-5, b"x")]), "at file offset 0x1000"),
        (build_flattened([((1 << 63) - 1, b"x")]), "offset 0x7fffffffffffffff, buf_size 0x1 at file offset 0x1000"),
    ],
)
def test_a_broken_header_is_one_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        opened(tmp_path, data)


def test_every_truncation_ends_in_an_error_or_a_shorter_file(tmp_path: Path) -> None:
    data = build_flattened([(0, b"KDUMP   " + bytes(64)), (72, b"tail")])
    for size in [*range(40), *range(4090, len(data))]:
        try:
            opened(tmp_path, data[:size]).close()
        except DumpError as error:
            assert str(error)  # noqa: PT017 - some lengths are errors, some are not


@pytest.mark.corpus
def test_makedumpfile_rearranges_to_the_same_bytes(tmp_path: Path) -> None:
    source = CORPUS / "seed-7.2-amd64" / "vmcore.kdump-zlib"
    if not source.exists():
        pytest.skip("../shared/corpus is not there")
    file = FlattenedFile(DumpFile(source))
    subprocess.run(
        [need("makedumpfile"), "-R", tmp_path / "plain"], stdin=source.open("rb"), check=True, capture_output=True
    )
    assert file.read(0, file.size) == (tmp_path / "plain").read_bytes()
    with open_container([source]) as container:
        assert container.DOC.name == "kdump-compressed"
        assert container.warnings == []
