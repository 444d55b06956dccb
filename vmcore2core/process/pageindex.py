"""Check that mappings agree with the mapped pages: a ``struct page`` records its owner and its index there.

References: include/linux/pagemap.h: linear_page_index(); include/linux/mm.h: vma_start_anon_pgoff(); mm/rmap.c:
__folio_set_anon(), anon_vma_fork(); mm/filemap.c: __filemap_add_folio() (Linux 7.3). Until Linux 7.2, a process's own
copy of a file's page keeps the index in the file; since then, it has the mapping's anonymous index, taken from the
address that the mapping had when it got its first anonymous page.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel import fs, mm
from vmcore2core.kernel.page_structs import MAPPING_ANON, PagePlaces, PageStructs
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.vmas import Vmas
from vmcore2core.memory.pagetable import Ranges, RunKind, walk
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import counted
from vmcore2core.process.walked import Walked

SAMPLE = 1024
"""Pages to check in each 131,072 of a mapping: the first, the last, and others evenly between."""
SENTENCES_MAX = 16
OF_DEVICES = mm.VM_PFNMAP | mm.VM_IO
OTHERS = mm.VM_HUGETLB | mm.VM_MIXEDMAP | OF_DEVICES
"""Mappings whose pages are indexed differently, or belong to a driver."""
ANON_PGOFF_LOW, ANON_PGOFF_HIGH = "__vm_anon_pgoff_lo", "__vm_anon_pgoff_hi"
"""Since Linux 7.3; the second where a word has 64 bits."""


class Expected(NamedTuple):
    """What the pages of mappings should record about their place: uint64[n] or bool[n].

    Attributes:
        mapping: ``struct address_space *`` of the file, 0 for none.
        pgoff: index of the first page, of a page of the file.
        anon_pgoff: likewise, of a page of the process's own.
        anon_vma: ``struct anon_vma *`` of its own pages; 0 for none.
        of_file: whether a page of another file cannot be there.
        is_own: whether a page of its own can be there.
        never_file: whether no page of the file can be there.
        never_own: whether no page of its own can be there (is_cow_mapping()).
    """

    mapping: U64Array
    pgoff: U64Array
    anon_pgoff: U64Array
    anon_vma: U64Array
    of_file: NDArray[np.bool_]
    is_own: NDArray[np.bool_]
    never_file: NDArray[np.bool_]
    never_own: NDArray[np.bool_]


class Sample(NamedTuple):
    """Some pages of a process: address and physical address, uint64[n]; position of the mapping, int64[n]."""

    vaddr: U64Array
    paddr: U64Array
    vma: NDArray[np.int64]


class Looked(NamedTuple):
    """The result of checking a process's page tables.

    Attributes:
        sentences: about contradictions.
        walked: counts of the page tables, without mappings of hugetlbfs.
    """

    sentences: tuple[str, ...]
    walked: Walked


class PageIndex:
    """The places that the pages of a dump record.

    Args:
        kernel: the dumped kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._roots: dict[int, int] = {}

    @cached_property
    def _structs(self) -> PageStructs | None:
        try:
            found = PageStructs(self.kernel)
        except (LayoutError, MemoryFault):
            return None
        return found if found.tell_place else None

    def look(self, vmas: Vmas, memory: UserMemory) -> Looked:
        """Return counts of the page tables, and a sentence for each mapping with a page that belongs elsewhere.

        Args:
            vmas: the process's mappings.
            memory: of the process.
        """
        kept = vmas.only(np.flatnonzero(vmas.flags & np.uint64(mm.VM_HUGETLB) == 0).tolist())
        expected, starts, ends = _expected(kept), kept.start, kept.end
        page, walked = np.uint64(memory.spec.page_size), Walked(memory.spec, memory.swap)
        errors: dict[int, CorruptStructure] = {}
        for batch in walk(memory.memory, memory.spec, memory.root, Ranges(starts, ends), walked.tables):
            walked.add(batch)
            leaf = batch.kind == RunKind.LEAF
            for at, entry in self._written(kept, starts, batch.vaddr[leaf], batch.entry[leaf]):
                errors.setdefault(
                    at, kept.view(at).corrupt("vm_flags", f"without VM_WRITE, but an entry is {entry:#x}")
                )
            if self._structs is None:
                continue
            sample = _sample(batch.vaddr[leaf], batch.paddr[leaf], starts)
            places = self._structs.of(sample.paddr)
            within = ((sample.vaddr - starts[sample.vma]) // page).astype(np.uint64)
            for row in self._wrong(expected, sample, within, places):
                at = int(sample.vma[row])
                if at not in errors:
                    errors[at] = _error(kept, at, expected, int(sample.vaddr[row]), int(within[row]), places, row)
        return Looked(tuple(_sentences(errors)), walked)

    def _written(self, kept: Vmas, starts: U64Array, vaddr: U64Array, entries: U64Array) -> Iterator[tuple[int, int]]:
        """Yield the read-only mappings that have a writable page, and its entry."""
        of_vma = np.searchsorted(starts, vaddr, side="right") - 1
        writes = entries & np.uint64(self.kernel.arch.paging.pte_write) != 0
        rows = np.flatnonzero(writes & (kept.flags[of_vma] & np.uint64(mm.VM_WRITE) == 0))
        vma, first = np.unique(of_vma[rows], return_index=True)
        for at, row in zip(vma.tolist(), first.tolist(), strict=True):
            view = kept.view(at)
            owner = view.follow("vm_mm", "mm_struct") if view.has("vm_mm") else None
            if owner is not None and mm.has_no_writer(owner):
                yield at, int(entries[rows[row]])

    def _wrong(self, expected: Expected, sample: Sample, within: U64Array, places: PagePlaces) -> list[int]:
        """Return which pages of a sample have an unexpected place, ascending."""
        mapping, pgoff, anon_pgoff, anon_vma = (
            column[sample.vma] for column in (expected.mapping, expected.pgoff, expected.anon_pgoff, expected.anon_vma)
        )
        of_file, is_own, never_file, never_own = (
            column[sample.vma]
            for column in (expected.of_file, expected.is_own, expected.never_file, expected.never_own)
        )
        same = places.mapping == mapping
        elsewhere = same & ((places.index != pgoff + within) | never_file)
        wrong = places.of_file & (elsewhere | (~same & of_file))
        own = places.anonymous & is_own
        wrong |= own & (places.index != anon_pgoff + within)
        whose = places.mapping - np.uint64(MAPPING_ANON)
        wrong |= places.anonymous & never_own & (whose == anon_vma)
        for row in np.flatnonzero(own & ~wrong & (whose != anon_vma)).tolist():
            wrong[row] = not self._is_related(int(whose[row]), int(anon_vma[row]))
        return [int(row) for row in np.flatnonzero(wrong)]

    def _is_related(self, one: int, other: int) -> bool:
        """Tell whether two ``struct anon_vma`` have the same root: a page may belong to that of an ancestor process."""
        if not other or self.kernel.layout.find_member("anon_vma", "root") is None:
            return bool(other)
        return self._root(one) == self._root(other)

    def _root(self, anon_vma: int) -> int:
        if anon_vma not in self._roots:
            try:
                self._roots[anon_vma] = self.kernel.view("anon_vma", anon_vma).pointer("root")
            except MemoryFault:
                self._roots[anon_vma] = 0
        return self._roots[anon_vma]


def _sentences(errors: dict[int, CorruptStructure]) -> Iterator[str]:
    """Yield what is wrong; if there is much, only a part."""
    yield from (str(error) for error in islice(errors.values(), SENTENCES_MAX))
    if len(errors) > SENTENCES_MAX:
        yield f"pages of another place are in {counted(len(errors) - SENTENCES_MAX, 'more mapping')}"


def _sample(vaddr: U64Array, paddr: U64Array, starts: U64Array) -> Sample:
    """Choose some pages of each mapping from one batch of a walk."""
    vma = np.searchsorted(starts, vaddr, side="right") - 1
    first = np.searchsorted(vma, np.arange(len(starts)), side="left")
    count = np.diff(np.append(first, len(vma)))
    rank = np.arange(len(vma)) - first[vma]
    step = np.maximum(count // SAMPLE, 1)[vma]
    kept = (rank % step == 0) | (rank == count[vma] - 1)
    return Sample(vaddr[kept], paddr[kept], vma[kept])


def _expected(vmas: Vmas) -> Expected:
    """Return what the pages of mappings should record."""
    word, none = vmas.kernel.arch.pointer_size, np.zeros(len(vmas), np.bool_)
    pgoff = vmas.find_uint("vm_pgoff", word)
    if pgoff is None:
        no_number = np.zeros(len(vmas), np.uint64)
        return Expected(no_number, no_number, no_number, no_number, none, none, none, none)
    files, which = np.unique(vmas.file, return_inverse=True)
    views = [vmas.kernel.view("file", address) if address else None for address in files.tolist()]
    of_file, has_anon, has_ops = vmas.file != 0, vmas.has("anon_vma"), vmas.has("vm_ops")
    special = vmas.ulong("vm_ops") != 0
    low, high = vmas.find_uint(ANON_PGOFF_LOW, 4), vmas.find_uint(ANON_PGOFF_HIGH, 4)
    anonymous = (
        pgoff if low is None else np.where(of_file, low | ((0 if high is None else high) << np.uint64(32)), pgoff)
    )
    cow = vmas.flags & np.uint64(mm.VM_SHARED | mm.VM_MAYWRITE) == np.uint64(mm.VM_MAYWRITE)
    usual = vmas.flags & np.uint64(OTHERS) == 0
    regular = np.array([view is not None and fs.is_regular(view) for view in views], np.bool_)[which]
    return Expected(
        mapping=np.array([_mapping(view) for view in views], np.uint64)[which],
        pgoff=pgoff,
        anon_pgoff=anonymous,
        anon_vma=vmas.ulong("anon_vma"),
        of_file=usual & np.where(of_file, regular, has_ops & ~special),
        is_own=usual & (of_file | ~special) & has_anon,
        never_file=vmas.flags & np.uint64(mm.VM_PFNMAP) != 0,
        never_own=~cow,
    )


def _mapping(file: StructView | None) -> int:
    try:
        return int(file.pointer("f_mapping")) if file is not None and file.has("f_mapping") else 0
    except MemoryFault:
        return 0


def _error(
    vmas: Vmas, at: int, expected: Expected, address: int, within: int, places: PagePlaces, row: int
) -> CorruptStructure:
    """Return what is wrong with a mapping, shown by one of its pages."""
    view, flags, file = vmas.view(at), int(vmas.flags[at]), int(vmas.file[at])
    mapping, index = int(places.mapping[row]), int(places.index[row])
    first, has = (index - within) % (1 << 64), f"as the page at {address:#x} has it"
    own = bool(places.anonymous[row])
    if own and expected.never_own[at]:
        return view.corrupt("vm_flags", f"{flags:#x}, without a page of its own, but that at {address:#x} is one")
    if own and int(expected.anon_pgoff[at]) != first:
        name = ANON_PGOFF_LOW if file and view.has(ANON_PGOFF_LOW) else "vm_pgoff"
        return view.corrupt(name, f"{int(expected.anon_pgoff[at]):#x}, expected {first:#x} {has}")
    if own:
        found, kin = int(expected.anon_vma[at]), mapping - MAPPING_ANON
        return view.corrupt("anon_vma", f"{found:#x}, expected kin of {kin:#x} {has}")
    if mapping == int(expected.mapping[at]) and expected.never_file[at]:
        return view.corrupt("vm_flags", f"{flags:#x}, without a page of its file, but that at {address:#x} is one")
    if mapping == int(expected.mapping[at]):
        return view.corrupt("vm_pgoff", f"{int(expected.pgoff[at]):#x}, expected {first:#x} {has}")
    return view.corrupt("vm_file", f"{file:#x}, expected a file whose f_mapping is {mapping:#x} {has}")
