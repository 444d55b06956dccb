"""The cache trusts no other user and keeps its limits; a file that unpacks to far too much is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.builders.elfdump import Load, build_elf_vmcore
from tests.builders.sample_files import kdump
from tests.builders.samples import PAGES
from tests.containers.contract import read
from tests.e2e.guests import FIXTURES, convert, tasks
from vmcore2core.containers import cache as module
from vmcore2core.containers import open_container, unpacked
from vmcore2core.containers.cache import Keeping
from vmcore2core.errors import DumpError, UnknownFormat

STRANGER = 4711
RAW = gzip.compress(kdump("zlib"))
DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "cache" / "vmcore2core" / "unpacked"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "vmcore.gz"
    path.write_bytes(RAW)
    return path


def assert_read(path: Path, keeping: Keeping | None = None) -> None:
    with open_container([path], None, keeping or Keeping()) as container:
        assert read(container, 1, 3)[1] == [PAGES[1], PAGES[3]]


def planted(cache: Path) -> Path:
    """Return where the cache would have what RAW unpacks to."""
    cache.mkdir(parents=True, mode=0o700)
    return cache / hashlib.sha256(RAW).hexdigest()


def strange(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file somebody else's."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER)
    else:
        there, real = path.stat().st_ino, os.fstat
        monkeypatch.setattr(
            os,
            "fstat",
            lambda fd: (
                os.stat_result([*found[:4], STRANGER, *found[5:10]]) if (found := real(fd)).st_ino == there else found
            ),
        )


@pytest.mark.parametrize("kind", ["somebody else's", "writable", "link", "fifo", "directory"])
def test_a_planted_file_is_not_believed(
    kind: str, cache: Path, dump: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = planted(cache), dump.with_name("other")
    other.write_bytes(build_elf_vmcore([Load(0x1000, b"!" * 4096)]))
    if kind == "link":
        path.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        other.rename(path)
        path.chmod(0o666 if kind == "writable" else 0o600)
        if kind != "writable":
            strange(path, monkeypatch)
    if kind == "directory":
        with pytest.raises(DumpError, match="Is a directory"):
            assert_read(dump)
        return
    assert_read(dump)
    assert f"{path} is not used: " in caplog.text
    assert_read(dump)  # what was unpacked now is in its place
    assert path.lstat().st_uid == os.geteuid()
    assert path.read_bytes() == kdump("zlib")


def test_a_folder_that_others_can_write_to_keeps_nothing(
    cache: Path, dump: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = planted(cache)
    path.write_bytes(build_elf_vmcore([Load(0x1000, b"!" * 4096)]))
    cache.chmod(0o777)
    assert_read(dump)
    assert "others can write to it" in caplog.text
    assert "nothing is kept" in caplog.text
    assert list(cache.iterdir()) == [path]


def test_without_the_cache_nothing_is_read_or_written_there(cache: Path, dump: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert_read(dump, Keeping(cache=False))
    assert not cache.parent.exists()
    assert [path.name for path in dump.parent.iterdir()] == ["vmcore.gz"]
    planted(cache).write_bytes(b"something else")
    assert_read(dump, Keeping(cache=False))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_cache_is_an_option_of_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert convert(DUMP, "--pid", "1", "-o", tmp_path / "core", "--no-cache").returncode == 0
    assert tasks("info", DUMP, "--no-cache").returncode == 0
    assert convert("verify", tmp_path / "core", "--against", DUMP, "--no-cache").returncode == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["fifo", "zeros"])
def test_a_planted_layout_is_not_waited_for(
    plant: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layout = tmp_path / "cache" / "vmcore2core" / "layout"
    assert tasks("info", DUMP).returncode == 0
    kept = list(layout.iterdir())
    for path in kept:
        path.unlink()
        plant(path)
    result = tasks("info", DUMP)
    assert result.returncode == 0
    assert result.stderr.count("is not used") == len(kept) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
def test_a_layout_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tasks("info", DUMP).returncode == 0
    for path in (tmp_path / "cache" / "vmcore2core" / "layout").iterdir():
        os.chown(path, STRANGER, STRANGER)
    result = tasks("info", DUMP)
    assert (result.returncode, result.stderr.count(f"belongs to user {STRANGER}")) == (0, 2)


def test_the_oldest_go_and_what_killed_runs_left(cache: Path, dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(cache)
    for age in range(5):
        path = cache / f"{age}"
        path.write_bytes(b"x" * 4096)
        os.utime(path, (1000 - age, 1000 - age))
    (cache / ".left.0123456789abcdef.part").touch()
    busy = cache / ".busy.0123456789abcdef.part"
    busy.touch()
    monkeypatch.setattr(module, "KEPT_MAX", 3 * (cache / "0").stat().st_blocks * 512)
    with busy.open() as file:
        module._lock(file.fileno())
        assert_read(dump)
    names = {path.name for path in cache.iterdir()}
    assert names == {"0", "1", "2", busy.name, hashlib.sha256(RAW).hexdigest()}


def test_what_is_used_is_not_the_oldest(cache: Path, dump: Path) -> None:
    assert_read(dump)
    (kept,) = cache.iterdir()
    os.utime(kept, (0, 0))
    assert_read(dump)
    assert kept.stat().st_mtime > 1000


def zeros(size: int) -> bytes:
    return gzip.compress(bytes(size))


@pytest.mark.parametrize("pack", [zeros, lambda size: zstandard.compress(bytes(size))], ids=["gzip", "zstd"])
def test_zeros_are_no_dump_and_are_not_unpacked(pack: Callable[[int], bytes], cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(pack(64 << 20))
    with pytest.raises(UnknownFormat, match=r"bomb is compressed with .*, and what it unpacks to begins with .* zero"):
        open_container([path])
    assert not cache.exists()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_dump_that_unpacks_to_far_too_much_is_an_error_and_an_option_lifts_it(
    pack: Callable[[bytes], bytes], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "SIZE_ALWAYS", 1 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(pack(build_elf_vmcore([Load(0x1000, bytes(64 << 20))])))
    with pytest.raises(DumpError, match=r"expected 0x[0-9a-f]+ at most; --unpack-any-size lifts this limit"):
        open_container([path])
    assert not cache.exists() or not list(cache.iterdir())
    with open_container([path], None, Keeping(any_size=True)) as container:
        assert read(container, 1)[1] == [bytes(4096)]


def tar(content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        member = tarfile.TarInfo("crash/vmcore")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["tar", "tar.gz", "tar.zst"])
def test_an_archive_is_named_and_not_kept(pack: Callable[[bytes], bytes], cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "case.tar"
    path.write_bytes(pack(tar(kdump("zlib"))))
    with pytest.raises(UnknownFormat, match=r"is a tar archive; unpack it first \(tar -xf\)"):
        open_container([path])
    assert not cache.exists()


def test_memory_without_a_header_may_begin_with_anything(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "memory.gz"
    path.write_bytes(gzip.compress(bytes(4096) + b"?" * 4096))
    with open_container([path], "raw") as container:
        assert read(container, 1)[1] == [b"?" * 4096]
    assert cache.exists()
