"""A bundled guest as a saved QEMU machine: the same core; memory that lies elsewhere than the machine's type says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.migration import build_mapped, build_stream
from tests.builders.present import present_runs
from tests.e2e.guests import FIXTURES
from vmcore2core.containers import open_container
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.kernel import sched
from vmcore2core.session import OpenOptions, Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
RAM = b"pc.ram"
SIZE, LOW = 128 << 20, 96 << 20
PID = 86

Pages = dict[int, bytes]


@pytest.fixture(scope="module")
def pages() -> Pages:
    """Page number -> content, of what the guest's dump has."""
    with open_container([DUMP]) as container:
        runs = present_runs(container)
    return {(start + at) // 4096: data[at : at + 4096] for start, data in runs for at in range(0, len(data), 4096)}


def stream(pages: Pages, size: int = SIZE, above: int = 0) -> bytes:
    """Return a stream with ``above`` bytes in front of the memory from LOW on, as if that were elsewhere."""
    shift = above // 4096
    sent = [(RAM, (n + (shift if n >= LOW // 4096 else 0)) * 4096, page) for n, page in pages.items()]
    return build_stream({RAM: size}, [[record for record in sent if record[1] < size]])


def core(path: Path, memory_map: str | None = None) -> tuple[bytes, list[str]]:
    """Return the core of a process, and the notices."""
    with Session([path], OpenOptions(memory_map=memory_map)) as session:
        leader = next(task for task in session.processes.with_mm() if sched.task_tgid(task) == PID)
        output = path.with_name("core")
        assert session.extract(leader, output, CoreOptions(force=True)).complete
        assert session.warnings == []
        return output.read_bytes(), session.notices


@pytest.fixture
def vmcore(tmp_path: Path) -> Path:
    """Where the dump goes: a core names the dump that it is from."""
    return tmp_path / "vmcore"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    link = tmp_path_factory.mktemp("dump") / "vmcore"
    link.symlink_to(DUMP)
    return core(link)[0]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_saved_machine_gives_the_same_core(vmcore: Path, pages: Pages, expected: bytes, mapped: bool) -> None:
    vmcore.write_bytes(build_mapped({RAM: pages}, {RAM: SIZE}) if mapped else stream(pages))
    assert core(vmcore) == (expected, [])


def test_map_says_where_memory_is(vmcore: Path, pages: Pages, expected: bytes) -> None:
    vmcore.write_bytes(stream(pages, SIZE + 4096, 4096))
    assert core(vmcore, f"0:{LOW},{LOW}:{SIZE - LOW}@{LOW + 4096}") == (expected, [])


def test_memory_that_the_kernel_has_and_the_machine_not_is_said(vmcore: Path, pages: Pages) -> None:
    vmcore.write_bytes(stream(pages, SIZE - (2 << 20)))
    with Session([vmcore]) as session:
        said = "the kernel has memory at 0x7e00000-0x7fdffff, where the machine's type puts none: see --map"
        assert said in session.notices
    with Session([vmcore], OpenOptions(memory_map="0:126M")) as session:
        assert said.replace("the machine's type", "--map") in session.notices
