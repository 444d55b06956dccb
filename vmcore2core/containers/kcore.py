"""/proc/kcore, the memory of the running kernel as an ELF file, and copies of it.

Since Linux kernel commit 464920104bf7 ("/proc/kcore: update physical address for kcore ram and text") (in v4.12), RAM
and the kernel's image have their physical addresses; vmalloc's and modules' areas have none and are left out, as their
pages are in RAM. Since 23c85094fe18 ("proc/kcore: add vmcoreinfo note to /proc/kcore") (in v4.19) it has VMCOREINFO.

References: fs/proc/kcore.c (v6.12): read_kcore_iter(), get_kcore_size().
"""

from __future__ import annotations

from vmcore2core.elf.notes import Note
from vmcore2core.formats.elf_core import NT_PRPSINFO

_CORE = "CORE"
_FNAME = b"vmlinux"

LIVE = (
    "this is the memory of a running machine (/proc/kcore), which kept running while its memory was read: related data "
    "may come from different moments"
)


def is_kcore(notes: tuple[Note, ...]) -> bool:
    """Tell whether an ELF file is /proc/kcore: no other has a process, called vmlinux, and a kernel's memory."""
    return any(note.name == _CORE and note.n_type == NT_PRPSINFO and _FNAME in note.desc for note in notes)


def kernel_notes(notes: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return the notes without those of the process that read /proc/kcore: these have no CPU's registers."""
    return tuple(note for note in notes if note.name != _CORE)
