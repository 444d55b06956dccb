"""``vmcore-tasks ps``: options and columns as ps(1) has them, against the guest's own /proc.

Tests commands/tasks/columns.py, tasks/ps.py.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, tasks, tasks_json
from tests.fuzz.overlay import poked
from vmcore2core.choose import Choice, choose
from vmcore2core.commands.tasks.columns import ALIASES, COLUMNS, command
from vmcore2core.session import Session
from vmcore2core.tasks.ps import Part, TaskRow, processes

FOLDER = FIXTURES / "debian-6.1-amd64"
DUMP = FOLDER / "vmcore"
PIDS = json.loads((FOLDER / "truth/pids.json").read_text())
STATIC = str(PIDS["lab-static"])
THREADS = [line.split("\t") for line in (FOLDER / "truth/lab-static.tasks").read_text().splitlines()]


def table(*options: str) -> list[list[str]]:
    """Return the words of each line; the heading first."""
    result = tasks("ps", DUMP, *options)
    assert (result.returncode, result.stderr) == (0, "")
    return [line.split() for line in result.stdout.splitlines()]


def test_a_thread_s_number_stands_for_its_process() -> None:
    assert table("-p", THREADS[3][0], "-o", "pid,nlwp") == [["PID", "NLWP"], [STATIC, "6"]]


def test_threads_have_a_line_each_with_their_own_name_and_state() -> None:
    head, *rows = table("-L", "-p", STATIC, "-o", "pid,lwp,s,comm")
    assert head == ["PID", "LWP", "S", "COMMAND"]
    assert rows == [[STATIC, tid, state, comm] for tid, comm, state, _ in THREADS]
    assert table("-L", "-p", STATIC)[0][:3] == ["PID", "LWP", "PPID"]


def test_a_state_is_that_of_any_thread_and_letters_may_stand_together() -> None:
    """The leaders sleep, a thread of each spins: to ask the leaders alone finds neither."""
    victims = {STATIC, str(PIDS["lab-dynamic"])}
    assert {row[0] for row in table("--state", "R", "-o", "pid,s")[1:]} == victims
    assert {row[0] for row in table("--state", "RD", "-o", "pid")[1:]} == victims
    assert {row[0] for row in table("--state", "R", "--state", "Z", "-o", "pid")[1:]} == {*victims, str(PIDS["zombie"])}
    spinning = [tid for tid, comm, *_ in THREADS if comm == "t-spin"]
    assert [row[0] for row in table("-L", "-p", STATIC, "--state", "R", "-o", "tid")[1:]] == spinning


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-p", "4194304"), "no task has PID 4194304 in this dump"),
        (("--comm", "nobody"), "no process matches: --comm nobody fits none"),
        (("--state", "T"), "no process matches: --state T fits none"),
    ],
)
def test_where_nothing_is_found_the_heading_stands_alone(options: tuple[str, ...], said: str) -> None:
    result = tasks("ps", DUMP, *options, "-o", "pid")
    assert (result.returncode, result.stdout.split()) == (1, ["PID"])
    assert result.stderr.startswith(f"vmcore-tasks: {said}")


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("ps", ("--state", "Q"), "--state Q: expected letters of R S D T t X Z P I"),
        ("bt", ("--state", "RQ"), "--state Q: expected letters of R S D T t X Z P I"),
        ("ps", ("-o", "pid,colour"), "-o colour: expected some of pid, lwp, ppid"),
        ("ps", ("--tree", "--threads"), "--tree shows processes, and --threads shows threads"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(command: str, options: tuple[str, ...], said: str) -> None:
    result = tasks(command, DUMP, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_columns_have_what_proc_has() -> None:
    status = dict(re.findall(r"^(\w+):\t(.*)$", (FOLDER / "truth/lab-static.status").read_text(), re.MULTILINE))
    line = (FOLDER / "truth/lab-static.cmdline").read_text().rstrip("\0").replace("\0", " ")
    (row,) = tasks_json("ps", DUMP, "-p", STATIC)
    ids = [row[name] for name in ("ruid", "uid", "rgid", "gid")]
    assert ids == [int(number) for name in ("Uid", "Gid") for number in status[name].split()[:2]]
    assert (row["command"], row["exe"], row["containers"]) == (line, "/bin/lab-static", [])
    assert row["started"].startswith("2026-11-23T15:55:4")
    spinning = {one["comm"]: one["cpu_seconds"] for one in tasks_json("ps", DUMP, "-L", "-p", STATIC)}
    assert spinning["t-spin"] > 0.1 > spinning["t-cond"]
    assert abs(sum(spinning.values()) - row["cpu_seconds"]) < 0.1


def test_ids_are_the_effective_ones_and_those_with_an_r_the_real_ones() -> None:
    """All of a guest's are 0, so each gets a number of its own: struct cred has 4 bytes for one."""
    with Session([DUMP]) as session:
        cred = session.processes.find(int(STATIC)).follow("real_cred", "cred")
        assert cred is not None
        wanted = {"uid": 1, "gid": 2, "suid": 3, "sgid": 4, "euid": 5, "egid": 6, "fsuid": 7, "fsgid": 8}
        to_phys = session.kernel.memory.to_phys
        pokes = {int(to_phys(cred.addr_of(name))): struct.pack("<I", number) for name, number in wanted.items()}
        changed = poked(session, pokes)
        chosen, _ = choose(changed.processes, Choice(pid=(int(STATIC),)))
        (row,) = processes(changed, chosen, Part.IDS)
    assert (row.uid, row.gid, row.ruid, row.rgid) == (5, 6, 1, 2)


def test_every_column_and_every_alias_of_one_has_a_heading() -> None:
    heads = table("-p", "1", "-o", ",".join(COLUMNS))[0]
    assert heads == [column.head for column in COLUMNS.values()]
    assert set(ALIASES.values()) <= COLUMNS.keys()
    assert not ALIASES.keys() & COLUMNS.keys()


def row(**values: object) -> TaskRow:
    known: dict[str, object] = {"pid": 1, "tid": 1, "ppid": 0, "state": "S", "cpu": None, "kernel_thread": False}
    known |= {"threads": 1, "vsz_kib": 1, "rss_kib": 1, "comm": "x", "command": "x -y", "found_by": "task list"}
    return TaskRow(**{**known, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.9, "00:00:00"), (59.99, "00:00:59"), (3661, "01:01:01"), (86399, "23:59:59"), (90061, "01-01:01:01")],
)
def test_times_are_as_ps_writes_them(seconds: float, shown: str) -> None:
    assert COLUMNS["time"].text(row(cpu_seconds=seconds)).strip() == shown


def test_what_is_not_known_is_a_dash_and_names_stand_in_brackets() -> None:
    assert COLUMNS["time"].text(row()).strip() == "-"
    assert COLUMNS["lstart"].text(row(started=1e300)).strip() == "-"
    assert command(row(kernel_thread=True, comm="kswapd0")) == "[kswapd0]"
    assert command(row(state="Z", command=None)) == "[x] <defunct>"


def test_the_version_is_the_package_s() -> None:
    assert re.fullmatch(r"vmcore-tasks \d+\.\d+\.\d+\n", tasks("--version").stdout)


def test_a_container_is_told(tmp_path: Path) -> None:
    from tests.conftest import unpack

    dump = unpack(FIXTURES / "containers-6.1" / "vmcore.zst", tmp_path / "vmcore")
    found = [one for one in tasks_json("ps", dump) if one["containers"]]
    assert found
    shown = tasks("ps", dump, "-p", str(found[0]["pid"]), "-o", "container,cgroup").stdout.splitlines()[1].split()
    assert shown == [",".join(found[0]["containers"]), ",".join(found[0]["cgroups"])]
