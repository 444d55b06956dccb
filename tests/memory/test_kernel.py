"""Many addresses are translated together to what each is translated to by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.fuzz.poke import DUMP
from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.pid import for_each_process, init_task
from vmcore2core.memory import kernel as memory_kernel
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.session import Session

PAGE = 4096


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session([DUMP]) as opened:
        yield opened


def addresses(session: Session) -> list[int]:
    """Return pages of the image, of the direct map, of stacks in vmalloc's area, and pages of nothing beside them."""
    kernel = session.kernel
    tasks = [init_task(kernel), *for_each_process(kernel)]
    known = [int(at) for task in tasks for at in (task.address, task.pointer("stack"))]
    known += [kernel.layout.symbol(name) for name in ("init_task", "_text", "linux_banner")]
    around = [at + step * PAGE for at in known for step in (-300, -5, -1, 0, 1, 2, 3, 4, 5, 600)]
    random = np.random.default_rng(7).integers(0, 1 << 64, 500, np.uint64).tolist()
    ends = [0, PAGE, 1 << 47, (1 << 64) - (1 << 47), (1 << 64) - PAGE]
    return [at % (1 << 64) & -PAGE for at in (*around, *random, *ends)]


def translated(memory: KernelMemory, address: int) -> int | None:
    try:
        return int(memory.to_phys(address))
    except MemoryFault:
        return None


def test_a_walk_finds_what_each_address_finds(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, chosen = session.kernel.memory, np.array(sorted(set(addresses(session))), np.uint64)
    expected = [translated(memory, at) for at in chosen.tolist()]
    assert 100 < sum(at is not None for at in expected) < len(expected) - 300
    for few in (0, len(chosen)):
        monkeypatch.setattr(memory_kernel, "FEW_PAGES", few)
        assert memory.are_mapped(chosen).tolist() == [at is not None for at in expected]
        raw, there = memory.read_many(chosen, 64)
        for row, at in enumerate(chosen.tolist()):
            try:
                found = memory.read(at, 64)
            except MemoryFault:
                assert not there[row]
            else:
                assert (there[row], raw[row].tobytes()) == (True, found)
