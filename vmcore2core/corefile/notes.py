"""From a ``ProcessSnapshot`` to the bytes of PT_NOTE, in the kernel's order.

References: fs/binfmt_elf.c: write_note_info(), fill_prstatus(), fill_psinfo(), fill_auxv_note(), fill_files_note()
(Linux 7.2). NT_SIGINFO is left out: no signal ended the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, cast

from vmcore2core import __version__
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core as fmt
from vmcore2core.formats._cabi import NUMPY_ORDER, ElfClass
from vmcore2core.printable import to_json
from vmcore2core.process.model import ProcessSnapshot, ThreadSnapshot
from vmcore2core.process.secrets import Secrets

REPORT_RUNS_MAX = 512
BLANKED_MAX = 1 << 16
"""Most ranges of blanked bytes that the note lists, for users who compare the core with the dump."""
OVERFLOW_UID = 65534  # DEFAULT_OVERFLOWUID in include/linux/highuid.h


def notes_of(snapshot: ProcessSnapshot, origin: dict[str, str | None], secrets: Secrets | None = None) -> list[Note]:
    """Return the notes of a core, in file order.

    Args:
        snapshot: the process.
        origin: facts about the dump for our own note, such as its kernel's release.
        secrets: the secrets to blank in the notes, or None.
    """
    notes: list[Note] = []
    for i, thread in enumerate(snapshot.threads):
        notes.append(Note(fmt.NOTE_CORE, fmt.NT_PRSTATUS, prstatus(snapshot, thread)))
        if i == 0:
            notes += process_notes(snapshot)
        notes += [Note(regset.note_name, regset.note_type, regset.data) for regset in thread.regsets]
    if not snapshot.threads:
        notes += process_notes(snapshot)
    notes += [Note(note.note_name, note.note_type, note.data) for note in snapshot.last_notes]
    if secrets is not None:
        notes = [Note(note.name, note.n_type, secrets.hidden(note.desc)) for note in notes]
    own = provenance(snapshot, origin, secrets)
    return [*notes, Note(fmt.NOTE_VMCORE2CORE, fmt.NT_VMCORE2CORE, own)]


def process_notes(snapshot: ProcessSnapshot) -> Iterator[Note]:
    """Yield the notes that a core has once per process."""
    yield Note(fmt.NOTE_CORE, fmt.NT_PRPSINFO, prpsinfo(snapshot))
    if snapshot.auxv is not None:
        yield Note(fmt.NOTE_CORE, fmt.NT_AUXV, snapshot.auxv)
    files = nt_file(snapshot)
    if files is not None:
        yield Note(fmt.NOTE_CORE, fmt.NT_FILE, files)


def _variant(snapshot: ProcessSnapshot) -> tuple[ElfClass, Any]:
    return cast("ElfClass", snapshot.elf_class), snapshot.byte_order


def prstatus(snapshot: ProcessSnapshot, thread: ThreadSnapshot) -> bytes:
    """Return ``struct elf_prstatus`` of one thread."""
    word = snapshot.elf_class // 8
    mask = (1 << (8 * word)) - 1
    # The compat form keeps the low word of a signal set.
    head = {
        "si_signo": thread.pr_cursig,
        "si_code": 0,
        "si_errno": 0,
        "pr_cursig": thread.pr_cursig,
        "pr_sigpend": (thread.pr_sigpend or 0) & mask,
        "pr_sighold": (thread.pr_sighold or 0) & mask,
        "pr_pid": thread.tid,
        "pr_ppid": thread.pr_ppid or 0,
        "pr_pgrp": thread.pr_pgrp or 0,
        "pr_sid": thread.pr_sid or 0,
        **{name: _timeval(getattr(thread, name)) for name in ("pr_utime", "pr_stime", "pr_cutime", "pr_cstime")},
    }
    variant = _variant(snapshot)
    pr_fpvalid = any(
        regset.note_name == fmt.NOTE_CORE and regset.note_type == fmt.NT_FPREGSET for regset in thread.regsets
    )
    # The fields behind the registers are aligned as the registers are: struct x32_elf_prstatus.
    tail_class: ElfClass = 64 if snapshot.greg_size == 8 else variant[0]
    tail = fmt.PRSTATUS_TAIL[tail_class, variant[1]].build({"pr_fpvalid": int(pr_fpvalid)})
    return fmt.PRSTATUS_HEAD[variant].build(head) + thread.gregs + tail


def _timeval(nanoseconds: int | None) -> list[int]:
    seconds, rest = divmod(nanoseconds or 0, 1_000_000_000)
    return [seconds, rest // 1000]


def prpsinfo(snapshot: ProcessSnapshot) -> bytes:
    """Return ``struct elf_prpsinfo``."""
    info = snapshot.psinfo
    uid_size = snapshot.uid_size or fmt.UID_SIZES[snapshot.elf_class]
    record = {
        "pr_state": info.pr_state or 0,
        "pr_sname": (info.pr_sname or "\0").encode()[:1],
        "pr_zomb": int(info.pr_zomb or False),
        "pr_nice": info.pr_nice or 0,
        "pr_flag": (info.pr_flag or 0) & ((1 << snapshot.elf_class) - 1),
        "pr_uid": _id(info.pr_uid, uid_size),
        "pr_gid": _id(info.pr_gid, uid_size),
        "pr_pid": info.pr_pid,
        "pr_ppid": info.pr_ppid or 0,
        "pr_pgrp": info.pr_pgrp or 0,
        "pr_sid": info.pr_sid or 0,
        "pr_fname": info.pr_fname[: fmt.PR_FNAME_SIZE].ljust(fmt.PR_FNAME_SIZE, b"\0"),
        "pr_psargs": (info.pr_psargs or b"")[: fmt.ELF_PRARGSZ - 1].ljust(fmt.ELF_PRARGSZ, b"\0"),
    }
    elf_class, order = _variant(snapshot)
    return fmt.PrPsInfo[elf_class, order, uid_size].build(record)


def _id(number: int | None, size: int) -> int:
    """Return a uid or gid for ``struct elf_prpsinfo``: most 32-bit cores have only 16 bits for it (high2lowuid())."""
    number = (number or 0) & 0xFFFF_FFFF
    return OVERFLOW_UID if size == 2 and number > 0xFFFF else number


def nt_file(snapshot: ProcessSnapshot) -> bytes | None:
    """Return NT_FILE: every mapping of a file whose path and offset are known; None if no mapping qualifies."""
    mapped = [vma for vma in snapshot.vmas if vma.path is not None and vma.pgoff is not None]
    if not mapped:
        return None
    header = fmt.FILE_HEADER[_variant(snapshot)].build({"count": len(mapped), "page_size": snapshot.page_size})
    form = NUMPY_ORDER[snapshot.byte_order] + ("QQQ" if snapshot.elf_class == 64 else "III")
    mask = (1 << snapshot.elf_class) - 1
    records = b"".join(struct.pack(form, vma.start, vma.end, (vma.pgoff or 0) & mask) for vma in mapped)
    return header + records + b"".join((vma.path or b"") + b"\0" for vma in mapped)


def unknown_fields(snapshot: ProcessSnapshot) -> list[str]:
    """Return the fields of NT_PRSTATUS and NT_PRPSINFO that are zero because their values are not known."""
    info = snapshot.psinfo
    fields = ("psargs", "state", "sname", "zomb", "nice", "flag", "uid", "gid", "ppid", "pgrp", "sid")
    unknown = [f"pr_{name}" for name in fields if getattr(info, f"pr_{name}") is None]
    of_threads = ("pr_sigpend", "pr_sighold", "pr_utime", "pr_stime", "pr_cutime", "pr_cstime")
    return unknown + [name for name in of_threads if any(getattr(thread, name) is None for thread in snapshot.threads)]


def provenance(snapshot: ProcessSnapshot, origin: dict[str, str | None], secrets: Secrets | None = None) -> bytes:
    """Return our own note: JSON in UTF-8, for users who have only the core."""
    runs = [(run, vma) for vma in snapshot.vmas for run in vma.absent]
    document = {
        "version": __version__,
        **origin,
        "registers": {str(thread.tid): thread.gregs_source for thread in snapshot.threads},
        "unknown_registers": {str(t.tid): t.gregs_unknown for t in snapshot.threads if t.gregs_unknown},
        "registers_left_out": {str(t.tid): t.regsets_unknown for t in snapshot.threads if t.regsets_unknown},
        "threads_left_out": {str(left.tid): left.reason for left in snapshot.threads_left_out},
        "unknown_fields": unknown_fields(snapshot),
        "absent_pages": sum((run.end - run.start) // snapshot.page_size for run, _ in runs),
        "absent": [[f"{run.start:#x}", f"{run.end:#x}", run.reason.name.lower()] for run, _ in runs[:REPORT_RUNS_MAX]],
        "on_disk": [file.as_json() for file in snapshot.on_disk[:REPORT_RUNS_MAX]],
        "absent_runs_not_listed": max(0, len(runs) - REPORT_RUNS_MAX),
        "blanked": [[f"{start:#x}", f"{end:#x}"] for start, end in snapshot.blanked[:BLANKED_MAX]],
        "blanked_runs_not_listed": max(0, len(snapshot.blanked) - BLANKED_MAX),
        **({} if secrets is None else {"secrets_blanked": True}),
        "warnings": snapshot.warnings,
        "notices": snapshot.notices,
    }
    return to_json(document if secrets is None else secrets.hide(document), separators=(",", ":")).encode()
