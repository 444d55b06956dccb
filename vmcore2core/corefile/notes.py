"""From a ``ProcessSnapshot`` to the bytes of PT_NOTE, in the kernel's order.

References: fs/binfmt_elf.c: write_note_info(), fill_prstatus(), fill_psinfo(), fill_auxv_note(), fill_files_note()
(Linux 7.2). NT_SIGINFO is left out: no signal ended the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from vmcore2core import __version__
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core as fmt
from vmcore2core.formats._cabi import NUMPY_ORDER, ElfClass
from vmcore2core.printable import to_json
from vmcore2core.process.model import NOT_MISSING, ProcessSnapshot
from vmcore2core.process.secrets import Secrets

REPORT_RUNS_MAX = 512
BLANKED_MAX = 1 << 16
"""Most ranges of blanked bytes that the note lists, for users who compare the core with the dump."""
NSEC_PER_SEC = 10**9
OVERFLOW_UID = 65534  # DEFAULT_OVERFLOWUID in include/linux/highuid.h


def notes_of(snapshot: ProcessSnapshot, origin: Mapping[str, str | None], secrets: Secrets | None = None) -> list[Note]:
    """Return the notes of a core, in file order.

    Args:
        snapshot: the process.
        origin: facts about the dump for our own note, such as its kernel's release.
        secrets: the secrets to blank in the notes, or None.
    """
    notes: list[Note] = []
    for i, (thread, status) in enumerate(zip(snapshot.threads, prstatuses(snapshot), strict=True)):
        notes.append(Note(fmt.NOTE_CORE, fmt.NT_PRSTATUS, status))
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


def prstatuses(snapshot: ProcessSnapshot) -> Iterator[bytes]:
    """Yield ``struct elf_prstatus`` of each thread."""
    elf_class, order = _variant(snapshot)
    # The fields behind the registers are aligned as the registers are: struct x32_elf_prstatus.
    aligned = 8 if snapshot.greg_size == 8 else elf_class // 8
    for head, thread in zip(_prstatus_heads(snapshot), snapshot.threads, strict=True):
        pr_fpvalid = any(
            regset.note_name == fmt.NOTE_CORE and regset.note_type == fmt.NT_FPREGSET for regset in thread.regsets
        )
        yield head + thread.gregs + int(pr_fpvalid).to_bytes(4, order).ljust(aligned, b"\0")


def _prstatus_heads(snapshot: ProcessSnapshot) -> list[bytes]:
    """Return ``struct elf_prstatus_common`` of each thread."""
    threads, form = snapshot.threads, fmt.elf_prstatus_common[_variant(snapshot)]
    heads = np.zeros(len(threads), form)
    heads["si_signo"] = heads["pr_cursig"] = [thread.pr_cursig for thread in threads]
    heads["pr_pid"] = [thread.tid for thread in threads]
    for name in ("pr_ppid", "pr_pgrp", "pr_sid"):
        heads[name] = [getattr(thread, name) or 0 for thread in threads]
    # The compat form keeps the low word of a signal set.
    for name in ("pr_sigpend", "pr_sighold"):
        heads[name] = np.array([getattr(thread, name) or 0 for thread in threads], np.uint64).astype(form[name])
    for name in ("pr_utime", "pr_stime", "pr_cutime", "pr_cstime"):
        times = np.array([getattr(thread, name) or 0 for thread in threads], np.uint64)
        heads[name][:, 0] = times // np.uint64(NSEC_PER_SEC)
        heads[name][:, 1] = times % np.uint64(NSEC_PER_SEC) // np.uint64(1000)
    raw = heads.tobytes()
    return [raw[at : at + form.itemsize] for at in range(0, len(raw), form.itemsize)]


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


def provenance(snapshot: ProcessSnapshot, origin: Mapping[str, str | None], secrets: Secrets | None = None) -> bytes:
    """Return our own note: JSON in UTF-8, for users who have only the core."""
    runs = [run for vma in snapshot.vmas for run in vma.absent]
    listed = sorted(runs, key=lambda run: run.reason in NOT_MISSING)[:REPORT_RUNS_MAX]  # what is missing comes first
    document = {
        "version": __version__,
        **origin,
        "registers": {str(thread.tid): thread.gregs_source for thread in snapshot.threads},
        "unknown_registers": {str(t.tid): t.gregs_unknown for t in snapshot.threads if t.gregs_unknown},
        "registers_left_out": {str(t.tid): t.regsets_unknown for t in snapshot.threads if t.regsets_unknown},
        "threads_left_out": {str(left.tid): left.reason for left in snapshot.threads_left_out},
        "unknown_fields": unknown_fields(snapshot),
        "absent_pages": sum((run.end - run.start) // snapshot.page_size for run in runs),
        "absent": [[f"{run.start:#x}", f"{run.end:#x}", run.reason.name.lower()] for run in listed],
        "on_disk": [file.as_json() for file in snapshot.on_disk[:REPORT_RUNS_MAX]],
        "absent_runs_not_listed": max(0, len(runs) - REPORT_RUNS_MAX),
        "blanked": [[f"{start:#x}", f"{end:#x}"] for start, end in snapshot.blanked[:BLANKED_MAX]],
        "blanked_runs_not_listed": max(0, len(snapshot.blanked) - BLANKED_MAX),
        **({} if secrets is None else {"secrets_blanked": True}),
        "warnings": snapshot.warnings,
        "notices": snapshot.notices,
    }
    return to_json(document if secrets is None else secrets.hide(document), separators=(",", ":")).encode()
