"""Words of a real guest's structures that are another structure's, and valid there: what else tells is asked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.fuzz.overlay import poked
from tests.fuzz.poke import DUMP
from tests.process.test_torn import DYNAMIC, captured, owner_of, with_member, with_words
from vmcore2core.kernel import mm
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pagetable import Ranges, walk
from vmcore2core.session import Session


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session([DUMP]) as opened:
        yield opened


def vmas_of(session: Session, number: int = DYNAMIC) -> list[StructView]:
    """Return the mappings of a process."""
    return list(mm.for_each_vma(owner_of(session.processes.find(number))))


def entries(session: Session, vma: StructView, number: int = DYNAMIC) -> list[tuple[int, int]]:
    """Return address and last-level entry of each page that is mapped; the entry's own place is not told."""
    kernel, owner = session.kernel, owner_of(session.processes.find(number))
    wanted = Ranges(np.array([mm.vma_start(vma)], np.uint64), np.array([mm.vma_end(vma)], np.uint64))
    root = kernel.memory.to_phys(owner.pointer("pgd"))
    batches = walk(kernel.memory.physical, kernel.user_page_table(owner), root, wanted)
    return [pair for batch in batches for pair in zip(batch.vaddr.tolist(), batch.entry.tolist(), strict=True)]


def swapped_entries(session: Session, first: int, second: int) -> Session:
    """Return the dump with two entries of last-level tables exchanged, wherever they are."""
    pokes = {}
    for base, pages in session.kernel.memory.physical.scan():
        words = pages.reshape(-1).view(np.uint64)
        for old, new in ((first, second), (second, first)):
            for at in np.flatnonzero(words == old).tolist():
                pokes[int(base) + 8 * at] = new.to_bytes(8, "little")
    assert len(pokes) == 2
    return poked(session, pokes)


def test_an_anonymous_page_of_another_place_is_said(session: Session) -> None:
    vma = next(v for v in vmas_of(session) if not v.pointer("vm_file") and len(entries(session, v)) > 8)
    (_, first), *_, (_, last) = (pair for pair in entries(session, vma) if pair[1] & 0x42 == 0x42)
    changed = captured(swapped_entries(session, first, last), DYNAMIC)
    assert [w for w in changed.warnings if f"vm_area_struct.vm_pgoff at {vma.addr_of('vm_pgoff'):#x}" in w]


def test_another_file_s_pages_are_said(session: Session) -> None:
    files = [v for v in vmas_of(session) if v.pointer("vm_file") and entries(session, v)]
    said = 0
    for vma, other in zip(files, files[6:] + files[:6], strict=True):
        if vma.pointer("vm_file") != other.pointer("vm_file"):
            changed = captured(with_member(session, vma, "vm_file", other.pointer("vm_file")), DYNAMIC)
            said += any(f"vm_area_struct.vm_file at {vma.addr_of('vm_file'):#x}" in w for w in changed.warnings)
    assert said >= 10


def test_pages_whose_structures_are_elsewhere_are_said(session: Session) -> None:
    """vmemmap_base, off by the 64 structures that are in a page."""
    base = session.kernel.layout.symbol("vmemmap_base")
    changed = captured(with_words(session, {base: session.kernel.read_uint(base, 8) + 4096}), DYNAMIC)
    assert len([w for w in changed.warnings if "as the page at" in w]) >= 10


def test_cached_pages_of_another_place_are_not_taken(session: Session) -> None:
    """Two slots of a file's page cache that nobody has mapped."""
    kernel, slots = session.kernel, session.kernel.layout.member("xa_node", "slots").offset
    for vma in vmas_of(session):
        file = vma.follow("vm_file", "file")
        if file is None or len(entries(session, vma)) > (mm.vma_end(vma) - mm.vma_start(vma) >> 12) - 2:
            continue
        head = kernel.view("address_space", file.pointer("f_mapping")).embedded("i_pages", "xarray").pointer("xa_head")
        pages = {at: kernel.read_uint(at, 8) for at in range(head - 2 + slots, head - 2 + slots + 512, 8)}
        (one, first), (two, second), *_ = (pair for pair in pages.items() if pair[1])
        changed = captured(with_words(session, {one: second, two: first}), DYNAMIC)
        if any("address_space.i_pages at" in w and "is page" in w for w in changed.warnings):
            return
    pytest.fail("no file's page cache is looked at")
