"""Entries in systemd's journal that point at captured cores, so that ``coredumpctl`` lists and opens them.

References: systemd's src/coredump/coredump-submit.c (fields, extended attributes) and coredumpctl.c (its queries);
https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmcore2core.errors import OutputError, UsageError
from vmcore2core.handover.index import INDEX_NAME, Entry, read_index

SD_MESSAGE_COREDUMP = "fc2e22bc6ee647b6b90729ab34a250b1"
SOCKET = Path("/run/systemd/journal/socket")
SENT_NAME = "journal.sent"
"""Name of the file that marks a directory whose entries are in the journal."""
CRIT = "2"
ADOPT_SECONDS = 3600
"""A dump that kdump began at most this much later belongs to the same crash."""
NO_SIGNAL = "0"
"""coredumpctl(1) shows only entries with a signal, although no signal ended these processes."""

Fields = dict[str, str]


def new_directories(crash: Path) -> list[Path]:
    """Return the core directories below kdump's directory that have no entries in the journal yet."""
    found = sorted(path.parent for path in crash.glob(f"*/cores/{INDEX_NAME}"))
    return [path for path in found if not (path / SENT_NAME).exists()]


def beside_the_dump(cores: Path) -> Path:
    """Move a directory of cores next to the dump of the same crash, if necessary; return its path.

    kdump names the dump's directory after the minute in which it starts, which may be later than the capture's.
    """
    stamp, crash = cores.parent, cores.parent.parent
    if _has_dump(stamp):
        return cores
    made = (cores / INDEX_NAME).stat().st_mtime
    later = [
        (since, path)
        for path in crash.iterdir()
        if path != stamp and _has_dump(path) and 0 <= (since := path.stat().st_mtime - made) <= ADOPT_SECONDS
    ]
    if not later:
        return cores
    target = min(later)[1] / cores.name
    if target.exists():
        return cores
    cores.rename(target)
    with contextlib.suppress(OSError):  # it holds other files
        stamp.rmdir()
    return target


def _has_dump(folder: Path) -> bool:
    return folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in ("dump*", "vmcore*"))


def tell(cores: Path, send_to: Path = SOCKET) -> int:
    """Send an entry for each core of a directory, and mark the files as systemd does; return their number.

    Raises:
        UsageError: the directory has no index.
        OutputError: the index is not valid, or the journal rejects an entry.
    """
    index = read_index(cores / INDEX_NAME)
    if index is None:
        raise UsageError(f"{cores} has no {INDEX_NAME}, expected a directory of captured cores")
    count = 0
    for process in index["processes"]:
        core = cores.resolve() / Path(process["core"]["file"]).name
        if not core.is_file():
            continue
        try:
            fields = entry_fields(index, process, core)
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"{cores / INDEX_NAME} has a process without {error}") from error
        _send(fields, send_to)
        mark(core, fields)
        count += 1
    with contextlib.suppress(FileExistsError), (cores / SENT_NAME).open("x"):
        pass
    return count


def entry_fields(index: dict[str, Any], process: Entry, core: Path) -> Fields:
    """Return the fields of a core's entry.

    Args:
        index: the directory's index.
        process: the process's entry in it.
        core: the core file.
    """
    kernel = index["kernel"]
    pid, comm, uid = process["pid"], process["comm"], process["uid"]
    stacks = "\n\n".join(_stack_traces(process))
    message = f"Process {pid} ({comm}) of user {uid} was alive when the kernel crashed; this core is from that moment."
    if process.get("capture", {}).get("kept") == "stacks":
        message += " It has registers and stacks alone."
    fields = {
        "MESSAGE_ID": SD_MESSAGE_COREDUMP,
        "PRIORITY": CRIT,
        "SYSLOG_IDENTIFIER": "vmcore2core",
        "MESSAGE": f"{message}\n\n{stacks}" if stacks else message,
        "COREDUMP_PID": pid,
        "COREDUMP_UID": uid,
        "COREDUMP_GID": process.get("gid"),
        "COREDUMP_SIGNAL": NO_SIGNAL,
        "COREDUMP_TIMESTAMP": kernel["crash_time"] * 1_000_000 if kernel["crash_time"] else None,
        "COREDUMP_COMM": comm,
        "COREDUMP_EXE": process["exe"],
        "COREDUMP_CMDLINE": process["command_line"],
        "COREDUMP_HOSTNAME": kernel["nodename"],
        "COREDUMP_FILENAME": str(core),
        "COREDUMP_STACKTRACE": stacks or None,
        "COREDUMP_PACKAGE_JSON": _package_json(process),
        **_control_group(process),
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


def _control_group(process: Entry) -> dict[str, str | None]:
    cgroups = process["cgroups"] or []
    parts = cgroups[0].split("/") if cgroups else []
    units = [part for part in parts if part.endswith((".service", ".scope"))]
    slices = [part for part in parts if part.endswith(".slice")]
    return {
        "COREDUMP_CGROUP": cgroups[0] if cgroups else None,
        "COREDUMP_UNIT": units[0] if units else None,
        "COREDUMP_SLICE": slices[-1] if slices else None,
    }


def _stack_traces(process: Entry) -> Iterator[str]:
    """Yield the threads' stacks in systemd's format."""
    for thread in process["threads"]:
        if thread["frames"]:
            lines = [_frame(number, frame) for number, frame in enumerate(thread["frames"])]
            yield "\n".join([f"Stack trace of thread {thread['tid']}:", *lines])


def _frame(number: int, frame: dict[str, Any]) -> str:
    name = frame["function"] or "n/a"
    file = frame["file"].rpartition("/")[2] if frame["file"] else "n/a"
    return f"#{number:<2d} {int(frame['address'], 16):#018x} {name} ({file})"


def _package_json(process: Entry) -> str | None:
    modules = {
        image["name"].rpartition("/")[2]: {"buildId": image["build_id"]}
        for image in process["images"]
        if image["build_id"] is not None
    }
    return json.dumps({"elfType": "coredump", **modules}) if modules else None


def mark(core: Path, fields: Fields) -> None:
    """Give a core the extended attributes of systemd's cores, if the file system supports them."""
    for name in ("pid", "uid", "gid", "signal", "timestamp", "hostname", "comm", "exe"):
        value = fields.get(f"COREDUMP_{name.upper()}")
        if value is not None:
            with contextlib.suppress(OSError):
                os.setxattr(core, f"user.coredump.{name}", value.encode())


def encoded(fields: Fields) -> bytes:
    """Return an entry in the journal's native protocol: the size precedes a value of several lines."""
    parts = []
    for name, value in fields.items():
        raw = value.encode("utf-8", "backslashreplace")
        plain = b"%s=%s\n" % (name.encode(), raw)
        parts.append(plain if b"\n" not in raw else b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(raw)), raw))
    return b"".join(parts)


def _send(fields: Fields, send_to: Path) -> None:
    message = encoded(fields)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.connect(str(send_to))
            try:
                journal.send(message)
            except OSError:  # too large for a datagram: send a sealed file instead
                _send_file(journal, message)
    except OSError as error:
        raise OutputError(f"the journal at {send_to} takes no entry: {error.strerror}") from error


def _send_file(journal: socket.socket, message: bytes) -> None:
    import fcntl

    fd = os.memfd_create("journal", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(message)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        socket.send_fds(journal, [b""], [fd])
    finally:
        os.close(fd)
