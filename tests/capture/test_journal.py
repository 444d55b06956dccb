"""Entries for coredumpctl, read back from a socket in the journal's place.

Tests commands/journal.py.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vmcore2core.capture.journal import SENT_NAME, beside_the_dump, encoded, new_directories, tell
from vmcore2core.errors import OutputError, UsageError

PROCESS: dict[str, Any] = {
    "pid": 812,
    "nspid": None,
    "comm": "postgres",
    "exe": "/usr/lib/postgresql/17/bin/postgres",
    "command_line": "postgres: 17/main: checkpointer",
    "uid": 109,
    "gid": 112,
    "state": "S",
    "cgroups": ["/system.slice/system-postgresql.slice/postgresql@17-main.service"],
    "containers": [],
    "page_size": 4096,
    "core": {
        "file": "core.postgres.812",
        "size": 9,
        "file_size": 9,
        "mtime_ns": 1,
        "complete": True,
        "pages": 1,
        "missing": 0,
    },
    "capture": {"kept": "stacks", "reason": "the time is over"},
    "threads": [
        {
            "tid": 812,
            "comm": "postgres",
            "frames": [
                {"address": "0x7f0000001234", "function": "epoll_wait", "offset": "0x4", "file": "/usr/lib/libc.so.6"},
                {"address": "0x55aa", "function": None, "offset": None, "file": None},
            ],
        },
        {"tid": 813, "comm": "postgres", "frames": []},
    ],
    "vmas": [],
    "images": [
        {"name": "/usr/lib/postgresql/17/bin/postgres", "start": "0x55aa", "build_id": "a0b1"},
        {"name": "/usr/lib/libc.so.6", "start": "0x7f00", "build_id": None},
    ],
}
STACK = """\
Stack trace of thread 812:
#0  0x00007f0000001234 epoll_wait (libc.so.6)
#1  0x00000000000055aa n/a (n/a)"""


def directory(folder: Path, *processes: dict[str, Any]) -> Path:
    """Make a directory of captured cores."""
    cores = folder / "cores"
    cores.mkdir(parents=True)
    index = {
        "format": "vmcore2core-index",
        "version": 1,
        "kernel": {"nodename": "db1", "crash_time": 1795990207},
        "processes": list(processes),
    }
    (cores / "index.json").write_text(json.dumps(index))
    for process in processes:
        (cores / process["core"]["file"]).write_bytes(b"\x7fELFcore.")
    return cores


@pytest.fixture
def journal(tmp_path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "socket"))
    listening.settimeout(10)
    return listening


def received(journal: socket.socket) -> dict[str, str]:
    """Read one entry as journald does: from the datagram, or from the file that came with an empty one."""
    message, descriptors, _, _ = socket.recv_fds(journal, 1 << 20, 1)
    if descriptors:
        message = os.pread(descriptors[0], 1 << 26, 0)
        os.close(descriptors[0])
    fields, at = {}, 0
    while at < len(message):
        line, _, _ = message[at:].partition(b"\n")
        at += len(line) + 1
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            name, (size,) = line, struct.unpack_from("<Q", message, at)
            value, at = message[at + 8 : at + 8 + size], at + 8 + size + 1
        fields[name.decode()] = value.decode()
    return fields


def test_an_entry_has_the_fields_of_systemd(tmp_path: Path, journal: socket.socket) -> None:
    cores = directory(tmp_path / "202611292230", PROCESS)
    assert tell(cores, tmp_path / "socket") == 1
    assert received(journal) == {
        "MESSAGE_ID": "fc2e22bc6ee647b6b90729ab34a250b1",
        "PRIORITY": "2",
        "SYSLOG_IDENTIFIER": "vmcore2core",
        "MESSAGE": "Process 812 (postgres) of user 109 was alive when the kernel crashed; this core is from that "
        f"moment. It has registers and stacks alone.\n\n{STACK}",
        "COREDUMP_PID": "812",
        "COREDUMP_UID": "109",
        "COREDUMP_GID": "112",
        "COREDUMP_SIGNAL": "0",
        "COREDUMP_TIMESTAMP": "1795990207000000",
        "COREDUMP_COMM": "postgres",
        "COREDUMP_EXE": "/usr/lib/postgresql/17/bin/postgres",
        "COREDUMP_CMDLINE": "postgres: 17/main: checkpointer",
        "COREDUMP_HOSTNAME": "db1",
        "COREDUMP_FILENAME": str(cores / "core.postgres.812"),
        "COREDUMP_STACKTRACE": STACK,
        "COREDUMP_PACKAGE_JSON": '{"elfType": "coredump", "postgres": {"buildId": "a0b1"}}',
        "COREDUMP_CGROUP": "/system.slice/system-postgresql.slice/postgresql@17-main.service",
        "COREDUMP_UNIT": "postgresql@17-main.service",
        "COREDUMP_SLICE": "system-postgresql.slice",
    }


def test_what_is_not_known_has_no_field(tmp_path: Path, journal: socket.socket) -> None:
    unknown = {**PROCESS, "exe": None, "cgroups": None, "threads": [], "images": [], "capture": {"kept": "whole"}}
    tell(directory(tmp_path / "x", unknown), tmp_path / "socket")
    fields = received(journal)
    assert fields["MESSAGE"].endswith("this core is from that moment.")
    assert {name.removeprefix("COREDUMP_") for name in fields} == {
        "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE", "PID", "UID", "GID", "SIGNAL", "TIMESTAMP", "COMM",
        "CMDLINE", "HOSTNAME", "FILENAME",
    }  # fmt: skip


def test_an_entry_too_large_for_a_datagram_comes_as_a_file(tmp_path: Path, journal: socket.socket) -> None:
    frames = PROCESS["threads"][0]["frames"][:1] * 60_000
    tell(directory(tmp_path / "x", {**PROCESS, "threads": [{"tid": 812, "frames": frames}]}), tmp_path / "socket")
    assert received(journal)["MESSAGE"].count("\n#") == 60_000


@pytest.mark.usefixtures("journal")
def test_the_cores_have_systemds_attributes(tmp_path: Path) -> None:
    cores = directory(tmp_path / "x", PROCESS)
    try:
        os.setxattr(cores, "user.test", b"")
    except OSError:
        pytest.skip("the file system of temporary files has no extended attributes")
    tell(cores, tmp_path / "socket")
    core = cores / "core.postgres.812"
    assert {name: os.getxattr(core, name) for name in os.listxattr(core)} == {
        "user.coredump.pid": b"812",
        "user.coredump.uid": b"109",
        "user.coredump.gid": b"112",
        "user.coredump.signal": b"0",
        "user.coredump.timestamp": b"1795990207000000",
        "user.coredump.hostname": b"db1",
        "user.coredump.comm": b"postgres",
        "user.coredump.exe": b"/usr/lib/postgresql/17/bin/postgres",
    }


@pytest.mark.usefixtures("journal")
def test_each_directory_is_told_once(tmp_path: Path) -> None:
    cores = directory(tmp_path / "crash" / "202611292230", PROCESS)
    assert new_directories(tmp_path / "crash") == [cores]
    tell(cores, tmp_path / "socket")
    assert (cores / SENT_NAME).exists()
    assert new_directories(tmp_path / "crash") == []


def test_without_a_journal_it_is_told_again_later(tmp_path: Path) -> None:
    cores = directory(tmp_path / "crash" / "202611292230", PROCESS)
    with pytest.raises(OutputError, match="takes no entry: No such file"):
        tell(cores, tmp_path / "nowhere")
    assert new_directories(tmp_path / "crash") == [cores]


@pytest.mark.usefixtures("journal")
def test_a_core_that_is_gone_has_no_entry_and_no_path_leads_out(tmp_path: Path) -> None:
    cores = directory(tmp_path / "x", PROCESS)
    (cores / "core.postgres.812").unlink()
    assert tell(cores, tmp_path / "socket") == 0
    secret = tmp_path / "secret"
    secret.write_bytes(b"not a core")
    index = json.loads((cores / "index.json").read_text())
    index["processes"][0]["core"]["file"] = "../../secret"
    (cores / "index.json").write_text(json.dumps(index))
    assert tell(cores, tmp_path / "socket") == 0


def test_a_directory_without_an_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no index\.json, expected a directory of captured cores"):
        tell(tmp_path)


def test_cores_move_beside_the_dump_of_the_same_crash(tmp_path: Path) -> None:
    """kdump began a minute later than the capture, so its directory has another name."""
    cores = directory(tmp_path / "202611292230", PROCESS)
    now = time.time()
    for name, seconds in (("202611280101", -90_000), ("202611292231", 60), ("202611292359", 3_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"dump.{name}").write_bytes(b"KDUMP")
        os.utime(tmp_path / name, (now + seconds, now + seconds))
    moved = beside_the_dump(cores)
    assert moved == tmp_path / "202611292231" / "cores"
    assert (moved / "core.postgres.812").is_file()
    assert not (tmp_path / "202611292230").exists()
    assert beside_the_dump(moved) == moved


def test_cores_without_a_dump_stay(tmp_path: Path) -> None:
    cores = directory(tmp_path / "202611292230", PROCESS)
    assert beside_the_dump(cores) == cores


def test_values_of_several_lines_have_their_size_before_them() -> None:
    assert encoded({"A": "x=y", "B": "1\n2"}) == b"A=x=y\nB\n\x03\0\0\0\0\0\0\x001\n2\n"


def test_an_index_without_what_is_needed_is_an_error(tmp_path: Path) -> None:
    cores = directory(tmp_path / "x", {name: value for name, value in PROCESS.items() if name != "uid"})
    with pytest.raises(OutputError, match=r"index\.json has a process without 'uid'"):
        tell(cores)


def test_the_command(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vmcore2core", "journal", tmp_path / "none"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (
        2,
        f"vmcore2core journal: {tmp_path / 'none'} has no index.json, expected a directory of captured cores\n",
    )
