"""Which format a file is taken for.

Tests containers/base.py, containers/dumpfile.py, containers/foreign.py.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, page
from tests.builders.kdump import build_kdump
from vmcore2core.containers import all_containers, open_container
from vmcore2core.containers.base import ContainerDoc, DumpContainer
from vmcore2core.errors import DumpError, UnknownFormat, UsageError

ELF = build_elf_vmcore([Load(0x1000, page(1))])
KDUMP = build_kdump({1: page(1)})


def message(tmp_path: Path, raw: bytes) -> str:
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(UnknownFormat) as caught:
        open_container([path])
    text = str(caught.value)
    assert text.startswith(f"{path} ")
    assert "\n" not in text
    return text.removeprefix(f"{path} ")


def test_containers_are_found_by_their_module() -> None:
    names = {container.__name__ for container in all_containers()}
    assert {"ElfContainer", "DiskDumpContainer"} <= names
    for container in all_containers():
        assert issubclass(container, DumpContainer)
        assert isinstance(container.DOC, ContainerDoc)
        assert container.DOC.name
        assert container.DOC.references


@pytest.mark.parametrize(
    "raw", [ELF, KDUMP, b"", b"\x7fELF", b"KDUMP", b"text\n", bytes(100), random.Random(1).randbytes(64)]
)
def test_at_most_one_container_claims_a_file(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    claims = []
    for container in all_containers():
        with path.open("rb") as f:
            claims.append(container.detect(f))
    assert sum(claims) == (raw in (ELF, KDUMP))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\necho\n", "is a text file"),
        ("größe\n".encode() * 400, "is a text file"),
        (
            bytes(5000),
            "begins with 4096 zero bytes, which no dump format does; if it is memory without any header, say",
        ),
        (bytes(0x202) + b"HdrS", "is a kernel as it boots (vmlinuz, bzImage, Image), not a dump; --vmlinux takes the"),
        (b"MZ" + bytes(0x36) + b"ARM\x64", "is a kernel as it boots"),
        (b"MZ" + bytes(0x36) + b"RSC\x05", "is a kernel as it boots"),
        (b"\x01\x02\x03\x04\xff\xfe\xfd\xfc\0", "begins with 01020304fffefdfc, which is not the signature"),
        (b"\x1f\x9d\x90" + bytes(60), "is compressed with compress; unpack it first (gzip -d)"),
        (b"PK\x03\x04" + bytes(60), "is compressed with zip; unpack it first (unzip)"),
        (b"\xed\x23\x8f\x61\x73\x01\x19\xa8" + bytes(60), "is an LKCD dump, which is not supported: write one with"),
        (b"\xed\xeb\x0f\xf0" + bytes(60), "is a xendump of Xen before 3.2"),
        (b"\x14\x20\x28\x01" + bytes(60), "is a file of Hyper-V (.vmrs, .vmcx), which is not supported; dump"),
        (b"PAGEDU64" + bytes(60), "is a Windows crash dump, not a Linux one"),
        (b"QFI\xfb" + bytes(60), "is a qcow2 disk image"),
        (b"KDMV" + bytes(60), "memory is in its .vmem, .vmss or .vmsn"),
        (b"vhdxfile" + bytes(60), "is a VHDX disk image"),
        (b"\x7fELF\x02", "is cut off: 5 bytes, which is less than an ELF header"),
        (b"\x7fELF\x09" + bytes(40), "an ELF header with EI_CLASS 9 and EI_DATA 0"),
        (build_elf_vmcore([], e_type=2), "begins with 7f454c460201, an ELF executable, not a core"),
        (build_elf_vmcore([], e_type=3, order="big"), "begins with 7f454c460202, an ELF executable or shared library"),
        (build_elf_vmcore([], e_type=1), "an ELF object file, not a core"),
        (build_elf_vmcore([], e_type=0xFE00), "an ELF file of type 65024, not a core"),
    ],
)
def test_foreign_file_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    assert words in message(tmp_path, raw)


@pytest.mark.parametrize("first", [True, False])
def test_a_kernel_beside_the_dump_is_named(tmp_path: Path, first: bool) -> None:
    """As who is used to crash gives them, only the wrong file of the kernel's two."""
    kernel, dump = tmp_path / "vmlinuz", tmp_path / "vmcore"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(4096))
    dump.write_bytes(KDUMP)
    with pytest.raises(UsageError, match=r"/vmlinuz is a kernel as it boots .* --vmlinux takes the vmlinux of the"):
        open_container([kernel, dump] if first else [dump, kernel])


def test_no_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no dump file"):
        open_container([])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="nowhere cannot be read: No such file"):
        open_container([tmp_path / "nowhere"])


def test_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="is a directory"):
        open_container([tmp_path])


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """root may read anything, so the refusal is made up."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "vmcore"
    path.write_bytes(ELF)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DumpError, match="vmcore cannot be read: Permission denied"):
        open_container([path])


def test_failing_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "vmcore"
    path.write_bytes(ELF)
    monkeypatch.setattr("vmcore2core.containers.dumpfile.os.pread", refuse)
    with pytest.raises(DumpError, match="vmcore cannot be read: Input/output error"):
        open_container([path])


def test_files_are_closed_after_an_error(tmp_path: Path) -> None:
    raw = bytearray(ELF)
    struct.pack_into("<H", raw, 54, 1)
    path = tmp_path / "vmcore"
    path.write_bytes(raw)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(DumpError):
            open_container([path])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_closed_container_lets_go_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    for raw in (ELF, KDUMP):
        path.write_bytes(raw)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            open_container([path]).close()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
