"""The files that the words on a command line name, as for crash and in kdump's directories."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, page
from vmcore2core.arguments import named_dump
from vmcore2core.errors import DumpError, UsageError
from vmcore2core.process.sysroot import Sysroot


def program(path: Path, e_type: int) -> Path:
    """Write the head of an ELF file."""
    path.write_bytes(b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<H", e_type) + bytes(46))
    return path


def dump(path: Path) -> Path:
    path.write_bytes(build_elf_vmcore([Load(0x1000, page(1))]))
    return path


def test_a_directory_that_may_not_be_looked_into_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root may look into all: what the system would say to others is put in its place."""
    dump(tmp_path / "vmcore")
    assert named_dump([str(tmp_path)], None, None).paths == [tmp_path / "vmcore"]
    monkeypatch.setattr("os.access", lambda *_arguments: False)
    with pytest.raises(DumpError, match=r"cannot be read: Permission denied$"):
        named_dump([str(tmp_path)], None, None)
    with pytest.raises(UsageError, match=r"cannot be read: Permission denied$"):
        Sysroot(tmp_path)


def test_what_may_not_be_read_is_no_matter_of_usage(tmp_path: Path) -> None:
    """click would say of the file that it "is not readable", with status 2; the reader says why, with status 1."""
    script = "import os; os.access = lambda *_, **__: False; import vmcore2core.__main__ as m; m.vmcore2core()"
    (tmp_path / "file").touch()
    for words in (("verify", tmp_path / "file"), (tmp_path / "file", "--pid", "1", "--vmlinux", tmp_path / "file")):
        command = [sys.executable, "-c", script, *map(str, words)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 1
        assert "readable" not in result.stderr


@pytest.mark.parametrize("e_type", [2, 3])
@pytest.mark.parametrize("first", ["vmlinux", "vmcore"])
def test_a_vmlinux_may_stand_before_the_dump_or_behind_it(tmp_path: Path, first: str, e_type: int) -> None:
    vmlinux, vmcore = program(tmp_path / "vmlinux", e_type), dump(tmp_path / "vmcore")
    words = [str(vmlinux), str(vmcore)] if first == "vmlinux" else [str(vmcore), str(vmlinux)]
    found = named_dump(words, None, None)
    assert (found.paths, found.vmlinux, found.memory_map) == ([vmcore], vmlinux, None)
    assert found.said == (f"taking {vmlinux} as --vmlinux",)


def test_two_of_them_are_one_too_many(tmp_path: Path) -> None:
    vmlinux, other, vmcore = program(tmp_path / "vmlinux", 2), program(tmp_path / "other", 2), dump(tmp_path / "vmcore")
    with pytest.raises(UsageError, match="other: expected one"):
        named_dump([str(vmlinux), str(other), str(vmcore)], None, None)
    with pytest.raises(UsageError, match="other: expected one"):
        named_dump([str(vmlinux), str(vmcore)], other, None)


def test_a_program_alone_is_left_to_those_who_know_formats(tmp_path: Path) -> None:
    vmlinux = program(tmp_path / "vmlinux", 2)
    found = named_dump([str(vmlinux)], None, None)
    assert (found.paths, found.vmlinux, found.said) == ([vmlinux], None, ())
    short = tmp_path / "short"
    short.write_bytes(b"\x7fELF")
    assert named_dump([str(short), str(tmp_path / "gone")], None, None).vmlinux is None


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["vmcore", "vmcore-dmesg.txt", "kexec-dmesg.log"], ["vmcore"]),
        (["dump.202611292210", "dmesg.202611292210"], ["dump.202611292210"]),
        (["vmcore.1", "vmcore.2", "vmcore-dmesg.txt"], ["vmcore.1", "vmcore.2"]),
        (["vmcore-incomplete"], ["vmcore-incomplete"]),
    ],
)
def test_a_directory_of_kdumps_has_the_dump(tmp_path: Path, names: list[str], taken: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = named_dump([str(tmp_path)], None, None)
    assert found.paths == [tmp_path / name for name in taken]
    assert found.said == (f"taking {', '.join(taken)} in {tmp_path}",)


def test_a_directory_without_a_dump_is_named(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="is a directory, and none of vmcore, dump"):
        named_dump([str(tmp_path)], None, None)


def test_banks_come_with_their_map(tmp_path: Path) -> None:
    bank = tmp_path / "ddr0.bin"
    bank.touch()
    found = named_dump([f"{bank}@0x80000000"], None, None)
    assert (found.paths, found.memory_map) == ([bank], "ddr0.bin@0x80000000")


def test_a_tar_archive_is_named(tmp_path: Path) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path, dump(tmp_path / "vmcore").name], check=True)
    command: list[str | Path] = [sys.executable, "-m", "vmcore2core", "-s", tmp_path / "a.tar", "--pid", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "a.tar is a tar archive; unpack it first (tar -xf)" in done.stderr
