"""One dump in every variant of kdump and ELF: ``--all`` gives the same cores to the byte.

The variants are written by the tests' builders, and by makedumpfile itself, from a bundled dump.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.builders.flat import build_flattened
from tests.builders.kdump import build_kdump
from tests.builders.present import present_runs
from tests.conftest import unpack
from tests.e2e.debuggers import need
from tests.e2e.guests import FIXTURES
from vmcore2core.containers import open_container
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.session import Session, core_name

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
DIRECT, TEXT = 0xFFFF888000000000, 0xFFFFFFFF81000000

Order = Literal["little", "big"]


class Source:
    """What a dump has: runs of memory, notes, VMCOREINFO."""

    def __init__(self, dump: Path, order: Order = "little") -> None:
        with open_container([dump]) as container:
            self.runs = present_runs(container)
            self.notes = b"".join(note(n.name.encode(), n.n_type, n.desc, order) for n in container.notes)
            self.vmcoreinfo = container.vmcoreinfo or b""
        self.pages = {
            (start + at) // 4096: data[at : at + 4096] for start, data in self.runs for at in range(0, len(data), 4096)
        }


def cores(paths: list[Path], folder: Path) -> dict[str, bytes]:
    """Return the core of every process by its name, as ``--all`` writes them."""
    found = {}
    with Session(paths) as session:
        assert session.warnings == []
        for leader in session.processes.with_mm():
            output = folder / "core"
            result = session.extract(leader, output, CoreOptions(force=True))
            assert result.complete
            found[core_name(leader)] = output.read_bytes()
    return found


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(DUMP)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    every = cores([DUMP], tmp_path_factory.mktemp("expected"))
    assert len(every) >= 3
    return every


@pytest.fixture
def vmcore(tmp_path: Path) -> Path:
    """Where the dump goes: a core names the dump that it is from."""
    return tmp_path / "vmcore"


def kdump(**variant: object) -> Callable[[Source], bytes]:
    return lambda source: build_kdump(source.pages, notes=source.notes, **variant)  # type: ignore[arg-type]


def kdump_v3(source: Source) -> bytes:
    """Header_version 3 has VMCOREINFO, and no notes."""
    return build_kdump(source.pages, vmcoreinfo=source.vmcoreinfo, version=3)


def flattened(source: Source) -> bytes:
    """Pieces as makedumpfile -F writes them: the headers again at the end."""
    raw = build_kdump(source.pages, notes=source.notes, codec="lzo")
    step = 1 << 20
    pieces = [(at, raw[at : at + step]) for at in range(0, len(raw), step)]
    return build_flattened([(0, bytes(8192)), *reversed(pieces), (0, raw[:8192])])


def proc_vmcore(source: Source) -> bytes:
    """The kernel's text comes twice, with virtual addresses (fs/proc/vmcore.c)."""
    start, data = next(run for run in source.runs if len(run[1]) > 1 << 20)
    text = Load(start, data[: 1 << 20], vaddr=TEXT)
    return build_elf_vmcore([text, *(Load(at, part, vaddr=DIRECT + at) for at, part in source.runs)], source.notes)


def paging(source: Source) -> bytes:
    """QEMU's paging=on: a segment for each mapping, in the order of virtual addresses, some of the same memory."""
    step = 64 << 10
    loads = [
        Load(start + at, data[at : at + step + 8192], vaddr=DIRECT + start + at)
        for start, data in source.runs
        for at in range(0, len(data), step)
    ]
    random.Random(1).shuffle(loads)
    return build_elf_vmcore(loads, source.notes)


def segment_a_page(source: Source) -> bytes:
    """More segments than e_phnum has room for: the number is in section header 0."""
    loads = [Load(pfn * 4096, page) for pfn, page in source.pages.items()]
    loads += [Load((1 << 40) + number * 8192, b"", memsz=4096) for number in range(66000 - len(loads))]
    return build_elf_vmcore(loads, source.notes, xnum=True)


def odd_notes(source: Source) -> bytes:
    """Padding of zeros between notes, and data that is not aligned."""
    return build_elf_vmcore([Load(*run) for run in source.runs], bytes(20) + source.notes + bytes(36), pad=3)


VARIANTS: dict[str, Callable[[Source], bytes]] = {
    **{f"kdump-{codec}": kdump(codec=codec) for codec in ("raw", "zlib", "lzo", "snappy", "zstd")},
    **{f"kdump-v{version}": kdump(version=version, codec="raw") for version in (4, 5)},
    "kdump-32-packed": kdump(abi="32-packed", main_bits=32, codec="raw"),
    "kdump-32-padded": kdump(abi="32-padded", main_bits=32, codec="raw"),
    "kdump-64k-holes": kdump(max_mapnr=1 << 22, codec="raw"),
    "flattened": flattened,
    "proc-vmcore": proc_vmcore,
    "paging": paging,
    "70000-segments": segment_a_page,
    "odd-notes": odd_notes,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_same_cores(
    tmp_path: Path, vmcore: Path, source: Source, expected: dict[str, bytes], variant: str
) -> None:
    vmcore.write_bytes(VARIANTS[variant](source))
    assert cores([vmcore], tmp_path) == expected
    vmcore.unlink()


def test_a_pipe_gives_the_same_cores(
    tmp_path: Path, vmcore: Path, source: Source, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    os.mkfifo(vmcore)
    sender = threading.Thread(target=vmcore.write_bytes, args=(flattened(source),))
    sender.start()
    assert cores([vmcore], tmp_path) == expected
    sender.join()
    shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_headers_without_notes_give_the_same_core_of_a_process_that_sleeps(
    tmp_path: Path, vmcore: Path, source: Source, expected: dict[str, bytes], version: int
) -> None:
    """Up to version 2 there is no VMCOREINFO either: it is found in memory."""
    vmcore.write_bytes(kdump_v3(source) if version == 3 else build_kdump(source.pages, version=version, codec="raw"))
    with Session([vmcore]) as session:
        session.extract(session.processes.find(1), tmp_path / "core")
    assert (tmp_path / "core").read_bytes() == expected["core.init.1"]


MAKEDUMPFILE = {
    "zlib": ["-c"],
    "lzo": ["-l"],
    "plain": [],
    "elf": ["-E"],
    "flattened": ["-F", "-c"],
    "split": ["--split", "-l"],
}


@pytest.mark.parametrize("options", MAKEDUMPFILE)
def test_makedumpfiles_own_files_give_the_same_cores(
    tmp_path: Path, vmcore: Path, source: Source, expected: dict[str, bytes], options: str
) -> None:
    original = tmp_path / "original"
    original.write_bytes(build_elf_vmcore([Load(*run) for run in source.runs], source.notes))
    targets = [vmcore, tmp_path / "second"] if options == "split" else [vmcore]
    command = [need("makedumpfile"), *MAKEDUMPFILE[options], "-d", "0"]
    command += ["--splitblock-size", "16"] if options == "split" else []
    if options == "flattened":
        with vmcore.open("wb") as out:
            subprocess.run([*command, original], check=True, stdout=out, stderr=subprocess.PIPE)
    else:
        subprocess.run([*command, original, *targets], check=True, capture_output=True)
    original.unlink()
    assert all(target.stat().st_size > 1 << 20 for target in targets)
    assert cores(targets[::-1], tmp_path) == expected


@pytest.mark.corpus
@pytest.mark.parametrize(("machine", "e_machine"), [("s390x", "s390x"), ("riscv64", "riscv64")])
def test_other_machines_give_the_same_cores_from_kdump(
    tmp_path: Path, corpus: Path, machine: str, e_machine: str
) -> None:
    """s390x's is big-endian, from its headers to its notes."""
    order: Order = "big" if machine == "s390x" else "little"
    dump = unpack(corpus / f"debian-7.2-{machine}" / "vmcore.elf.zst", tmp_path / "vmcore")
    (tmp_path / "before").mkdir()
    before = cores([dump], tmp_path / "before")
    source = Source(dump, order)
    dump.write_bytes(build_kdump(source.pages, notes=source.notes, order=order, machine=e_machine, codec="zstd"))
    with open_container([dump]) as container:
        assert (container.byte_order, container.e_machine is not None) == (order, True)
    assert cores([dump], tmp_path) == before
