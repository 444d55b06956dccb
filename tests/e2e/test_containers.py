"""Containers of a real guest: chosen, indexed and given their system's files as its own /proc had them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES, bundled, convert
from vmcore2core.choose import Choice, choose
from vmcore2core.session import Session

TRUTH = FIXTURES / "containers-6.1" / "truth"
APPS: dict[str, int] = json.loads((TRUTH / "apps.json").read_text())
IN_CONTAINERS = ("docker", "pod", "podman")


def identities() -> dict[int, dict[str, str]]:
    """Return what /proc said of each process: Name, Uid, NSpid, Cgroup."""
    found: dict[int, dict[str, str]] = {}
    for line in (TRUTH / "identities.txt").read_text().splitlines():
        pid, key, value = line.split("\t", 2)
        found.setdefault(int(pid), {})[key.rstrip(":")] = value
    return found


PROC = identities()
CGROUPS = {name: PROC[pid]["Cgroup"].removeprefix("0::") for name, pid in APPS.items()}
IDS = {name: re.findall("[0-9a-f]{64}", CGROUPS[name])[-1] for name in IN_CONTAINERS}


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled("containers-6.1", tmp_path_factory.mktemp("containers"))


@pytest.fixture(scope="module")
def session(dump: Path) -> Iterator[Session]:
    with Session([dump]) as opened:
        yield opened


@pytest.fixture(scope="module")
def cores(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cores")
    result = convert(dump, "--comm", "lab-[acs]*", "-o", folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def processes(cores: Path) -> dict[int, dict[str, Any]]:
    return {process["pid"]: process for process in json.loads((cores / "index.json").read_text())["processes"]}


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def that(fits: Callable[[dict[str, str]], bool]) -> set[int]:
    """Return the processes, kernel threads aside, of which /proc said what fits."""
    return {pid for pid, said in PROC.items() if said["Name"].startswith(("lab-", "init")) and fits(said)}


@pytest.mark.parametrize("name", IN_CONTAINERS)
def test_a_container_is_its_processes_alone(session: Session, name: str) -> None:
    inside = that(lambda said: said["Cgroup"] == "0::" + CGROUPS[name])
    assert len(inside) == 2
    for choice in (
        Choice(container=(IDS[name],)),
        Choice(container=(IDS[name][:6],)),
        Choice(cgroup=(CGROUPS[name],)),
        Choice(cgroup=(f"*{IDS[name][:12]}*",), exclude=("lab-conmon",)),
    ):
        assert {one.pid for one in choose(session.processes, choice)[0]} == inside


@pytest.mark.parametrize("number", [1, 2])
def test_a_pid_in_containers_is_that_of_each(session: Session, number: int) -> None:
    expected = that(lambda said: number in numbers(said["NSpid"])[1:])
    assert len(expected) == len(IN_CONTAINERS)
    found, _ = choose(session.processes, Choice(nspid=(number,)))
    assert {one.pid for one in found} == expected
    found, _ = choose(session.processes, Choice(nspid=(number,), container=(IDS["pod"],)))
    assert [one.pid for one in found] == [APPS["pod"] + number - 1]


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_user_is_its_processes(session: Session, uid: int) -> None:
    expected = that(lambda said: numbers(said["Uid"])[0] == uid)
    assert {one.pid for one in choose(session.processes, Choice(uid=(uid,)))[0]} == expected


def test_the_index_says_who_each_was(processes: dict[int, dict[str, Any]]) -> None:
    assert len(processes) == len(that(lambda said: said["Name"] != "init"))
    for pid, process in processes.items():
        said = PROC[pid]
        assert process["comm"] == said["Name"]
        assert process["uid"] == numbers(said["Uid"])[0]
        assert process["nspid"] == numbers(said["NSpid"])
        assert process["cgroups"] == [said["Cgroup"].removeprefix("0::")]
    assert {name: processes[APPS[name]]["containers"] for name in APPS} == {
        "outside": [],
        "beside": [],
        **{name: [IDS[name]] for name in IN_CONTAINERS},
    }


@pytest.mark.parametrize("name", ["outside", *IN_CONTAINERS])
def test_each_has_its_own_systems_files(cores: Path, processes: dict[int, dict[str, Any]], name: str) -> None:
    debug = processes[APPS[name]]["debug"]
    root = cores / debug["sysroot"]
    assert (root / "etc/os-release").read_bytes() == (TRUTH / f"{name}.os-release").read_bytes()
    program = (root / debug["program"].lstrip("/")).read_bytes()
    assert program[:4] == b"\x7fELF"
    assert program.endswith(b"\0" if name == "outside" else b"\0" + name.encode())


def test_what_is_in_other_systems_has_other_folders(processes: dict[int, dict[str, Any]]) -> None:
    folders = {name: processes[APPS[name]]["debug"]["sysroot"] for name in ("outside", *IN_CONTAINERS)}
    assert sorted(folders.values()) == ["sysroot", "sysroot.2", "sysroot.3", "sysroot.4"]
    for name in IN_CONTAINERS:
        assert processes[APPS[name] + 1]["debug"]["sysroot"] == folders[name]  # its child
