"""Real dumps: the same memory written in different formats must read the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.needs import need
from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState

pytestmark = pytest.mark.corpus

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus"
KDUMP_61 = CORPUS / "debian-6.1-amd64-kdump"


def corpus(*parts: str) -> Path:
    path = CORPUS.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path.name} of the corpus")
    return path


def present_pages(container: DumpContainer) -> U64Array:
    last = container.memory_ranges()[-1].end // container.page_size
    pfns = np.arange(last + 1, dtype=np.uint64)
    present: U64Array = pfns[container.page_states(pfns) == PageState.PRESENT]
    return present


def read_all(container: DumpContainer, pfns: U64Array) -> U8Array:
    out = np.zeros((len(pfns), container.page_size), np.uint8)
    for i in range(0, len(pfns), 2048):
        states = container.read_pages(pfns[i : i + 2048], out[i : i + 2048])
        assert (states == PageState.PRESENT).all()
    return out


def test_zstd_and_lzo_dumps_of_one_crash_have_the_same_bytes() -> None:
    """makedumpfile -z -d 17 and -l -d 31 of the same /proc/vmcore."""
    zstd = open_container([corpus("debian-6.1-amd64-kdump", "vmcore.zstd-d17")])
    lzo = open_container([corpus("debian-6.1-amd64-kdump", "vmcore.lzo-d31")])
    with zstd, lzo:
        assert (zstd.compressed, zstd.dump_level, zstd.e_machine, zstd.warnings) == ("zstd", 17, 62, [])
        assert (lzo.compressed, lzo.dump_level, lzo.e_machine, lzo.warnings) == ("lzo", 31, 62, [])
        assert zstd.vmcoreinfo == lzo.vmcoreinfo
        assert zstd.vmcoreinfo is not None
        assert zstd.vmcoreinfo.startswith(b"OSRELEASE=6.1.0-50-amd64\n")
        assert [(n.name, n.n_type) for n in zstd.notes] == [("CORE", 1), ("CORE", 1), ("VMCOREINFO", 0)]
        assert zstd.memory_ranges() == lzo.memory_ranges()
        # That -d 31 leaves out more than -d 17, and nothing that the other does not, is makedumpfile's manual.
        both = present_pages(lzo)
        assert len(both) == 21179
        assert len(present_pages(zstd)) == 34219
        assert (read_all(zstd, both) == read_all(lzo, both)).all()


def test_zero_pages_of_a_kdump_file_are_present_not_excluded() -> None:
    """-d 17 leaves out zero pages, and yet the file has thousands: each has its bit and a descriptor."""
    with open_container([corpus("debian-6.1-amd64-kdump", "vmcore.zstd-d17")]) as container:
        pages = read_all(container, present_pages(container))
        assert (~pages.any(axis=1)).sum() > 1000


@pytest.mark.parametrize(
    ("arguments", "codec"), [(["-c", "-d", "31"], "zlib"), (["-l", "-d", "31"], "lzo"), (["-d", "31"], None)]
)
def test_file_rewritten_by_makedumpfile_has_the_same_bytes(
    tmp_path: Path, arguments: list[str], codec: str | None
) -> None:
    need("makedumpfile")
    source = corpus("debian-6.1-amd64-kdump", "vmcore.lzo-d31")
    target = tmp_path / "vmcore"
    subprocess.run(["makedumpfile", *arguments, source, target], check=True, capture_output=True)
    with open_container([source]) as before, open_container([target]) as after:
        assert after.compressed == codec
        pfns = present_pages(before)
        assert (present_pages(after) == pfns).all()
        assert (read_all(before, pfns) == read_all(after, pfns)).all()


def test_split_dump_by_makedumpfile_has_the_same_bytes(tmp_path: Path) -> None:
    need("makedumpfile")
    source = corpus("debian-6.1-amd64-kdump", "vmcore.lzo-d31")
    parts = [tmp_path / name for name in "123"]
    # Its default block of 1 GiB would put all of this memory into the first part.
    split = ["makedumpfile", "--split", "--splitblock-size", "64", "-c", "-d", "31"]
    subprocess.run([*split, source, *parts], check=True, capture_output=True)
    assert all(part.stat().st_size > 1 << 20 for part in parts)
    with open_container([source]) as before, open_container([parts[2], parts[0], parts[1]]) as after:
        assert after.warnings == []
        assert after.paths == tuple(parts)
        assert [note.desc for note in after.notes] == [note.desc for note in before.notes]
        assert after.memory_ranges() == before.memory_ranges()
        pfns = present_pages(before)
        assert (present_pages(after) == pfns).all()
        assert (read_all(before, pfns) == read_all(after, pfns)).all()
    with open_container([parts[0], parts[2]]) as partial:
        (warning,) = partial.warnings
        assert "this dump was split, and the part with page frames 0x" in warning
        states = partial.page_states(pfns)
        assert set(states.tolist()) == {PageState.PRESENT, PageState.TRUNCATED}
        assert (read_all(partial, pfns[states == PageState.PRESENT])).any()


def test_parts_by_makedumpfile_that_have_no_page_are_parts(tmp_path: Path) -> None:
    need("makedumpfile")
    source = corpus("debian-6.1-amd64-kdump", "vmcore.lzo-d31")
    parts = [tmp_path / name for name in "12"]
    subprocess.run(["makedumpfile", "--split", "-d", "31", source, *parts], check=True, capture_output=True)
    with open_container([source]) as before, open_container(parts[::-1]) as after:
        assert after.warnings == []
        pfns = present_pages(before)
        assert (read_all(before, pfns) == read_all(after, pfns)).all()


def test_qemu_elf_dump_reads_as_its_program_headers_say(tmp_path: Path) -> None:
    import zstandard

    packed = corpus("debian-7.2-amd64", "vmcore.elf.zst")
    path = tmp_path / "vmcore.elf"
    with packed.open("rb") as source, path.open("wb") as target:
        zstandard.ZstdDecompressor(max_window_size=1 << 31).copy_stream(source, target)
    with open_container([path]) as container, path.open("rb") as f:
        # From eu-readelf -l.
        assert container.memory_ranges() == (
            AddressRange(0, 0xA0000),
            AddressRange(0xC0000, 0x10000000),
            AddressRange(0xFD000000, 0xFE000000),
            AddressRange(0xFFFC0000, 0x100000000),
        )
        assert [n.name for n in container.notes] == ["CORE", "CORE", "QEMU", "QEMU", "VMCOREINFO"]
        assert (container.e_machine, container.byte_order, container.warnings) == (62, "little", [])
        out = np.zeros((1024, 4096), np.uint8)
        for first, offset in ((0x100, 0xA1510 + 0x40000), (0xFE00, 0xA1510 - 0xC0000 + 0xFE00000), (0x0, 0x1510)):
            count = 160 if first == 0 else 512
            assert container.read_pages(np.arange(first, first + count, dtype=np.uint64), out[:count]).all()
            f.seek(offset)
            assert f.read(count * 4096) == out[:count].tobytes()
