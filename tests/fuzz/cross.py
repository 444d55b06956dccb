"""Words of one kind exchanged between kernel structures: each is valid, and belongs elsewhere.

``python -m tests.fuzz.cross --count 500`` takes one word a variant, of those that a conversion of the bundled guest
reads, and gives it the value that another structure of the dump has in such a word; in every second variant the other
one gets its value in return. What comes of it, by type and member: "marked" (the core says that it is incomplete),
"same" (the core is what it was), "error" (there is none), "allowed" (another core, and ``ALLOWED`` says why nothing in
memory contradicts it), "SILENT" (another core, and nobody is told).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.conftest import unpack
from tests.fuzz.overlay import poked
from tests.fuzz.poke import core_digest, recorded
from vmcore2core.arch.spec import EntryKind
from vmcore2core.errors import Vmcore2coreError
from vmcore2core.kernel import mm, sched
from vmcore2core.kernel.maple_tree import MapleTree, MapleType, xa_is_node
from vmcore2core.kernel.struct import StructView
from vmcore2core.session import Session

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
GUESTS = {"amd64": "debian-6.1-amd64", "arm64": "debian-7.2-arm64"}
WORD = 8

KINDS: dict[str, tuple[str, ...]] = {
    "task": ("task_struct.group_leader", "task_struct.real_parent"),
    "kernel stack": ("task_struct.stack",),
    "signal": ("task_struct.signal",),
    "cred": ("task_struct.real_cred",),
    "user": ("cred.user",),
    "pid": ("task_struct.thread_pid",),
    "process group": ("signal_struct.pids",),
    "fs": ("task_struct.fs",),
    "mm": ("task_struct.mm", "task_struct.active_mm", "vm_area_struct.vm_mm"),
    "pgd": ("mm_struct.pgd",),
    "map_count": ("mm_struct.map_count",),
    "brk": ("mm_struct.start_brk", "mm_struct.brk"),
    "start_stack": ("mm_struct.start_stack",),
    "tree root": ("maple_tree.ma_root",),
    "VMA": ("maple_node.slot of a VMA",),
    "maple node": ("maple_node.slot of a node",),
    "pivot": ("maple_node.pivot",),
    "vm_start": ("vm_area_struct.vm_start",),
    "vm_end": ("vm_area_struct.vm_end",),
    "vm_flags": ("vm_area_struct.vm_flags",),
    "vm_pgoff": ("vm_area_struct.vm_pgoff",),
    "anon_vma": ("vm_area_struct.anon_vma",),
    "vm_ops": ("vm_area_struct.vm_ops",),
    "vm_private_data": ("vm_area_struct.vm_private_data",),
    "file": ("vm_area_struct.vm_file",),
    "mapping": ("file.f_mapping",),
    "inode": ("file.f_inode", "address_space.host"),
    "super block": ("inode.i_sb",),
    "size": ("inode.i_size",),
    "a_ops": ("address_space.a_ops",),
    "dentry": ("path.dentry", "dentry.d_parent", "mount.mnt_mountpoint", "fs_struct.root.dentry"),
    "vfsmount": ("path.mnt", "fs_struct.root.mnt"),
    "mount": ("mount.mnt_parent",),
    "name": ("qstr.name", "qstr.hash_len"),
    "xa_head": ("xarray.xa_head", "mte_pages.xa_head"),
    "page cache": ("xa_node.slots of a page",),
    "xa_node": ("xa_node.slots of a node",),
    **{level: (f"page table {level}",) for level in ("pgd", "p4d", "pud", "pmd", "pte")},
    "vmemmap": ("vmemmap_base",),
}
"""Words that have the same type, and mean another thing elsewhere."""
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}

ALLOWED: dict[str, str] = {
    "fs_struct.root.dentry": "chroot(2): a process may have any directory as its root",
    "fs_struct.root.mnt": "likewise, of any mount of the file system",
    "inode.i_size": "a file may have any size; of pages that are not cached, nothing else tells whether it has them",
    "mte_pages.xa_head": "two arrays have this name, and either may be in use",
    "vm_area_struct.vm_private_data": "which special mapping it is, nothing else tells: mremap(2) moves them",
    "vm_area_struct.vm_flags": "madvise(2): of any mapping, MADV_DONTDUMP may have been asked",
}
"""Words whose change into another's value contradicts nothing else in memory, and why."""
CHECKED_FLAGS = mm.VM_ACCESS_FLAGS | 0x100 | mm.NOT_ANONYMOUS
"""Of vm_flags, what something else tells; VM_GROWSDOWN is 0x100."""


@dataclass(frozen=True, slots=True)
class Place:
    """A word of a kernel structure.

    Attributes:
        name: "task_struct.stack".
        paddr: physical address, a multiple of 8.
        value: what is there.
    """

    name: str
    paddr: int
    value: int


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        counts: by member, variants by what they ended in.
        silent: a sentence for each that is not allowed.
        failures: errors of other kinds than a ``Vmcore2coreError``.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def total(self) -> Counter[str]:
        """All members together."""
        return sum(self.counts.values(), Counter())


def open_guest(name: str, folder: Path) -> Session:
    """Open a bundled dump, unpacked into a folder where it is packed."""
    path = FIXTURES / GUESTS[name] / "vmcore"
    return Session([path if path.exists() else unpack(path.with_suffix(".zst"), folder / "vmcore")])


class Dump:
    """The words of a dump that can be exchanged.

    Attributes:
        victims: PIDs of the processes that are converted.
        places: by the PID of who reads them.
        values: by kind, what any process has.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.victims = tuple(sched.task_pid(leader) for leader in session.processes.with_mm())
        self.places: dict[int, list[Place]] = {}
        self.digests: dict[int, str] = {}
        for number in self.victims:
            fresh = poked(session, {})
            with recorded(fresh) as words:
                self.digests[number], complete = core_digest(fresh, number)
            assert complete, "a dump that is whole to begin with"
            roots = self._named(number)
            named = {
                paddr: roots.get(paddr) or next((n for n in names if n in KIND_OF), None)
                for paddr, names in words.items()
            }
            more = dict(self._of_indices(number))
            found = {paddr: name for paddr, name in {**named, **more}.items() if name is not None}
            self.places[number] = [Place(name, paddr, self._word(paddr)) for paddr, name in sorted(found.items())]
        self.values: dict[str, list[Place]] = {}
        for place in {place for places in self.places.values() for place in places if place.value}:
            self.values.setdefault(KIND_OF[place.name], []).append(place)
        for places in self.values.values():
            places.sort(key=lambda place: place.paddr)

    def _named(self, number: int) -> dict[int, str]:
        """Return words whose type does not tell what they are: of a root directory, of what keeps memory tags."""
        fs = self.session.processes.find(number).follow("fs", "fs_struct")
        assert fs is not None
        root, to_phys = fs.embedded("root", "path"), self.session.kernel.memory.to_phys
        found = {int(to_phys(root.addr_of(name))): f"fs_struct.root.{name}" for name in ("dentry", "mnt")}
        layout = self.session.kernel.layout
        offset = layout.member("xarray", "xa_head").offset
        return found | {int(to_phys(at + offset)): "mte_pages.xa_head" for at in layout.find_symbols("mte_pages")}

    def _word(self, paddr: int) -> int:
        return int.from_bytes(self.session.kernel.memory.physical.read(paddr, WORD), "little")

    def _of_indices(self, number: int) -> Iterator[tuple[int, str]]:
        """Yield physical address and name of the words of trees and tables, which are read in one go."""
        kernel = self.session.kernel
        owner = self.session.processes.mm_of(self.session.processes.find(number))
        yield from self._of_maple(MapleTree(owner.embedded("mm_mt", "maple_tree")))
        files = (vma.follow("vm_file", "file") for vma in mm.for_each_vma(owner))
        mappings = {file.pointer("f_mapping") for file in files if file is not None}
        for mapping in mappings:
            yield from self._of_xarray(kernel.view("address_space", mapping).embedded("i_pages", "xarray"))
        yield from self._of_tables(owner)
        base = kernel.layout.find_symbol("vmemmap_base")
        if base is not None:
            yield int(kernel.memory.to_phys(base)), "vmemmap_base"

    def _of_maple(self, tree: MapleTree) -> Iterator[tuple[int, str]]:
        to_phys, nodes = self.session.kernel.memory.to_phys, [int(tree.tree.pointer("ma_root"))]
        for enode in nodes:
            if not xa_is_node(enode):
                continue
            node, kind = enode & ~255, MapleType(enode >> 3 & 15)
            form = tree.forms[kind]
            for i, slot in enumerate(tree._words(node + form.slot, form.nr_slots)):
                if slot > 4096 and i < form.nr_slots - 1:
                    leaf = kind == MapleType.LEAF_64
                    name = "maple_node.slot of a VMA" if leaf else "maple_node.slot of a node"
                    yield int(to_phys(node + form.slot + WORD * i)), name
                    nodes += [] if leaf else [slot]
            for i, pivot in enumerate(tree._words(node + form.pivot, form.nr_slots - 1)):
                if pivot:
                    yield int(to_phys(node + form.pivot + WORD * i)), "maple_node.pivot"

    def _of_xarray(self, xarray: StructView) -> Iterator[tuple[int, str]]:
        kernel, entries = self.session.kernel, [int(xarray.pointer("xa_head"))]
        slots = kernel.layout.member("xa_node", "slots")
        for entry in entries:
            if entry & 3 != 2 or entry <= 4096:
                continue
            at = entry - 2 + slots.offset
            for i in range((slots.size or 512) // WORD):
                slot = kernel.uint(at + WORD * i, WORD)
                if slot > 4096 and not slot & 1:
                    entries += [slot] if slot & 2 else []
                    name = "xa_node.slots of a node" if slot & 2 else "xa_node.slots of a page"
                    yield int(kernel.memory.to_phys(at + WORD * i)), name

    def _of_tables(self, owner: StructView) -> Iterator[tuple[int, str]]:
        kernel, spec = self.session.kernel, self.session.kernel.user_page_table(owner)
        ranges = [(mm.vma_start(vma), mm.vma_end(vma)) for vma in mm.for_each_vma(owner)]
        tables = [(int(kernel.memory.to_phys(owner.pointer("pgd"))), 0)]
        for index, level in enumerate(spec.levels):
            below = []
            for table, base in tables:
                entries = np.frombuffer(kernel.memory.physical.read(table, WORD << level.bits), spec.entry_dtype)
                kinds, paddrs = spec.decode(entries.astype(np.uint64), index)
                for i in np.flatnonzero(entries).tolist():
                    first = base + (i << level.shift)
                    if any(start < first + (1 << level.shift) and first < end for start, end in ranges):
                        yield table + WORD * i, f"page table {level.name}"
                        below += [(int(paddrs[i]), first)] if kinds[i] == EntryKind.TABLE else []
            tables = below


def exchanged(dump: Dump, rng: random.Random, only: str) -> tuple[Place, Mapping[int, int], str] | None:
    """Choose a word and return it, physical address to what is to be there, and a sentence."""
    number = rng.choice(dump.victims)
    by_name: dict[str, list[Place]] = {}
    for place in dump.places[number]:
        if only in place.name:
            by_name.setdefault(place.name, []).append(place)
    if not by_name:
        return None
    name = rng.choice(sorted(by_name))
    place = rng.choice(by_name[name])
    if name == "vmemmap_base":
        value = place.value + rng.choice((-4096, -64, 64, 128, 4096, 1 << 20))
        return place, {place.paddr: value}, f"{number}: {name}: {place.value:#x} -> {value:#x}"
    others = [other for other in dump.values.get(KIND_OF[name], ()) if other.value != place.value]
    if not others:
        return None
    other = rng.choice(others)
    both = rng.random() < 0.5
    pokes = {place.paddr: other.value} | ({other.paddr: place.value} if both else {})
    arrow = "<->" if both else "<-"
    said = f"{number}: {name} at {place.paddr:#x}: {place.value:#x} {arrow} {other.value:#x} of {other.paddr:#x}"
    return place, pokes, said


def result_of(dump: Dump, pokes: Mapping[int, int]) -> str:
    """Convert every process that reads a changed word, and return the worst that came of one."""
    changed = poked(dump.session, {paddr: value.to_bytes(WORD, "little") for paddr, value in pokes.items()})
    readers = [n for n in dump.victims if any(place.paddr in pokes for place in dump.places[n])]
    results = {_of_one(dump, changed, number) for number in readers}
    return next(result for result in ("SILENT", "error", "marked", "same") if result in results)


def _of_one(dump: Dump, changed: Session, number: int) -> str:
    try:
        found, complete = core_digest(changed, number)
    except Vmcore2coreError:
        return "error"
    return "marked" if not complete else "same" if found == dump.digests[number] else "SILENT"


def is_allowed(place: Place, value: int) -> bool:
    """Tell whether nothing in memory contradicts that a word is ``value``."""
    if place.name == "vm_area_struct.vm_flags":
        return not (place.value ^ value) & CHECKED_FLAGS
    return place.name in ALLOWED


def run(dump: Dump, count: int, seed: int, only: str = "") -> Outcome:
    """Exchange ``count`` words, one after the other."""
    rng, outcome, tried = random.Random(seed), Outcome(), 0
    while tried < count:
        choice = exchanged(dump, rng, only)
        if choice is None:
            continue
        tried += 1
        place, pokes, said = choice
        try:
            result = result_of(dump, pokes)
        except Vmcore2coreError:
            result = "error"
        except Exception as error:
            result = "FAILURE"
            outcome.failures.append(f"{said}: {error!r}")
        if result == "SILENT" and is_allowed(place, pokes[place.paddr]):
            result = "allowed"
        if result == "SILENT":
            outcome.silent.append(said)
        outcome.counts.setdefault(place.name, Counter())[result] += 1
    return outcome


def table(outcome: Outcome) -> Iterator[str]:
    """Yield lines: a member each, and the sum."""
    columns = ("marked", "same", "error", "allowed", "SILENT", "FAILURE")
    rows: Iterable[tuple[str, Counter[str]]] = [*sorted(outcome.counts.items()), ("all", outcome.total)]
    yield f"{'':32}" + "".join(f"{column:>8}" for column in columns)
    for name, counts in rows:
        yield f"{name:32}" + "".join(f"{counts[column] or '':>8}" for column in columns)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.cross", description=__doc__)
    parser.add_argument("--guest", choices=GUESTS, default="amd64")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="words whose name contains this")
    options = parser.parse_args()
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder, open_guest(options.guest, Path(folder)) as session:
        outcome = run(Dump(session), options.count, options.seed, options.only)
    print("\n".join(table(outcome)))
    print(f"{options.guest}: {options.count} exchanges, {time.process_time() - begun:.0f} s")
    for sentence in sorted(outcome.silent + outcome.failures):
        print(sentence)
    sys.exit(bool(outcome.silent or outcome.failures))


if __name__ == "__main__":
    main()
