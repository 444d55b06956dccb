"""Locks that tasks wait for, of the kernel and of files, by a small fake kernel."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import KernelImage, Offsets
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.locks import file_locks, kernel_lock

BLOCKER: Offsets = {
    "task_struct": {"blocker": (2400, 8)},
    "mutex": {"owner": (0, 8)},
    "rw_semaphore": {"owner": (8, 8)},
    "inode": {"i_flctx": (352, 8)},
    "file_lock_context": {"flc_flock": (8, 16), "flc_posix": (24, 16)},
}
CORE: Offsets = {
    "file_lock_core": {
        "flc_list": (8, 16),
        "flc_blocked_requests": (40, 16),
        "flc_blocked_member": (56, 16),
        "flc_pid": (88, 4),
        "flc_file": (120, 8),
    }
}
BEFORE_6_9: Offsets = {
    "file_lock": {
        "fl_list": (8, 16),
        "fl_blocked_requests": (40, 16),
        "fl_blocked_member": (56, 16),
        "fl_pid": (88, 4),
        "fl_file": (120, 8),
    }
}


def image_with(*offsets: Offsets) -> KernelImage:
    image = KernelImage()
    for table in (BLOCKER, *offsets):
        for tag, members in table.items():
            image.table.offsets.setdefault(tag, {}).update(members)
    return image


OWNER = 0xFFFF_8880_0123_4500


@pytest.mark.parametrize(
    ("kind", "word", "name", "owner"),
    [
        (0, OWNER | 1, "mutex", OWNER),
        (1, 0, "semaphore", 0),
        (2, OWNER, "rwsem", OWNER),
        (3, OWNER | 1, "rwsem", 0),
    ],
)
def test_a_lock_of_the_kernel_has_its_owner(kind: int, word: int, name: str, owner: int) -> None:
    image = image_with()
    lock = image.alloc(32)
    image.words(lock, word, word)
    task = image.make("task_struct", blocker=lock | kind)
    found = kernel_lock(image.kernel().view("task_struct", task))
    assert found is not None
    assert (found.kind, found.address, found.owner) == (name, lock, owner)


def test_a_task_that_nothing_blocks_waits_for_none() -> None:
    image = image_with()
    task = image.make("task_struct")
    assert kernel_lock(image.kernel().view("task_struct", task)) is None
    del image.table.offsets["task_struct"]["blocker"]
    assert kernel_lock(image.kernel().view("task_struct", task)) is None


@pytest.mark.parametrize(
    ("offsets", "tag", "prefix"), [(CORE, "file_lock_core", "flc_"), (BEFORE_6_9, "file_lock", "fl_")]
)
def test_a_file_lock_has_who_waits_for_it(offsets: Offsets, tag: str, prefix: str) -> None:
    image = image_with(offsets)
    held, free, request = (image.alloc(256, 64) for _ in range(3))
    context = image.make("file_lock_context")
    inode = image.alloc(512)
    image.set("inode", inode, i_flctx=context)
    image.set(tag, held, {f"{prefix}pid": 812, f"{prefix}file": 0x1230})
    image.set(tag, request, {f"{prefix}pid": 815})
    image.link(context + 8, free + 8)
    image.link(context + 24, held + 8)
    image.link(free + 40)
    image.link(held + 40, request + 56)
    (found,) = file_locks(image.kernel().view("inode", inode))
    assert (found.pid, found.file, found.waiting, found.kind) == (812, 0x1230, (815,), "posix")
    image.words(request + 56, 0x1234)
    with pytest.raises(CorruptStructure):
        list(file_locks(image.kernel().view("inode", inode)))


def test_a_file_that_was_never_locked_has_none() -> None:
    image = image_with(CORE)
    inode = image.alloc(512)
    assert list(file_locks(image.kernel().view("inode", inode))) == []
