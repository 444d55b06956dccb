"""Unchanged pages of private mappings that are not in memory are not lost: the file has them.

Tests process/filepages.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corefile.snapshots import elf_notes, loads
from tests.process.scene import CODE, VM_EXEC, VM_READ, Scene, simple
from tests.process.test_snapshot import absent
from vmcore2core.corefile.writer import Output, write_core
from vmcore2core.formats.elf_core import NOTE_VMCORE2CORE
from vmcore2core.process.model import AbsentReason, OnDisk

VMEMMAP = 0xFFFF_EA00_0000_0000
SHMEM_AOPS, DISK_AOPS = 0xFFFF_FFFF_8100_0100, 0xFFFF_FFFF_8100_0300
VM_SHARED = 8
MTIME = 1_700_000_000
IN_FILE, NOT_CACHED = AbsentReason.IN_FILE, AbsentReason.NOT_CACHED


def scene(*, aops: int = DISK_AOPS, shared: bool = False, nlink: int = 1, mode: int = 0o100644) -> Scene:
    """A file of four pages, mapped twice over; page 1 is in the page cache, page 0 is mapped in, the others nowhere."""
    made = simple()
    image = made.image
    image.table.symbols |= {"vmemmap": VMEMMAP, "shmem_aops": SHMEM_AOPS}
    image.table.offsets["inode"] |= {"i_nlink": (40, 4), "i_mode": (44, 2), "i_mtime_sec": (48, 8)}
    image.table.offsets["file"]["f_inode"] = (32, 8)
    inode = image.make("inode", i_size=4 * 4096, i_nlink=nlink, i_mode=mode, i_mtime_sec=MTIME)
    mapping = image.make("address_space", host=inode, a_ops=aops)
    cached = image.page(b"cached")
    head = image.xa_node(0, {1: VMEMMAP + 64 * (cached >> 12)})
    image.words(mapping + image.offset("address_space", "i_pages") + 8, head)
    root = image.dentry(b"/")
    file = image.file(image.mount(root), image.dentry(b"lib", root), f_mapping=mapping, f_inode=inode)
    flags = VM_READ | VM_EXEC | (VM_SHARED if shared else 0)
    mm = made.mm((CODE, CODE + 0x4000, flags))
    image.set("vm_area_struct", made.vmas[0], vm_file=file, vm_pgoff=0, anon_vma=0)
    image.set("task_struct", made.leaders[0], mm=mm)
    image.user_page(CODE, b"mapped")
    return made


def test_what_neither_page_table_nor_page_cache_has_is_left_to_the_file() -> None:
    made = scene()
    assert absent(made, CODE) == [(CODE + 0x2000, CODE + 0x4000, IN_FILE)]
    snapshot = made.capture().snapshot
    assert snapshot.on_disk == (OnDisk(b"/lib", 2, None, 4 * 4096, MTIME),)
    assert snapshot.warnings == ()


@pytest.mark.parametrize(
    "kind",
    [{"shared": True}, {"nlink": 0}, {"mode": 0o020644}],
    ids=["shared memory", "a file without a name", "a device"],
)
def test_what_may_be_lost_is_missing(kind: dict[str, int]) -> None:
    made = scene(**kind)  # type: ignore[arg-type]
    assert absent(made, CODE) == [(CODE + 0x2000, CODE + 0x4000, NOT_CACHED)]
    assert made.capture().snapshot.on_disk == ()


def test_a_swapped_page_of_a_private_mapping_was_changed_and_is_missing() -> None:
    made = scene()
    made.image.map(CODE + 0x2000, ~0x77 << 14 >> 5 & (1 << 59) - 1)
    assert absent(made, CODE) == [
        (CODE + 0x2000, CODE + 0x3000, AbsentReason.SWAPPED),
        (CODE + 0x3000, CODE + 0x4000, IN_FILE),
    ]


def test_a_file_system_that_is_not_known_may_be_in_memory() -> None:
    made = scene()
    del made.image.table.symbols["shmem_aops"]
    assert {reason for _, _, reason in absent(made, CODE)} == {NOT_CACHED}


def test_a_broken_page_cache_says_nothing_of_what_is_in_the_file() -> None:
    made = scene()
    made.image.table.symbols["vmemmap"] = VMEMMAP + 8
    assert NOT_CACHED in {reason for _, _, reason in absent(made, CODE)}
    assert any("cannot be read" in sentence for sentence in made.capture().snapshot.warnings)


def test_the_core_keeps_what_is_known_and_its_first_page_has_a_segment_of_its_own(tmp_path: Path) -> None:
    """jhsdb takes a segment of one page for the file's, and gives up on others that differ from it."""
    captured = scene().capture()
    core = tmp_path / "core"
    write_core(captured.snapshot, captured.memory, Output(core))
    assert [(vaddr, memsz, filesz) for vaddr, memsz, filesz, _ in loads(core)] == [
        (CODE, 0x1000, 0x1000),
        (CODE + 0x1000, 0x1000, 0x1000),
    ]
    raw = core.read_bytes()
    assert raw.count(b"mapped") == raw.count(b"cached") == 1
    own = json.loads(next(desc for name, _, desc in elf_notes(core) if name == NOTE_VMCORE2CORE))
    assert own["on_disk"] == [{"path": "/lib", "pages": 2, "build_id": None, "size": 0x4000, "mtime": MTIME}]
