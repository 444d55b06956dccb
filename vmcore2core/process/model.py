"""A process as plain data: capture fills it in, and the core writer reads it.

This module knows neither dumps nor cores. None means "not known": the writer leaves such a field out or, if the format
requires it, writes zero and says so in the report.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vmcore2core.addresses import UserAddr
from vmcore2core.interfaces import ByteOrder
from vmcore2core.printable import text


class RegSetData(NamedTuple):
    """One note of an architecture, such as NT_FPREGSET: bytes exactly as they go into the core."""

    note_name: str
    note_type: int
    data: bytes
    source: str


class ThreadSnapshot(NamedTuple):
    """One thread.

    Attributes:
        tid: ``task_struct.pid``, in the initial PID namespace.
        comm: ``task_struct.comm``.
        gregs: elf_gregset_t image of the core's architecture and byte order (x86-64: 27 * 8 bytes).
        gregs_source: where the registers come from ("kernel stack", "crash note of CPU 1").
        regsets: further register notes, in the kernel's order.
        gregs_unknown: names of registers in ``gregs`` that are not known and hold zero ("fs_base").
        regsets_unknown: a sentence that says why further register notes are missing, or None.
    """

    tid: int
    comm: bytes
    gregs: bytes
    gregs_source: str
    regsets: tuple[RegSetData, ...] = ()
    gregs_unknown: tuple[str, ...] = ()
    regsets_unknown: str | None = None
    pr_cursig: int = 0
    pr_sigpend: int | None = None
    pr_sighold: int | None = None
    pr_ppid: int | None = None
    pr_pgrp: int | None = None
    pr_sid: int | None = None
    pr_utime: int | None = None
    pr_stime: int | None = None
    pr_cutime: int | None = None
    pr_cstime: int | None = None


class ThreadLeftOut(NamedTuple):
    """A thread that has no NT_PRSTATUS in the core, and why."""

    tid: int
    comm: bytes
    reason: str


class PsInfo(NamedTuple):
    """elf_prpsinfo's fields; pr_fname is comm, pr_psargs the command line with NULs as spaces (at most 79 bytes)."""

    pr_pid: int
    pr_fname: bytes
    pr_psargs: bytes | None = None
    pr_state: int | None = None
    pr_sname: str | None = None
    pr_zomb: bool | None = None
    pr_nice: int | None = None
    pr_flag: int | None = None
    pr_uid: int | None = None
    pr_gid: int | None = None
    pr_ppid: int | None = None
    pr_pgrp: int | None = None
    pr_sid: int | None = None


class AbsentReason(Enum):
    """Why a page that the process had is not in the core."""

    EXCLUDED = "excluded when the dump was written"
    NOT_IN_DUMP = "not in the dump"
    TRUNCATED = "the dump file ends before it"
    DAMAGED = "its compressed form in the dump does not decode"
    SWAPPED = "swapped out, to where is not known"
    SWAPPED_TO_DISK = "swapped to disk (--swap takes the swap file)"
    SWAP_UNREADABLE = "swapped to compressed memory that cannot be read"
    SWAP_CUT_OFF = "swapped to a file that ends before it"
    NOT_CACHED = "of a file, and not in memory"
    IN_FILE = "left to their files, which have them unchanged"
    BEYOND_FILTER = "text that coredump_filter does not ask for"
    BEYOND_FILE = "past the end of the mapped file"
    TABLE_MISSING = "the page table is not in the dump"
    TABLE_BROKEN = "the page table is broken"
    HWPOISON = "lost with failed memory (hardware poison)"
    DEVICE_PRIVATE = "in the memory of a device"
    GUARD = "of a guard"
    SPECIAL = "the page table has an entry of a kind that is not known"
    REDACTED = "left out as asked (--redact)"


NO_SUCH_PAGE = frozenset({AbsentReason.BEYOND_FILE, AbsentReason.GUARD})
"""Reasons that mean that the process itself had no page there."""

NOT_MISSING = NO_SUCH_PAGE | {AbsentReason.REDACTED, AbsentReason.IN_FILE, AbsentReason.BEYOND_FILTER}
"""Reasons for which a core still counts as complete."""


class AbsentRun(NamedTuple):
    """A run of pages ``[start, end)`` whose bytes are not known, all for the same reason."""

    start: UserAddr
    end: UserAddr
    reason: AbsentReason


class Vma(NamedTuple):
    """One mapping.

    Attributes:
        start: first byte.
        end: first byte after it.
        p_flags: PF_R, PF_W, PF_X as in the kernel's core.
        vm_flags: the kernel's VM_* bits.
        pgoff: file offset in pages, or None.
        path: of the mapped file as the process sees it (" (deleted)" included), or None for anonymous memory.
        proc_path: the same as /proc/PID/maps shows it to a reader outside; longer if the process is in a chroot.
        name: "[heap]", "[stack]", "[vdso]" and the like, or "".
        device: s_dev of the mapped file's file system (major << 20 | minor), or None.
        inode: its inode number, or None.
        dumped: whether its memory belongs in a core (VM_DONTDUMP, VM_IO and filters exclude it).
        first_page_only: whether only its first page does: an ELF header that identifies the mapped file.
        beyond_filter: whether it is written though the filter excludes it: text of a file that is not available whole.
        absent: runs of pages that are not known, ascending; pages in none of them are present or read as zero.
        untouched: ranges that read as zero, ascending; too large to have bytes of their own in the core.
    """

    start: UserAddr
    end: UserAddr
    p_flags: int
    vm_flags: int = 0
    pgoff: int | None = None
    path: bytes | None = None
    proc_path: bytes | None = None
    name: str = ""
    device: int | None = None
    inode: int | None = None
    dumped: bool = True
    first_page_only: bool = False
    beyond_filter: bool = False
    absent: tuple[AbsentRun, ...] = ()
    untouched: tuple[tuple[int, int], ...] = ()

    def dump_end(self, page_size: int) -> UserAddr:
        """Return the end of the part that belongs in a core; ``start`` if nothing does."""
        if not self.dumped:
            return self.start
        return UserAddr(self.start + page_size) if self.first_page_only else self.end


class OnDisk(NamedTuple):
    """A file on disk that has pages of a process which are no longer in memory.

    Attributes:
        path: from its mappings.
        pages: number of such pages in all mappings.
        build_id: hexadecimal digits, or None if it has none or memory does not show it.
        size: of the file in bytes, or None.
        mtime: when it was last changed, in seconds since 1970, or None.
    """

    path: bytes
    pages: int
    build_id: str | None = None
    size: int | None = None
    mtime: int | None = None

    def as_json(self) -> dict[str, str | int | None]:
        """Return the form used in notes and summaries."""
        path = text(self.path)
        return {"path": path, "pages": self.pages, "build_id": self.build_id, "size": self.size, "mtime": self.mtime}


class TagRun(NamedTuple):
    """Memory tags of whole pages ``[start, end)``, packed as in a core's ``p_type`` segment (arm64: two in a byte)."""

    start: UserAddr
    end: UserAddr
    tags: bytes
    p_type: int


class ProcessSnapshot(NamedTuple):
    """Everything of one thread group that goes into its core.

    Attributes:
        tgid: thread-group ID.
        comm: the leader's.
        e_machine: of the core (EM_X86_64 = 62).
        elf_class: 32 or 64: of the process, not of the kernel.
        byte_order: of the core.
        page_size: bytes; the unit of ``Vma.pgoff`` and NT_FILE.
        threads: the one that a debugger shows first, then the others.
        threads_left_out: threads without registers, with reasons.
        psinfo: for NT_PRPSINFO.
        auxv: ``saved_auxv`` bytes, AT_NULL included, or None.
        last_notes: the architecture's notes that a core has once, after all others.
        vmas: ascending, disjoint.
        warnings: sentences about broken or unknown structures; if there are any, the exit status is 3.
        notices: sentences worth knowing that leave the core complete (inferred values, fields not known).
        blanked: ``(start, end)`` of user addresses that the core has zeros for because the user asked to redact them;
            ascending, disjoint.
            on_disk: files that have pages which are not in memory and which the process never changed.
            tags: the known memory tags; ascending, disjoint.
            greg_size: bytes of a register in ``ThreadSnapshot.gregs`` if it is not a ``long`` of the class, or None.
            uid_size: bytes of a uid in NT_PRPSINFO if it is not the usual size of the class, or None.
    """

    tgid: int
    comm: bytes
    e_machine: int
    elf_class: int
    byte_order: ByteOrder
    page_size: int
    threads: tuple[ThreadSnapshot, ...]
    psinfo: PsInfo
    vmas: tuple[Vma, ...]
    auxv: bytes | None = None
    last_notes: tuple[RegSetData, ...] = ()
    threads_left_out: tuple[ThreadLeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    e_flags: int = 0
    blanked: tuple[tuple[int, int], ...] = ()
    tags: tuple[TagRun, ...] = ()
    greg_size: int | None = None
    uid_size: int | None = None
    on_disk: tuple[OnDisk, ...] = ()
