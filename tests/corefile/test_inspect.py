"""Planted defects of a core are found, by checking its headers and by comparing it with the dump.

Tests compare_with_dump.py, corefile/source.py.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.corefile.snapshots import snapshot, vma, write
from tests.e2e.guests import FIXTURES, convert
from vmcore2core.compare_with_dump import open_core
from vmcore2core.corefile.inspect import CoreFile, also, files_needed, missing, problems
from vmcore2core.errors import DumpError
from vmcore2core.process.model import ThreadLeftOut

DUMP = FIXTURES / "debian-6.1-amd64/vmcore"
PHDR, EHDR = 56, 64


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("core") / "app.core"
    assert convert(DUMP, "--comm", "lab-dynamic", "-o", path.parent).returncode == 0
    next(path.parent.glob("core.lab-dynamic.*[0-9]")).rename(path)
    return path


def changed(core: Path, folder: Path, offset: int, data: bytes) -> Path:
    """Return a copy of a core with other bytes somewhere."""
    raw = bytearray(core.read_bytes())
    assert raw[offset : offset + len(data)] != data
    raw[offset : offset + len(data)] = data
    target = folder / "changed"
    target.write_bytes(raw)
    return target


def load_at(core: Path, number: int, field: int) -> tuple[int, int]:
    """Return where a field of a PT_LOAD's header is, and its value: 8 p_offset, 16 p_vaddr, 32 p_filesz."""
    at = EHDR + PHDR * (1 + number) + field
    value: int = struct.unpack_from("<Q", core.read_bytes(), at)[0]
    return at, value


def verify(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmcore2core", "verify", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_good_core_is_good_and_equal_to_the_dump(core: Path) -> None:
    result = verify(core, "--against", DUMP)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"{core}: good, 6 threads, 2093 pages equal to the dump's"


def test_one_thread_is_one(tmp_path: Path) -> None:
    core = tmp_path / "core"
    assert convert(DUMP, "--pid", "1", "-o", core).returncode == 0
    assert verify(core).stdout.splitlines()[-1] == f"{core}: good, 1 thread"


def test_a_core_whose_only_thread_is_left_out_is_incomplete_and_not_wrong(tmp_path: Path) -> None:
    """It was running, and the dump has no registers of its CPU: the core was written with status 3."""
    left = (ThreadLeftOut(100, b"app", "it was running on CPU 0, whose registers the dump does not have"),)
    core = tmp_path / "core"
    write(snapshot(vma(0x1000, 0x2000), threads=(), threads_left_out=left), core)
    result = verify(core)
    assert (result.returncode, result.stderr) == (3, "")
    assert "missing: thread 100 is left out: it was running on CPU 0" in result.stdout
    write(snapshot(vma(0x1000, 0x2000), threads=()), tmp_path / "none")
    result = verify(tmp_path / "none")
    assert (result.returncode, "it has no thread's registers (NT_PRSTATUS)" in result.stderr) == (1, True)


@pytest.mark.parametrize("back", [1, 2000])
def test_a_byte_that_is_not_the_dumps_is_found(core: Path, back: int, tmp_path: Path) -> None:
    raw = core.read_bytes()
    offset = len(raw.rstrip(b"\0")) - back
    bad = changed(core, tmp_path, offset, bytes([raw[offset] ^ 1]))
    result = verify(bad, "--against", DUMP, "--json")
    document = json.loads(result.stdout)
    assert (result.returncode, document["pages_differing"]) == (1, 1)
    assert "1 page differs from the dump's: 0x" in document["wrong"][0]


def test_a_register_that_is_not_the_dumps_is_found(core: Path, tmp_path: Path) -> None:
    at = struct.unpack_from("<Q", core.read_bytes(), EHDR + 8)[0]  # p_offset of PT_NOTE, the first program header
    bad = changed(core, tmp_path, at + 20 + 112 + 4 * 8, b"\x01\x02\x03\x04\x05\x06\x07\x08")  # rbp
    result = verify(bad, "--against", DUMP)
    assert result.returncode == 1
    assert "wrong: note 0 (CORE, NT_PRSTATUS) differs" in result.stderr


def test_a_note_of_another_type_is_found(core: Path, tmp_path: Path) -> None:
    raw = core.read_bytes()
    at = raw.index(struct.pack("<III", 5, 512, 2) + b"CORE\0")  # the first NT_FPREGSET
    bad = changed(core, tmp_path, at + 8, struct.pack("<I", 0x1234))
    result = verify(bad, "--against", DUMP)
    assert result.returncode == 1
    assert "(CORE, type 0x1234) differs from what the dump has: CORE, type 0x2, 512 bytes" in result.stderr


def test_headers_that_cannot_be_are_wrong(core: Path, tmp_path: Path) -> None:
    at, start = load_at(core, 1, 16)
    _, before = load_at(core, 0, 16)
    with CoreFile(changed(core, tmp_path, at, struct.pack("<Q", before))) as bad:
        assert any("begins before the one before it ends" in sentence for sentence in problems(bad))
    at, filesz = load_at(core, 1, 32)
    with CoreFile(changed(core, tmp_path, at, struct.pack("<Q", filesz + (1 << 40)))) as bad:
        found = list(problems(bad))
    assert any("behind the file's end" in sentence for sentence in found)
    assert any(f"PT_LOAD at {start:#x} has" in sentence for sentence in found)


@pytest.mark.parametrize("size", [0, 3, 16, 63, 64, 100, 2000])
def test_a_cut_off_core_is_one_sentence(core: Path, size: int, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(core.read_bytes()[:size])
    result = verify(tmp_path / "cut")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("vmcore2core verify: ")


def test_what_is_no_core_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="ET_CORE"):
        CoreFile(FIXTURES / "sysroot/bin/lab-dynamic")
    with pytest.raises(DumpError, match="cannot be read"):
        CoreFile(tmp_path / "nothing")


def test_what_a_debugger_will_miss_is_said(tmp_path: Path) -> None:
    assert (
        convert(DUMP, "--comm", "lab-dynamic", "--filter", "0x33", "--redact", "[heap]", "-o", tmp_path).returncode == 0
    )
    with CoreFile(next(tmp_path.glob("core.lab-dynamic.*[0-9]"))) as found:
        assert list(problems(found)) == []
        assert list(missing(found)) == []
        needed = list(files_needed(found))
        assert any("1 range of memory was left out as asked" in sentence for sentence in also(found))
    assert any(
        sentence.startswith("/lib/libc.so.6: ") and "build ID 93ac61ec5a8eb1396f9fbd350e3169a558528a40" in sentence
        for sentence in needed
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    assert convert(DUMP, "--comm", "lab-dynamic", "-o", folder, "--compress", "zstd").returncode == 0
    return next(folder.glob("core.lab-dynamic.*.zst"))


def test_a_compressed_core_is_read_where_it_is(packed: Path) -> None:
    result = verify(packed, "--against", DUMP)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"{packed}: good, 6 threads, 2093 pages equal to the dump's"


def test_a_compressed_core_takes_memory_for_frames_alone(packed: Path, tmp_path: Path) -> None:
    frames = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 20)) * 640
    (tmp_path / "big.zst").write_bytes(packed.read_bytes() + frames)
    script = (
        "import atexit; from pathlib import Path; from vmcore2core.__main__ import vmcore2core\n"
        "status = Path('/proc/self/status'); peak = 'VmHWM:'\n"
        "atexit.register(lambda: print(status.read_text().split(peak)[1].split()[0])); vmcore2core()"
    )
    command = [sys.executable, "-c", script, "verify", str(tmp_path / "big.zst")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout.splitlines()[-1]) < 400 << 10  # of the 640 MiB that it unpacks to


def test_a_damaged_frame_is_wrong(packed: Path, tmp_path: Path) -> None:
    raw = bytearray(packed.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    (tmp_path / "bad.zst").write_bytes(raw)
    with open_core(tmp_path / "bad.zst") as core:
        (sentence,) = problems(core)
    assert re.fullmatch(r"\S*bad\.zst: the zstd frame at file offset 0x[0-9a-f]+ does not decode: .*", sentence)


@pytest.mark.parametrize("keep", [0.001, 0.5, 0.99])
def test_a_cut_off_compressed_core_is_wrong(packed: Path, keep: float, tmp_path: Path) -> None:
    raw = packed.read_bytes()
    (tmp_path / "cut.zst").write_bytes(raw[: int(len(raw) * keep)])
    if keep < 0.1:  # not even a frame is whole
        with pytest.raises(DumpError, match=r"cut\.zst"):
            open_core(tmp_path / "cut.zst")
        return
    with open_core(tmp_path / "cut.zst") as core:
        assert any("the zstd file is cut off" in sentence for sentence in problems(core))


def test_a_core_in_one_frame_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "one.zst").write_bytes(zstandard.ZstdCompressor(write_content_size=False).compress(b"x"))
    with pytest.raises(DumpError, match=r"one\.zst is compressed in one piece, expected frames: zstd -d unpacks it"):
        open_core(tmp_path / "one.zst")


def test_a_dump_that_is_named_verify_is_a_dump(tmp_path: Path) -> None:
    (tmp_path / "verify").write_bytes(b"no dump")
    command = [sys.executable, "-m", "vmcore2core", "verify", "--pid", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == "vmcore2core: verify is a text file, not a kernel dump\n"
