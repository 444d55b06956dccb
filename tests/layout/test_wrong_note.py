"""A dump with a wrong VMCOREINFO note, or without a page that tells the layout: other sources replace it.

The pages' numbers are those of fixtures/debian-6.1-amd64: of the symbols' addresses less phys_base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.builders.present import present_runs
from tests.e2e.guests import FIXTURES
from vmcore2core.containers import open_container
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.kernel.sched import task_pid
from vmcore2core.layout.bootstrap import Bootstrapped, bootstrap
from vmcore2core.layout.vmcoreinfo import parse_vmcoreinfo
from vmcore2core.session import Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
PAGE = 4096
UTS_NS, INIT_TASK, INIT_TASK_COMM = 0x2BFB, 0x2A1A, 0x2A1B
KALLSYMS_NAMES, KALLSYMS_OFFSETS, BTF_TYPES, BTF_STRINGS = 0x21BD, 0x232D, 0x24C1, 0x26C1

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def runs() -> list[tuple[int, bytes]]:
    with open_container([DUMP]) as container:
        return present_runs(container)


@pytest.fixture(scope="module")
def right() -> bytes:
    with open_container([DUMP]) as container:
        assert container.vmcoreinfo is not None
        return container.vmcoreinfo


@pytest.fixture
def build(tmp_path: Path, runs: list[tuple[int, bytes]]) -> Build:
    """Write the dump again with another note, and without some pages."""

    def write(text: bytes, *, without: Collection[int] = ()) -> Path:
        loads = []
        for paddr, data in runs:
            cuts = sorted(pfn * PAGE - paddr for pfn in without if paddr <= pfn * PAGE < paddr + len(data))
            for start, end in zip([0, *(cut + PAGE for cut in cuts)], [*cuts, len(data)], strict=True):
                loads.append(Load(paddr + start, data[start:end]))
        path = tmp_path / "vmcore"
        path.write_bytes(build_elf_vmcore([load for load in loads if load.data], note(b"VMCOREINFO", 0, text)))
        return path

    return write


def booted(path: Path, supplied: bytes | None = None) -> Bootstrapped:
    with open_container([path]) as container:
        return bootstrap(container, supplied=None if supplied is None else parse_vmcoreinfo(supplied))


def of_another_boot(text: bytes) -> bytes:
    text = re.sub(rb"KERNELOFFSET=\w+", b"KERNELOFFSET=3e00000", text)
    return re.sub(rb"NUMBER\(phys_base\)=-?\d+", b"NUMBER(phys_base)=16777216", text)


def not_moved(text: bytes) -> bytes:
    offset = int(re.search(rb"KERNELOFFSET=(\w+)", text)[1], 16)  # type: ignore[index]
    moved = re.sub(rb"(SYMBOL\(\w+\)=)(ffffffff\w+)", lambda m: m[1] + b"%x" % (int(m[2], 16) - offset), text)
    return re.sub(rb"KERNELOFFSET=\w+", b"KERNELOFFSET=0", moved)


def of_other_symbols(text: bytes) -> bytes:
    return re.sub(rb"(SYMBOL\(\w+\)=)(ffffffff\w+)", lambda m: m[1] + b"%x" % (int(m[2], 16) + 0x1234560), text)


def with_another_first_task(text: bytes) -> bytes:
    """What opens the kernel, and does not fit it."""
    return text + b"SYMBOL(init_task)=%x\n" % (parse_vmcoreinfo(text).symbol("init_uts_ns") or 0)


WRONG = pytest.mark.parametrize(
    "spoil",
    [
        of_another_boot,
        not_moved,
        of_other_symbols,
        with_another_first_task,
        pytest.param(lambda text: bytes(len(text)), id="zeros"),
        pytest.param(lambda text: b"\n".join(text.split(b"\n")[:3]) + b"\n", id="cut short"),
    ],
)


@WRONG
def test_a_wrong_note_is_said_and_the_text_in_memory_taken(
    build: Build, right: bytes, spoil: Callable[[bytes], bytes]
) -> None:
    found, told = booted(build(spoil(right))), booted(DUMP)
    assert found.vmcoreinfo.values == told.vmcoreinfo.values
    assert found.memory.kernel_map.linear == told.memory.kernel_map.linear
    (notice,) = found.notices
    assert re.match("VMCOREINFO text at physical 0x[0-9a-f]+ is used instead of the dump's note: ", notice)
    assert "--vmlinux" not in notice


@WRONG
def test_the_users_text_wins_over_a_wrong_note(build: Build, right: bytes, spoil: Callable[[bytes], bytes]) -> None:
    found = booted(build(spoil(right)), right)
    assert found.layout.symbol("init_task") == booted(DUMP).layout.symbol("init_task")
    assert all(notice.startswith("--vmcoreinfo is used instead of the dump's note: ") for notice in found.notices)
    assert found.notices or spoil is with_another_first_task


def test_the_users_text_of_another_kernel_is_an_error_where_the_note_fits(build: Build, right: bytes) -> None:
    other = re.sub(rb"OSRELEASE=.*", b"OSRELEASE=6.1.0-1-amd64", right)
    with pytest.raises(LayoutInvalid, match="the supplied VMCOREINFO is of another kernel"):
        booted(build(right), other)


def test_where_nothing_fits_the_notes_own_error_is_said(
    build: Build, right: bytes, runs: list[tuple[int, bytes]]
) -> None:
    texts = [paddr + at for paddr, data in runs for at in range(0, len(data), PAGE) if data[at : at + 10] == right[:10]]
    texts += [
        paddr + at for paddr, data in runs for at in range(0, len(data), PAGE) if data[at + 24 : at + 34] == right[:10]
    ]
    path = build(of_another_boot(right), without=[UTS_NS, *(at // PAGE for at in texts)])
    with pytest.raises(LayoutInvalid, match="VMCOREINFO does not fit the dump's memory: init_uts_ns cannot"):
        booted(path)


def test_without_the_page_of_the_kernels_name_its_page_table_tells_that_the_note_fits(
    build: Build, right: bytes
) -> None:
    found = booted(build(right, without=[UTS_NS]))
    assert found.utsname.release == "6.1.0-56-amd64"
    assert found.layout.symbol("init_task") == booted(DUMP).layout.symbol("init_task")
    (notice,) = found.notices
    assert "the page of init_uts_ns is not in the dump" in notice


@pytest.mark.parametrize(("pfn", "unchecked"), [(INIT_TASK, "flags, stack"), (INIT_TASK_COMM, "comm, pid, tgid, mm")])
def test_without_a_page_of_the_first_task_the_others_are_found(
    build: Build, right: bytes, pfn: int, unchecked: str
) -> None:
    def pids(path: Path) -> list[int]:
        with Session([path]) as session:
            found = sorted(task_pid(leader) for leader in session.processes.leaders())
            assert path == DUMP or any(f"its {unchecked}" in notice for notice in session.notices)
            return found

    assert pids(build(right, without=[pfn])) == pids(DUMP)


def test_a_first_task_of_which_nothing_is_in_the_dump_is_an_error(build: Build, right: bytes) -> None:
    with pytest.raises(LayoutInvalid, match=r"init_task at 0x[0-9a-f]+ cannot be read: its pages are not in the dump"):
        booted(build(right, without=range(INIT_TASK, INIT_TASK + 3)))


@pytest.mark.parametrize(
    ("pfn", "source"),
    [
        (KALLSYMS_NAMES, "kallsyms"),
        (KALLSYMS_OFFSETS, "kallsyms"),
        (BTF_TYPES, "BTF"),
        (BTF_STRINGS, "BTF"),
    ],
)
def test_a_table_with_a_page_that_is_not_in_the_dump_is_named_with_it(
    build: Build, right: bytes, pfn: int, source: str
) -> None:
    with pytest.raises(LayoutUnknown) as unknown:
        booted(build(right, without=[pfn]))
    pattern = (
        rf"{source} in the dump, of which nothing can be used: address 0x\w+ is not in the dump: physical {pfn:#x}000"
    )
    assert re.search(pattern, str(unknown.value))
