"""Entries of the index for the dump, a process and its core."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmcore2core.containers.remote import RemoteFile, Url, located
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import Vmcore2coreError
from vmcore2core.kernel import printk
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.identity import Identity
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.threads import thread_rows
from vmcore2core.session import CoreResult, OpenOptions, Session

if TYPE_CHECKING:
    from vmcore2core.handover.entry import KernelReaders
    from vmcore2core.process.kernelbt import KernelStacks
    from vmcore2core.unwind.originals import Files
    from vmcore2core.unwind.threads import Unwound

log = logging.getLogger(__name__)
T = TypeVar("T")


def dump_file(path: Path) -> dict[str, Any]:
    """Return the index entry of a file of the dump; if it was read from a pipe, only the name."""
    if isinstance(path, Url):
        with closing(RemoteFile(path, cache=False)) as remote:
            return {"name": path.name, "size": remote.size, "mtime_ns": None, "tag": remote.identity()}
    try:
        status = path.stat()
    except OSError:
        return {"name": path.name, "size": None, "mtime_ns": None}
    return {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def options_entry(opened: OpenOptions, core: CoreOptions) -> dict[str, Any]:
    """Return the options that change the cores, without secrets and without the folders of files."""
    return {
        "filter": None if core.dump_filter is None else f"{core.dump_filter:#x}",
        "redact": [] if core.redaction is None else list(core.redaction.words),
        "compress": core.compression,
        "map": opened.memory_map,
        "zero_excluded": opened.zero_excluded,
        "swap": [located(given).name for given in opened.swap],
        "debuginfod": core.debuginfod,
        "sysroot": [given.name for given in opened.sysroots],
        "vmlinux": None if opened.vmlinux is None else opened.vmlinux.name,
        "vmcoreinfo": None if opened.vmcoreinfo is None else opened.vmcoreinfo.name,
    }


def index_head(session: Session, options: dict[str, Any]) -> dict[str, Any]:
    """Return the index's description of the dump, the kernel, and the options for cores."""
    container, boot = session.container, session.boot
    lines, _ = printk.read_messages(session.kernel)
    panic = printk.panic_message(lines)
    return {
        "dump": {
            "files": [dump_file(path) for path in container.paths],
            "format": container.DOC.name,
            "dump_level": container.dump_level,
        },
        "kernel": {
            "machine": boot.utsname.machine,
            "nodename": text(boot.utsname.nodename.encode()),
            "release": text(boot.utsname.release.encode()),
            "version": text(boot.utsname.version.encode()),
            "build_id": boot.vmcoreinfo.build_id,
            "panic": text(panic.encode()) if panic is not None else None,
            "crash_time": boot.vmcoreinfo.crash_time,
        },
        "options": options,
    }


def stacks_of(session: Session, captured: Captured, files: Files) -> Unwound | str:
    """Return the frames of a process's threads; or a sentence that says why there are none.

    Args:
        session: the dump.
        captured: the process.
        files: finds files that supply what memory lacks.
    """
    from vmcore2core.unwind.threads import unwound  # a single core does not need it

    try:
        return unwound(captured, session.kernel.arch, thread_rows(captured.answers), files)
    except Vmcore2coreError as error:
        return str(error)


def kernel_stacks_of(session: Session) -> KernelStacks | None:
    """Return the reader of threads' kernel stacks; None if this kernel's stacks cannot be read."""
    from vmcore2core.process.kernelbt import KernelStacks  # likewise

    return if_known("kernel stacks", lambda: KernelStacks(session.kernel, session.processes.cpus, needed=False))


def if_known(what: str, made: Callable[[], T]) -> T | None:
    """Return the layout's answer, or None if it has none."""
    try:
        return made()
    except Vmcore2coreError as error:
        log.info("the index has no %s: %s", what, error)
        return None


def described(
    session: Session,
    leader: StructView,
    captured: Captured,
    stacks: Unwound | str,
    kernel: KernelReaders,
) -> dict[str, Any]:
    """Return the index entry of a process, without its core.

    Args:
        session: the dump.
        leader: ``struct task_struct`` of its thread group's leader.
        captured: the same process.
        stacks: its stacks, from ``stacks_of``.
        kernel: the kernel's view of it.
    """
    from vmcore2core.handover.entry import process_entry  # likewise

    return process_entry(Identity(session.processes, leader), captured, stacks, kernel)


def core_entry(result: CoreResult) -> dict[str, Any]:
    """Return the index entry of a core."""
    status = result.path.stat()
    return {
        "file": result.path.name,
        "size": result.report.file_size,
        "file_size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "complete": result.complete,
        "pages": result.report.present_pages,
        "missing": result.missing_pages,
        "absent": {reason.name.lower(): n for reason, n in result.absent_pages.items()},
        "blanked": [[f"{start:#x}", f"{end:#x}"] for start, end in result.snapshot.blanked],
        "threads_left_out": [
            {"tid": left.tid, "comm": text(left.comm), "reason": left.reason}
            for left in result.snapshot.threads_left_out
        ],
        "warnings": list(result.snapshot.warnings),
        "notices": list(result.snapshot.notices),
    }
