"""``vmcore-tasks bt --kernel`` on the other machines' bundled dumps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES, bundled, rows, tasks

Stacks = Callable[[str], dict[int, Any]]
MACHINES = ["debian-7.2-arm64", "debian-7.2-riscv64", "debian-7.2-s390x", "debian-7.2-ppc64el"]
ENDS = {"user mode", "the end of the stack", "it has exited, and its stack is gone"}
ON_A_CPU = re.compile(r"CPU \d was in user mode")
SLEEPS = ("poll", "ppoll", "pause")
"""poll() and pause(), which not all machines have system calls of their own for."""
WAITS = {"t-cond": ("futex",), "lab-static": SLEEPS, "t-nested": SLEEPS, "lab-dynamic": SLEEPS}


@pytest.fixture(scope="session")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    found: dict[str, dict[int, Any]] = {}

    def of(name: str) -> dict[int, Any]:
        if name not in found:
            dump = bundled(name, tmp_path_factory.mktemp("machines"))
            printed = tasks("bt", "-k", "--all", dump, "--json").stdout
            # Those of idle CPUs have all the same number.
            found[name] = {stack["tid"] or -1 - at: stack for at, stack in enumerate(rows(printed))}
            dump.unlink()
        return found[name]

    return of


def names(stack: Any) -> list[str]:
    return [frame["function"] for frame in stack["kernel"]["frames"]]


def truth(name: str, file: str) -> Path:
    return FIXTURES / name / "truth" / file


def test_all_frames_are_those_that_drgn_finds_with_the_kernels_debug_information(stacks: Stacks) -> None:
    """By call frame information, of which the dump has none; functions' names without what the compiler adds."""
    expected = json.loads(truth("debian-7.2-arm64", "kernel-stacks.json").read_text())
    assert sum(map(len, expected.values())) > 500
    found = stacks("debian-7.2-arm64")
    for tid, frames in expected.items():
        ours = found[int(tid)]["kernel"]["frames"]
        assert [f"{frame['address']} {frame['function'].split('.')[0]}" for frame in ours] == frames


@pytest.mark.parametrize("name", MACHINES)
def test_every_task_has_a_stack_to_its_end(stacks: Stacks, name: str) -> None:
    for stack in stacks(name).values():
        kernel = stack["kernel"]
        if not stack["pid"]:
            continue
        assert kernel["complete"]
        assert kernel["end"] in ENDS or ON_A_CPU.match(kernel["end"])
        assert None not in names(stack)
        if kernel["frames"] and "kernel thread" in stack["end"]:
            assert kernel["end"] == "the end of the stack"
            assert names(stack)[-1] in ("ret_from_fork", "ret_from_fork_kernel_asm", "start_kernel_thread")


@pytest.mark.parametrize("name", MACHINES[1:])  # of the first, both CPUs were in user mode
def test_an_idle_cpu_has_the_stack_of_its_idle_task(stacks: Stacks, name: str) -> None:
    idle = [stack for stack in stacks(name).values() if stack["comm"].startswith("swapper/")]
    assert idle
    for stack in idle:
        assert (stack["pid"], stack["tid"]) == (0, 0)
        if name == "debian-7.2-riscv64":
            # The other hart, which is the kernel's CPU 0, waited for an interrupt in the firmware.
            assert re.fullmatch(r"CPU 0 was at 0x8\w{7} in firmware", stack["kernel"]["end"])
            continue
        assert stack["kernel"]["complete"]
        assert stack["kernel"]["frames"][0]["found_by"] == "crash note"
        assert {"do_idle", "cpu_startup_entry"} <= {*names(stack)}


@pytest.mark.parametrize("name", MACHINES)
def test_what_waits_is_in_its_system_call(stacks: Stacks, name: str) -> None:
    compared = 0
    for program in ("lab-static", "lab-dynamic"):
        for line in truth(name, f"{program}.tasks").read_text().splitlines():
            tid, comm, _, call, *_ = line.split("\t")
            stack = stacks(name)[int(tid)]
            if comm not in WAITS or call == "running":
                continue
            number, *arguments = call.split()
            ours = stack["system_call"]
            assert ours["number"] == int(number)
            assert ours["name"] in WAITS[comm]
            values = [int(one["value"], 16) for one in ours["arguments"]]
            assert values == [int(value, 16) for value in arguments[: len(values)]]
            assert any(ours["name"] in function for function in names(stack))
            compared += 1
    assert compared == 6


@pytest.mark.parametrize("name", [*MACHINES[:1], "debian-5.10-amd64"])
def test_a_condition_variable_that_is_waited_for_has_its_name(name: str, tmp_path: Path) -> None:
    """In 5.10's dump, the kernel's stacks do not unwind: its ORC tables were left out."""
    document = json.loads(tasks("waits", bundled(name, tmp_path), "--comm", "t-cond", "--json").stdout)
    expected = [f"/bin/{program}:condition+0x28" for program in ("lab-static", "lab-dynamic")]
    found = [re.findall(r"\((.*)\)", row["wait"]["what"])[0] for row in document["threads"]]
    assert found[:2] == expected
    assert document["deadlocks"] == []


@pytest.mark.parametrize("name", MACHINES)
def test_kernel_threads_are_in_the_scheduler(stacks: Stacks, name: str) -> None:
    kthreadd = stacks(name)[2]
    assert [one for one in names(kthreadd) if one in ("__schedule", "schedule", "kthreadd")] == [
        "__schedule",
        "schedule",
        "kthreadd",
    ]
    assert kthreadd["system_call"] is None
