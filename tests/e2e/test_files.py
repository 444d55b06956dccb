"""``vmcore-tasks files`` against the guest's own /proc, for every descriptor.

Tests commands/tasks/files.py, tasks/openfiles.py, process/openfiles.py.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.commands.test_document import check
from tests.e2e.guests import FIXTURES, bundled, rows, tasks, tasks_json
from vmcore2core.commands.tasks.app import app
from vmcore2core.process import openfiles

TRUTH = FIXTURES / "waits-6.12" / "truth"
STATES = {1: "ESTAB", 7: "UNCONN", 10: "LISTEN"}


@pytest.fixture(scope="session")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled("waits-6.12", tmp_path_factory.mktemp("waits"))


@pytest.fixture(scope="session")
def result(dump: Path) -> subprocess.CompletedProcess[str]:
    return tasks("files", dump, "--json")


@pytest.fixture(scope="session")
def shown(result: subprocess.CompletedProcess[str]) -> dict[int, Any]:
    """What ``files`` says of each process."""
    assert (result.returncode, result.stderr) == (0, "")
    return {table["pid"]: table for table in rows(result.stdout)}


@cache
def proc() -> dict[str, str]:
    """What the guest's /proc said, by path."""
    parts = (TRUTH / "proc.txt").read_text().split("@@ ")[1:]
    return {path: text.strip("\n") for path, _, text in (part.partition("\n") for part in parts)}


def descriptors() -> list[tuple[int, int]]:
    """Every descriptor, but those that the guest's init had open to look at these."""
    found = re.findall(r"^@@ /proc/(\d+)/fd/(\d+)$", (TRUTH / "proc.txt").read_text(), re.M)
    return [(int(pid), int(fd)) for pid, fd in found if (pid, int(fd) > 3) != ("1", True)]


def pid_of(comm: str) -> int:
    return next(int(path.split("/")[2]) for path, text in proc().items() if path.endswith("/comm") and text == comm)


def file_of(shown: dict[int, Any], comm: str, path: str) -> Any:
    return next(row for row in shown[pid_of(comm)]["files"] if row["path"] == path)


def test_each_descriptor_is_as_proc_has_it(shown: dict[int, Any]) -> None:
    expected = descriptors()
    assert len(expected) > 100
    found = {(pid, row["fd"]): row for pid, table in shown.items() for row in table["files"]}
    assert sorted(found) == sorted(expected)
    for (pid, fd), row in found.items():
        info = dict(re.findall(r"^(\w+):\t(.*)$", proc()[f"/proc/{pid}/fdinfo/{fd}"], re.M))
        assert row["path"] == proc()[f"/proc/{pid}/fd/{fd}"]
        assert (str(int(row["pos"], 16)), row["flags"]) == (info["pos"], info["flags"])
        assert (str(row["mnt_id"]), str(row["inode"])) == (info["mnt_id"], info["ino"])
        assert row["problem"] is None


def test_the_document_has_its_form(result: subprocess.CompletedProcess[str]) -> None:
    check("vmcore-tasks-files", result.stdout)


def test_each_process_has_its_folders(shown: dict[int, Any]) -> None:
    for pid, table in shown.items():
        assert (table["cwd"], table["root"]) == (proc()[f"/proc/{pid}/cwd"], proc()[f"/proc/{pid}/root"])
    assert {table["cwd"] for table in shown.values()} == {"/", "/lab"}


def internet(name: str, *, wide: bool) -> dict[int, tuple[str, str, str, int, int]]:
    """Return /proc/net/tcp and its like: addresses, state and queues by inode."""
    found = {}
    for line in proc()[f"/proc/net/{name}"].splitlines()[1:]:
        _, local, peer, state, queues, *_ = fields = line.split()
        send, receive = (int(one, 16) for one in queues.split(":"))
        ends = (address(local, wide=wide), address(peer, wide=wide))
        found[int(fields[9])] = (*ends, STATES[int(state, 16)], receive, send)
    return found


def address(text: str, *, wide: bool) -> str:
    host, port = text.split(":")
    shown = int(port, 16) or "*"
    if wide:
        return f"[{'::1' if host.endswith('01000000') else '::'}]:{shown}"
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(host))) + f":{shown}"


@pytest.mark.parametrize(
    ("table", "netid", "wide"),
    [("tcp", "tcp", False), ("tcp6", "tcp", True), ("udp", "udp", False), ("raw", "raw", False)],
)
def test_internet_sockets_are_as_proc_net_has_them(shown: dict[int, Any], table: str, netid: str, wide: bool) -> None:
    truth = {inode: row for inode, row in internet(table, wide=wide).items() if inode}
    assert truth
    found = {}
    for row in (row for one in shown.values() for row in one["files"] if row["socket"]):
        socket = row["socket"]
        if socket["netid"] == netid and (socket["family"] == "inet6") == wide:
            # /proc has no limit of what may wait to be accepted.
            send = 0 if socket["state"] == "LISTEN" else socket["send_q"]
            found[row["inode"]] = (socket["local"], socket["peer"], socket["state"], socket["recv_q"], send)
    assert found == truth


def test_unix_and_netlink_sockets_are_as_proc_net_has_them(shown: dict[int, Any]) -> None:
    sockets = {row["inode"]: row["socket"] for one in shown.values() for row in one["files"] if row["socket"]}
    listed = [line.split() for line in proc()["/proc/net/unix"].splitlines()[1:]]
    names = {int(fields[6]): fields[7] if len(fields) > 7 else None for fields in listed if fields[6] != "0"}
    assert {inode: one["local"] for inode, one in sockets.items() if one["family"] == "unix"} == names
    types = {int(fields[6]): int(fields[4]) for fields in listed if fields[6] != "0"}
    words = {1: "stream", 2: "dgram", 5: "seqpacket"}
    assert {inode: one["type"] for inode, one in sockets.items() if one["family"] == "unix"} == {
        inode: words[number] for inode, number in types.items()
    }
    netlink = [line.split() for line in proc()["/proc/net/netlink"].splitlines()[1:]]
    ports = {int(fields[9]): f"{fields[1]}:{fields[2]}" for fields in netlink}
    ours = {inode: one["local"] for inode, one in sockets.items() if one["family"] == "netlink"}
    assert ours
    assert ours == {inode: ports[inode] for inode in ours}


def test_what_has_no_name_is_as_fdinfo_has_it(shown: dict[int, Any]) -> None:
    pid = pid_of("h-files")
    rows = {row["fd"]: row for row in shown[pid]["files"]}
    kinds: dict[str, int] = {}
    for fd, row in rows.items():
        info, details = proc()[f"/proc/{pid}/fdinfo/{fd}"], row["details"]
        kind = row["path"].removeprefix("anon_inode:").strip("[]")
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind == "eventfd":
            assert int(details["eventfd_count"], 16) == int(re.findall(r"eventfd-count: +(\w+)", info)[0], 16)
            assert details["eventfd_id"] == int(re.findall(r"eventfd-id: (\d+)", info)[0])
            assert details["eventfd_semaphore"] == bool(int(re.findall(r"eventfd-semaphore: (\d)", info)[0]))
        elif kind == "eventpoll":
            truth = re.findall(r"tfd: +(\d+) events: +(\w+) data: +(\w+)", info)
            ours = [(one["tfd"], int(one["events"], 16), int(one["data"], 16)) for one in details["targets"]]
            assert ours == [(int(tfd), int(events, 16), int(data, 16)) for tfd, events, data in truth]
            assert [one["file"] for one in details["targets"]] == [
                rows[one["tfd"]]["file"] for one in details["targets"]
            ]
        elif kind == "timerfd":
            seconds, nanoseconds = re.findall(r"it_interval: \((\d+), (\d+)\)", info)[0]
            assert details["interval"] == f"{seconds}.{int(nanoseconds):09}"
            assert (details["clockid"], details["ticks"]) == (1, 0)
        elif kind == "signalfd":
            assert details["sigmask"] == re.findall(r"sigmask:\t(\w+)", info)[0]
        elif kind == "inotify":
            truth_watches = re.findall(r"inotify wd:(\w+) ino:\w+ sdev:\w+ mask:(\w+)", info)
            assert [(f"{one['wd']:x}", one["mask"]) for one in details["watches"]] == [
                (wd, f"0x{mask}") for wd, mask in truth_watches
            ]
        elif kind == "pidfd":
            assert details["pid"] == int(re.findall(r"Pid:\t(\d+)", info)[0])
        elif kind == "io_uring":
            assert details["sq_entries"] - 1 == int(re.findall(r"SqMask:\t(\w+)", info)[0], 16)
            assert details["cq_head"] == int(re.findall(r"CqHead:\t(\d+)", info)[0])
    assert {name: kinds[name] for name in ("eventfd", "eventpoll", "timerfd", "signalfd", "inotify", "pidfd")} == {
        **dict.fromkeys(("eventpoll", "timerfd", "signalfd", "inotify", "pidfd"), 1),
        "eventfd": 2,
    }
    assert kinds["io_uring"] == 1


def test_the_other_ends_of_pipes_and_sockets_are_named(shown: dict[int, Any]) -> None:
    one, other = pid_of("d-pipe1"), pid_of("d-pipe2")
    ends = {
        row["access"]: [(end["pid"], end["access"]) for end in row["other_ends"]]
        for row in shown[one]["files"]
        if row["kind"] == "FIFO"
    }
    assert ends == {"r": [(other, "w")], "w": [(other, "r")]}
    holder = pid_of("h-files")
    pairs = {
        row["socket"]["local"]: row
        for row in shown[holder]["files"]
        if row["socket"] and row["socket"]["netid"] == "tcp" and row["socket"]["state"] == "ESTAB"
    }
    row = pairs["127.0.0.1:4004"]
    peer = pairs[row["socket"]["peer"]]
    assert [(end["pid"], end["fd"]) for end in row["other_ends"]] == [(holder, peer["fd"])]
    # This one's other end is in the queue of what listens, where nobody has it yet.
    waiting = next(row for row in shown[holder]["files"] if row["socket"] and row["socket"]["peer"] == "/lab/sock")
    assert waiting["other_ends"] == []
    filled = [row["details"]["bytes"] for row in shown[holder]["files"] if row["kind"] == "FIFO"]
    assert sorted(filled) == [0, 13, 13, 13]


@pytest.mark.parametrize(("option", "listed"), [("--pid", 1), ("--comm", 0)])
def test_json_of_a_chosen_process_lists_all_other_ends(
    dump: Path, monkeypatch: pytest.MonkeyPatch, option: str, listed: int
) -> None:
    monkeypatch.setattr(openfiles, "ENDS_MAX", 0)
    chosen = {"--pid": str(pid_of("d-pipe1")), "--comm": "d-pipe1"}[option]
    result = CliRunner().invoke(app, ["files", str(dump), option, chosen, "--json"])
    ends = [row for row in rows(result.stdout)[0]["files"] if row["kind"] == "FIFO"]
    assert [(len(row["other_ends"]), row["other_ends_count"]) for row in ends] == [(listed, 1)] * 2


def test_the_text_has_a_line_for_each(dump: Path, shown: dict[int, Any]) -> None:
    pid = pid_of("h-files")
    result = tasks("files", dump, "--pid", str(pid))
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert lines[:2] == [f"{pid} h-files", "cwd /lab  root /"]
    assert [int(line.split()[0]) for line in lines[3:]] == [row["fd"] for row in shown[pid]["files"]]
    assert any(
        re.search(r"SOCK socket:\[\d+\]  tcp ESTAB recv-q 5 send-q 0 127.0.0.1:4004 127.0.0.1:\d+  other end: ", line)
        for line in lines
    )
    assert any(line.endswith("other end: no process has it") for line in lines)
    assert any(line.split()[1:2] == ["path"] and line.endswith("DIR  /lab") for line in lines)


def test_processes_are_chosen_by_name(dump: Path) -> None:
    tables = tasks_json("files", dump, "--comm", "d-flock*")
    assert [table["comm"] for table in tables] == ["d-flock1", "d-flock2"]


def test_a_layout_without_open_files_is_one_sentence() -> None:
    result = tasks("files", FIXTURES / "debian-6.1-amd64" / "vmcore", "--pid", "4999")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "vmcore-tasks: no task has PID 4999 in this dump\n"
