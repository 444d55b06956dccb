"""A dump that was taken while the capture kernel ran: a second kernel is in memory, where the first had reserved it.

The second is a copy of the bundled 6.1 kernel, a gigabyte further up; its VMCOREINFO says so.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.builders.present import present_runs
from tests.e2e.guests import FIXTURES
from vmcore2core.containers import open_container
from vmcore2core.errors import LayoutInvalid
from vmcore2core.layout.bootstrap import Bootstrapped, bootstrap
from vmcore2core.session import OpenOptions, Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
UP = 1 << 30
TEXT, CRASHK_RES, ELFCOREHDR_ADDR = 0x51A_D000, 0x2B3_3140, 0x2B4_84B0
"""Physical addresses in the bundled dump: of the text, and of two symbols in its kallsyms."""
CRASHED = b"CRASHTIME=1700000000\n"


class Memory:
    """Both kernels' memory, and the text of each."""

    def __init__(self) -> None:
        with open_container([DUMP]) as container:
            self.runs = [(paddr, bytearray(data)) for paddr, data in present_runs(container)]
            assert container.vmcoreinfo is not None
            self.first = container.vmcoreinfo
        self.second = re.sub(rb"(?<=NUMBER\(phys_base\)=)-?\d+", lambda m: b"%d" % (int(m[0]) + UP), self.first)
        copied = [(paddr + UP, bytearray(data)) for paddr, data in self.runs]
        self.runs += copied
        self.put(TEXT + UP, self.second + b"\0")
        self.put(ELFCOREHDR_ADDR + UP, struct.pack("<Q", UP))
        self.put(CRASHK_RES, struct.pack("<QQ", UP, 2 * UP - 1))

    def put(self, paddr: int, data: bytes) -> None:
        (run,) = (run for run in self.runs if run[0] <= paddr < run[0] + len(run[1]))
        run[1][paddr - run[0] : paddr - run[0] + len(data)] = data

    def dump(self, path: Path, text: bytes) -> Path:
        loads = [Load(paddr, bytes(data)) for paddr, data in self.runs]
        path.write_bytes(build_elf_vmcore(loads, note(b"VMCOREINFO", 0, text)))
        return path


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dumps whose notes are of the kernel that crashed, of the capture kernel, and of one that did not crash."""
    memory, folder = Memory(), tmp_path_factory.mktemp("dumps")
    notes = {"crashed": memory.first + CRASHED, "capture": memory.second, "neither": memory.first}
    return {name: memory.dump(folder / name, text) for name, text in notes.items()}


def booted(path: Path, address: int | None = None) -> Bootstrapped:
    with open_container([path]) as container:
        return bootstrap(container, supplied=address)


def test_the_kernel_that_crashed_says_where_the_other_is(dumps: dict[str, Path]) -> None:
    (said,) = booted(dumps["crashed"]).notices
    takes = f"--vmcoreinfo {TEXT + UP:#x} takes the capture kernel, which was booted then, by its VMCOREINFO text there"
    assert said == f"memory has two kernels: this is the one that crashed; {takes}"


def test_the_capture_kernel_says_where_the_one_that_crashed_is(dumps: dict[str, Path]) -> None:
    """QEMU's note is of the kernel that wrote it last."""
    (said,) = booted(dumps["capture"]).notices
    this = "this is the capture kernel, which was booted after the crash"
    takes = f"--vmcoreinfo {TEXT:#x} takes the one that crashed, by its VMCOREINFO text there"
    assert said == f"memory has two kernels: {this}; {takes}"


@pytest.mark.parametrize(("dump", "address"), [("capture", TEXT), ("crashed", TEXT + UP)])
def test_one_is_chosen_by_its_text(dumps: dict[str, Path], dump: str, address: int) -> None:
    with Session([dumps[dump]], OpenOptions(vmcoreinfo=Path(f"{address:#x}"))) as session:
        assert session.boot.vmcoreinfo_origin == f"VMCOREINFO text at physical {address:#x}"
        assert session.kernel.memory.to_phys(session.boot.layout.symbol("init_task")) // UP == address // UP


def test_an_address_without_a_text_is_an_error(dumps: dict[str, Path]) -> None:
    with pytest.raises(LayoutInvalid, match="no VMCOREINFO text is at physical 0x1000"):
        booted(dumps["crashed"], 0x1000)


def test_a_kernel_that_did_not_crash_is_not_searched_for_another(dumps: dict[str, Path]) -> None:
    assert booted(dumps["neither"]).notices == ()
