"""All mappings of a process read at once equal those read one by one, in a real guest with any word replaced.

Tests process/filelinks.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from tests.fuzz.poke import DUMP
from tests.process.test_torn import DYNAMIC, owner_of, with_member
from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel import mm
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.vmas import Vmas
from vmcore2core.process.filelinks import FileLinks
from vmcore2core.session import Session

MEMBERS = (
    "vm_start",
    "vm_end",
    "vm_flags",
    "vm_mm",
    "vm_file",
    "vm_pgoff",
    "anon_vma",
    "vm_page_prot",
    "vm_ops",
    "vm_private_data",
    "shared.rb_subtree_last",
)
CHANGES = 60


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session([DUMP]) as opened:
        yield opened


def mm_of(session: Session) -> StructView:
    return owner_of(session.processes.find(DYNAMIC))


def one_by_one(owner: StructView) -> tuple[list[int], list[str]]:
    """Return the mappings, and what is said, as ``mm.for_each_vma`` has them."""
    problems: list[CorruptStructure] = []
    found: list[int] = []
    try:
        found.extend(int(vma.address) for vma in mm.for_each_vma(owner, problems))
    except (CorruptStructure, MemoryFault) as error:
        return found, [*map(str, problems), str(error)]
    return found, list(map(str, problems))


def at_once(owner: StructView) -> tuple[list[int], list[str]]:
    problems: list[CorruptStructure] = []
    found: list[int] = []
    vmas = Vmas(owner)
    try:
        found.extend(int(vmas.addresses[row]) for row in vmas.checked(problems))
    except (CorruptStructure, MemoryFault) as error:
        return found, [*map(str, problems), str(error)]
    return found, list(map(str, problems))


def changes(session: Session, seed: int) -> Iterator[tuple[str, Session]]:
    """Yield the dump with a member of a mapping changed: to another mapping's, by a bit, or to anything."""
    vmas, chance = list(mm.for_each_vma(mm_of(session))), random.Random(seed)
    for _ in range(CHANGES):
        view, other, name = chance.choice(vmas), chance.choice(vmas), chance.choice(MEMBERS)
        value = chance.choice(
            [other.ulong(name), view.ulong(name) ^ 1 << chance.randrange(64), 0, chance.getrandbits(64)]
        )
        yield f"{name} of {view} is {value:#x}", with_member(session, view, name, value)


def test_all_at_once_say_what_each_says(session: Session) -> None:
    assert at_once(mm_of(session)) == one_by_one(mm_of(session))
    said = 0
    for what, changed in changes(session, 1):
        expected = one_by_one(mm_of(changed))
        assert at_once(mm_of(changed)) == expected, what
        said += bool(expected[1])
    assert said > CHANGES // 3


def test_what_is_known_to_be_linked_is(session: Session) -> None:
    linked_ones = 0
    for what, changed in changes(session, 2):
        links, vmas = FileLinks(changed.kernel), Vmas(mm_of(changed))
        linked = links.linked(vmas)
        for row in np.flatnonzero(linked).tolist():
            file = vmas.view(row).follow("vm_file", "file")
            assert file is not None
            assert links.problems(vmas.view(row), file) == links.problems(vmas.view(row), file, linked=True), what
        linked_ones += int(linked.sum())
    assert linked_ones > 10 * CHANGES  # of 16 mappings of files


def test_names_are_looked_for_where_there_may_be_one(session: Session) -> None:
    vmas = Vmas(mm_of(session))
    named = [bool(mm.vma_name(vmas.owner, vmas.view(row))) for row in range(len(vmas))]
    assert not [row for row, may in enumerate(vmas.may_be_named()) if named[row] and not may]
    assert any(named)
