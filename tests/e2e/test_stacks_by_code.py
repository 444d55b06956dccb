"""Stacks of real processes by their functions' instructions, against those by their call frame information."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmcore2core
from tests.e2e.guests import bundled
from vmcore2core.unwind.frames import Found
from vmcore2core.unwind.image import Image
from vmcore2core.unwind.stacks import StackRow


def stacks(dump: Path) -> dict[int, StackRow]:
    """Return the stack of each thread of the two test programs."""
    with vmcore2core.open_dump(dump) as opened:
        programs = [one for one in opened.processes() if one.comm in ("lab-dynamic", "lab-static")]
        return {row.tid: row for one in programs for row in one.stacks()}


@pytest.mark.parametrize(("guest", "to_main"), [("debian-7.2-arm64", 0), ("debian-7.2-riscv64", 1)])
@pytest.mark.parametrize("without", ["libc", "all"])
def test_stacks_are_the_same_without_call_frame_information(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: str, to_main: int, without: str
) -> None:
    """What calls exit() has no way to a return: without a symbol, and without frame pointers, it tells no caller."""
    dump = bundled(guest, tmp_path)
    told = stacks(dump)
    fde = Image.fde

    def none(image: Image, pc: int) -> object:
        original = image.source.original
        libc = original is not None and b"libc" in original.image.path
        return None if libc or without == "all" else fde(image, pc)

    monkeypatch.setattr(Image, "fde", none)
    ours = stacks(dump)
    assert len(told) == 12
    short = 0
    for tid, row in told.items():
        found, wanted = ([frame.address for frame in one.frames] for one in (ours[tid], row))
        assert found == wanted[: len(found)]
        if found != wanted:
            assert ours[tid].frames[-2].function == "main"
            short += 1
    assert short == to_main
    means = {frame.found_by for row in ours.values() for frame in row.frames}
    assert Found.CODE.value in means
    assert (Found.CFI.value in means) == (without == "libc")
