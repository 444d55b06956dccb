"""``vmcore-tasks bt --kernel`` against the text that the guest's own kernel printed of its stacks (sysrq-t).

Tests commands/tasks/stack_groups.py.
"""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_document import check
from tests.e2e.guests import FIXTURES, bundled, convert_all, rows, tasks

TRUTH = FIXTURES / "waits-6.12" / "truth"
MOVED_ON = re.compile(r"^(kworker|ksoftirqd|kcompactd|rcu_|init$|kthreadd|b-kernel|migration|jbd2)")
"""What ran between the dump and the text."""


@pytest.fixture(scope="session")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled("waits-6.12", tmp_path_factory.mktemp("stacks"))


@pytest.fixture(scope="session")
def result(dump: Path) -> subprocess.CompletedProcess[str]:
    return tasks("bt", "-k", "--all", dump, "--json")


@pytest.fixture(scope="session")
def stacks(result: subprocess.CompletedProcess[str]) -> dict[int, Any]:
    found = {stack["tid"]: stack for stack in rows(result.stdout)}
    assert (result.returncode, {one["comm"] for one in found.values() if not one["complete"]}) == (0, set())
    return found


@pytest.fixture(scope="session")
def text(dump: Path) -> dict[int, str]:
    """What ``bt`` prints of each thread."""
    parts = tasks("bt", "-k", "--all", dump).stdout.split("\n\n")
    return {int(part.split()[1]): part for part in parts}


@cache
def printed() -> dict[int, tuple[str, list[str]]]:
    """Name and frames of each thread as sysrq-t has them, without what the kernel was in doubt of."""
    found = {}
    for part in (TRUTH / "sysrq-t.txt").read_text().split("\ntask:")[1:]:
        comm, pid = part.split()[0], re.findall(r"\bpid:(\d+)", part)[0]
        trace = re.findall(r"<TASK>\n(.*?)\n </TASK>", part, re.S)
        lines = trace[0].splitlines() if trace else []
        frames = [line.strip() for line in lines if re.fullmatch(r" \w[\w.]*\+0x\w+/0x\w+( \[\w+\])?", line)]
        found[int(pid)] = comm, frames
    return found


def shown(frame: dict[str, Any]) -> str:
    module = f" [{frame['module']}]" if frame["module"] else ""
    return f"{frame['function']}+{frame['offset']}/{frame['size']}{module}"


def thread(stacks: dict[int, Any], comm: str) -> Any:
    return next(stack for stack in stacks.values() if stack["comm"] == comm)


def test_all_frames_of_what_slept_are_those_that_the_kernel_printed(stacks: dict[int, Any]) -> None:
    compared = 0
    for tid, (comm, frames) in printed().items():
        if tid not in stacks or MOVED_ON.match(comm):
            continue
        kernel = stacks[tid]["kernel"]
        assert [shown(frame) for frame in kernel["frames"]] == frames, comm
        assert kernel["complete"]
        compared += len(frames)
    assert compared > 250


def test_the_document_has_its_form(result: subprocess.CompletedProcess[str]) -> None:
    check("vmcore-tasks-bt", result.stdout)


def test_every_task_has_a_stack_to_its_end(stacks: dict[int, Any]) -> None:
    ends = {stack["kernel"]["end"] for stack in stacks.values()}
    assert ends == {"user mode", "the end of the stack"}
    assert all(stack["kernel"]["complete"] for stack in stacks.values())
    threads = [stack for stack in stacks.values() if stack["kernel"]["end"] == "the end of the stack"]
    assert {stack["kernel"]["frames"][-1]["function"] for stack in threads if stack["pid"]} == {"ret_from_fork_asm"}
    assert all("is a kernel thread" in stack["end"] or not stack["pid"] for stack in threads)


def test_an_idle_cpu_has_the_stack_of_its_idle_task(stacks: dict[int, Any]) -> None:
    names = [frame["function"] for frame in stacks[0]["kernel"]["frames"]]
    assert (stacks[0]["comm"], names[-1]) == ("swapper/0", "common_startup_64")
    assert {"do_idle", "cpu_startup_entry", "rest_init", "start_kernel"} <= {*names}


def test_a_task_that_was_on_a_cpu_has_the_stack_of_its_note(stacks: dict[int, Any]) -> None:
    kernel = thread(stacks, "b-kernel")["kernel"]
    assert [frame["found_by"] for frame in kernel["frames"]] == ["crash note", *["ORC"] * (len(kernel["frames"]) - 1)]
    assert kernel["frames"][-1]["function"] == "entry_SYSCALL_64_after_hwframe"


@pytest.mark.parametrize(
    ("comm", "call"),
    [
        ("d-mutex1", r"futex\(uaddr=0x7\w+, op=FUTEX_WAIT, val=2, utime=NULL, uaddr2=\w+, val3=\w+\)"),
        ("t-cond", r"futex\(uaddr=0x\w+, op=FUTEX_WAIT_BITSET_PRIVATE\|FUTEX_CLOCK_REALTIME, val=0, utime=NULL, .*\)"),
        ("t-pi2", r"futex\(uaddr=0x\w+, op=FUTEX_LOCK_PI2?_PRIVATE, .*\)"),
        ("d-flock1", r"flock\(fd=\d+, cmd=2\)"),
        ("t-poll", r"poll\(ufds=0x\w+, nfds=1, timeout_msecs=-1\)"),
        ("t-epoll", r"epoll_wait\(epfd=\d+, events=0x\w+, maxevents=1, timeout=-1\)"),
        ("w-vfork", r"vfork\(\)"),
        ("h-files", r"pause\(\)"),
        ("w-waits", r"wait4\(upid=\d+, stat_addr=NULL, options=0, ru=NULL\)"),
        ("b-kernel", r"read\(fd=\d+, buf=0x\w+, count=4194304\)"),
    ],
)
def test_the_system_call_is_named_with_its_arguments(
    text: dict[int, str], stacks: dict[int, Any], comm: str, call: str
) -> None:
    stack = thread(stacks, comm)
    (line,) = [line for line in text[stack["tid"]].splitlines() if line.startswith("system call ")]
    assert re.fullmatch(call, line.removeprefix("system call ")), line
    # As /proc/TID/syscall has them.
    truth = re.findall(rf"^@@ /proc/\d+/task/{stack['tid']}/syscall\n(.*)$", (TRUTH / "proc.txt").read_text(), re.M)[0]
    if truth != "running":
        number, *arguments = truth.split()
        assert stack["system_call"]["number"] == int(number)
        ours = [one["value"] for one in stack["system_call"]["arguments"]]
        assert [int(value, 16) for value in ours] == [int(value, 16) for value in arguments[: len(ours)]]


def test_vfork_has_its_caller_though_the_stack_has_its_return_address_no_more(stacks: dict[int, Any]) -> None:
    """glibc keeps it in a register, as the child uses the same stack."""
    stack = next(one for one in stacks.values() if one["comm"] == "w-vfork" and one["state"] == "D")
    assert [frame["function"] for frame in stack["frames"]][:4] == ["vfork", "w_vfork", "child", "main"]


def test_kernel_threads_have_no_user_frames_and_no_system_call(stacks: dict[int, Any]) -> None:
    kthreadd = stacks[2]
    assert (kthreadd["frames"], kthreadd["system_call"]) == ([], None)
    assert [frame["function"] for frame in kthreadd["kernel"]["frames"][:3]] == ["__schedule", "schedule", "kthreadd"]


def test_the_users_frames_follow(dump: Path, text: dict[int, str], stacks: dict[int, Any]) -> None:
    stack = thread(stacks, "d-mutex1")
    kernel, user = text[stack["tid"]].split("system call ")
    assert "kernel complete: user mode\n" in kernel
    assert [frame["function"] for frame in stack["frames"]][1:3] == ["pthread_mutex_lock", "abba1"]
    assert "abba1+0x" in user
    assert "kernel" not in tasks("bt", dump, "--tid", str(stack["tid"])).stdout


def functions(stack: Any) -> list[str]:
    """Return the functions of a thread, innermost first, the kernel's marked."""
    user = [frame["function"] for frame in stack["frames"]]
    return [f"{frame['function']}_[k]" for frame in stack["kernel"]["frames"]] + user


def test_equal_stacks_are_one_group(dump: Path, stacks: dict[int, Any]) -> None:
    printed = tasks("bt", "-k", "--all", "--group", "--json", dump).stdout
    check("vmcore-tasks-bt-groups", printed)
    expected: dict[tuple[str, ...], set[int]] = {}
    for tid, stack in stacks.items():
        expected.setdefault(tuple(functions(stack)), set()).add(tid)
    found = {
        tuple(one["name"] + ("_[k]" if one["kind"] == "kernel" else "") for one in group["functions"]): {
            thread["tid"] for thread in group["threads"]
        }
        for group in rows(printed)
    }
    assert found == expected
    sizes = [len(group["threads"]) for group in rows(printed)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 20  # workers of the kernel
    assert len(stacks) == sum(sizes)


def test_groups_as_text_have_a_heading_and_their_functions(dump: Path) -> None:
    lines = tasks("bt", "--group", dump, "--comm", "w-waits", "--comm", "d-static").stdout.splitlines()
    headings = [line for line in lines if re.match(r"\d+ threads?: ", line)]
    assert len(headings) == 9
    at = next(i for i, line in enumerate(lines) if re.fullmatch(r"1 thread: t-static2 \d+ \(\d+\)", line))
    assert [line.split()[1] for line in lines[at + 1 : at + 5]] == [
        *("__lll_lock_wait", "pthread_mutex_lock", "static2", "start_thread")
    ]


def test_folded_text_has_each_thread_once(dump: Path, stacks: dict[int, Any]) -> None:
    lines = tasks("bt", "-k", "--all", "--folded", dump).stdout.splitlines()
    found = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in lines}
    assert len(found) == len(lines)
    expected: dict[str, int] = {}
    for stack in stacks.values():
        line = ";".join([stack["comm"], *reversed(functions(stack))])
        expected[line] = expected.get(line, 0) + 1
    assert found == expected


def test_speedscope_has_one_sample_a_thread(dump: Path, stacks: dict[int, Any]) -> None:
    document = json.loads(tasks("bt", "-k", "--all", "--speedscope", dump).stdout)
    frames = [frame["name"] for frame in document["shared"]["frames"]]
    (profile,) = document["profiles"]
    assert (profile["type"], profile["unit"]) == ("sampled", "none")
    assert profile["endValue"] == len(profile["samples"]) == len(profile["weights"]) == len(stacks)
    ways = sorted([frames[index] for index in sample] for sample in profile["samples"])
    assert ways == sorted([f"{stack['comm']} {stack['pid']}", *reversed(functions(stack))] for stack in stacks.values())
    assert {frame["file"] for frame in document["shared"]["frames"] if "file" in frame} == {"/init"}


def test_forms_do_not_mix(dump: Path) -> None:
    result = tasks("bt", "--folded", "--json", "--all", dump)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("vmcore-tasks: --group, --folded, --speedscope and --json are different forms")


def test_without_pages_of_the_orc_table_each_stack_says_where_it_ends() -> None:
    result = tasks("bt", "-k", "--pid", "86", FIXTURES / "debian-6.1-amd64" / "vmcore")
    assert (result.returncode, result.stderr) == (3, "")
    ends = [line for line in result.stdout.splitlines() if line.startswith("kernel stopped: ")]
    assert len(ends) == 6
    assert all("not in the dump" in line for line in ends)


def test_the_index_has_what_bt_has(dump: Path, stacks: dict[int, Any], tmp_path: Path) -> None:
    assert convert_all(dump, "--exclude", "init", "--no-companions", "-o", tmp_path / "cores").returncode == 0
    index = json.loads((tmp_path / "cores" / "index.json").read_text())
    threads = [thread for process in index["processes"] for thread in process["threads"]]
    assert len(threads) > 20
    assert any(thread["system_call"] is not None and thread["system_call"]["name"] == "futex" for thread in threads)
    for thread in threads:
        stack = stacks[thread["tid"]]
        for frame in stack["kernel"]["frames"]:
            del frame["number"]
        assert thread["kernel"] == {"frames": stack["kernel"]["frames"], "end": None}
        assert thread["system_call"] == stack["system_call"]
