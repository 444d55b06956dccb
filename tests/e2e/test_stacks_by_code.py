"""Stacks of real processes without call frame information, against those with it, and the table of docs/stacks.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vmcore2core
from tests.e2e.debuggers import in_order
from tests.e2e.guests import FIXTURES, bundled
from vmcore2core.arch import all_archs
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.unwind.image import Image
from vmcore2core.unwind.stacks import StackRow

TABLE = Path(vmcore2core.__file__).parent / "docs" / "stacks.md"
GUESTS = {
    "x86_64": "debian-7.2-amd64",
    "aarch64": "debian-7.2-arm64",
    "riscv64": "debian-7.2-riscv64",
    "ppc64le": "debian-7.2-ppc64el",
    "loongarch64": "debian-7.2-loong64",
    "s390x": "debian-7.2-s390x",
}
NOT_MEASURED = ("i386", "mips64")


def ways(spec: UnwindSpec) -> str:
    """Return how frames are found then, from what the machine's specification says."""
    found = ["instructions"] if spec.frames_by_code is not None else []
    if spec.back_chain is not None:
        found.append("back chain")
    elif spec.frame_pointer is not None:
        found.append("frame pointer")
    return ", ".join(found) or "none"


def spec_of(machine: str) -> UnwindSpec:
    arch = next(arch for arch in all_archs() if arch.name == machine)
    spec = arch.unwind.spec(CoreMachine(arch.e_machine, 32 if machine == "i386" else 64, ()))
    assert spec is not None
    return spec


def stacks(dump: Path, layout: Path | None) -> dict[int, StackRow]:
    """Return the stack of each thread of the two test programs."""
    with vmcore2core.open_dump(dump, vmcoreinfo=layout) as opened:
        programs = [one for one in opened.processes() if one.comm in ("lab-dynamic", "lab-static")]
        return {row.tid: row for one in programs for row in one.stacks()}


def is_libc(image: Image) -> bool:
    original = image.source.original
    return original is not None and b"libc" in original.image.path


@pytest.mark.parametrize("machine", GUESTS)
def test_stacks_without_call_frame_information_are_as_the_table_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    """What calls exit() has no way to a return; without a symbol and without frame pointers, it tells no caller."""
    dump, layout = bundled(GUESTS[machine], tmp_path), FIXTURES / GUESTS[machine] / "layout.txt"
    given = layout if layout.exists() else None
    told = stacks(dump, given)
    assert len(told) >= 10
    wanted = sum(len(row.frames) for row in told.values())
    fde = Image.fde
    counts = []
    missing: list[Callable[[Image], bool]] = [is_libc, lambda _: True]
    for lacks in missing:
        monkeypatch.setattr(Image, "fde", lambda image, pc, lacks=lacks: None if lacks(image) else fde(image, pc))
        ours = stacks(dump, given)
        for tid, row in told.items():
            # A function that keeps no frame pointer leaves its caller's, so frame pointers may pass over a frame.
            assert in_order([hex(f.address) for f in ours[tid].frames], [hex(f.address) for f in row.frames])
        counts.append(f"{sum(len(row.frames) for row in ours.values())} of {wanted}")
    line = f"| {machine} | {ways(spec_of(machine))} | {' | '.join(counts)} |"
    assert line in TABLE.read_text().splitlines(), line


@pytest.mark.parametrize("machine", NOT_MEASURED)
def test_other_machines_ways_are_as_the_table_says(machine: str) -> None:
    assert f"| {machine} | {ways(spec_of(machine))} | |" in TABLE.read_text(), ways(spec_of(machine))
