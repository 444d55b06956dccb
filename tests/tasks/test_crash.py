"""Why a kernel died, from its messages: reports of several machines, as their consoles showed them.

Tests times.py, tasks/info.py.
"""

from __future__ import annotations

import json
import struct

import pytest

from tests.e2e.guests import FIXTURES
from tests.fuzz.overlay import poked
from vmcore2core.addresses import KernelAddr
from vmcore2core.kernel.message import Message
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.session import Session
from vmcore2core.tasks.crash import Cause, boot_time, cause
from vmcore2core.tasks.info import info
from vmcore2core.times import iso

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


def messages(text: str, caller: str | None = "T812") -> list[Message]:
    return [Message(0, line, caller=caller) for line in text.strip("\n").splitlines()]


# arch/x86 of Linux 6.1; the panic after an oops has no trace.
X86_OOPS = """
usb 1-1: new high-speed USB device
BUG: kernel NULL pointer dereference, address: 0000000000000010
#PF: supervisor read access in kernel mode
#PF: error_code(0x0000) - not-present page
PGD 0 P4D 0
Oops: 0000 [#1] PREEMPT SMP PTI
CPU: 1 PID: 812 Comm: insmod Not tainted 6.1.0-50-amd64 #1  Debian 6.1.176-1
RIP: 0010:broken_init+0x10/0x20 [broken]
Code: 0f 1f 44 00 00
RSP: 0018:ffffa0c5c0b1fc68 EFLAGS: 00010246
Call Trace:
 <TASK>
 ? broken_init+0x10/0x20 [broken]
 do_one_initcall+0x59/0x220
 do_syscall_64+0x5b/0xc0
 </TASK>
Modules linked in: broken(OE+)
CR2: 0000000000000010
---[ end trace 0000000000000000 ]---
RIP: 0010:broken_init+0x10/0x20 [broken]
Kernel panic - not syncing: Fatal exception
Kernel Offset: 0x2e000000 from 0xffffffff81000000
"""
ARM64_OOPS = """
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000
Mem abort info:
  ESR = 0x0000000096000045
Internal error: Oops: 0000000096000045 [#1] SMP
CPU: 0 PID: 812 Comm: sh Not tainted 6.1.0-50-arm64 #1  Debian 6.1.176-1
pstate: 60000005 (nZCv daif -PAN -UAO -TCO -DIT -SSBS BTYPE=--)
pc : sysrq_handle_crash+0x20/0x30
lr : __handle_sysrq+0x94/0x1a0
Call trace:
 sysrq_handle_crash+0x20/0x30
 write_sysrq_trigger+0x88/0x120
Code: aa1e03e9
Kernel panic - not syncing: Oops: Fatal exception
"""


def test_an_oops_is_told_with_the_line_that_began_it_and_its_trace() -> None:
    found = cause(messages(X86_OOPS))
    assert found == Cause(
        "Fatal exception",
        "BUG: kernel NULL pointer dereference, address: 0000000000000010",
        (
            "RIP: 0010:broken_init+0x10/0x20 [broken]",
            " <TASK>",
            " ? broken_init+0x10/0x20 [broken]",
            " do_one_initcall+0x59/0x220",
            " do_syscall_64+0x5b/0xc0",
            " </TASK>",
        ),
    )


def test_arm64_has_other_words() -> None:
    found = cause(messages(ARM64_OOPS))
    assert found == Cause(
        "Oops: Fatal exception",
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000",
        (
            "pc : sysrq_handle_crash+0x20/0x30",
            " sysrq_handle_crash+0x20/0x30",
            " write_sysrq_trigger+0x88/0x120",
        ),
    )


def test_an_older_oops_that_was_survived_is_not_the_cause() -> None:
    panic = "Kernel panic - not syncing: out of memory\nCPU: 0 PID: 1\nCall Trace:\n panic+0x1/0x2\nRebooting"
    assert cause(messages(X86_OOPS) + messages(panic)) == Cause("out of memory", None, (" panic+0x1/0x2",))


def test_what_other_cpus_print_meanwhile_is_not_of_the_trace() -> None:
    lines = messages(X86_OOPS)
    for at in range(len(lines), 0, -1):
        lines.insert(at, Message(0, "other_function+0x1/0x2", caller="C0"))
    assert cause(lines) == cause(messages(X86_OOPS))


def test_an_oops_alone_has_its_line_and_no_panic() -> None:
    lines = messages(X86_OOPS.partition("Kernel panic")[0])
    found = cause(lines)
    assert found is not None
    assert (found.panic, found.oops) == (None, "Oops: 0000 [#1] PREEMPT SMP PTI")


def test_a_kernel_that_runs_has_no_cause() -> None:
    assert cause(messages("NMI watchdog: Perf NMI watchdog permanently disabled\nRun /init as init process")) is None


def test_what_a_process_wrote_into_the_log_is_printable() -> None:
    found = cause([Message(0, "Kernel panic - not syncing: \x1b[2J\u202eevil\nx")])
    assert found == Cause("\\x1b[2J\\x202eevil\\x0ax", None, ())


def test_info_tells_the_cpu_and_the_task_that_panicked() -> None:
    """The guest ran on; with panic_cpu as a panic sets it, the task is the one that spun on CPU 1 there."""
    with Session([DUMP]) as session:
        panic_cpu = session.kernel.memory.to_phys(KernelAddr(session.kernel.layout.symbol("panic_cpu")))
        assert info(session)["crash"] is None
        crash = info(poked(session, {int(panic_cpu): struct.pack("<i", 1)}))["crash"]
    pids = json.loads((DUMP.parent / "truth" / "pids.json").read_text())
    tasks = (DUMP.parent / "truth" / "lab-dynamic.tasks").read_text().splitlines()
    (spinning,) = (int(line.split("\t")[0]) for line in tasks if line.split("\t")[1] == "t-spin")
    assert crash == {
        "panic": None,
        "oops": None,
        "time": None,
        "trace": [],
        "cpu": 1,
        "pid": spinning,
        "comm": "t-spin",
        "process": pids["lab-dynamic"],
        "process_comm": "lab-dynamic",
    }


def test_without_the_kernels_clock_times_of_day_count_back_from_the_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcore2core.tasks.crash.clock", lambda _kernel: None)
    with Session([DUMP]) as session:
        last = [Message(2_500_000_000, "last")]
        assert boot_time(session.kernel, session.boot.vmcoreinfo, last) == (
            None,
            "the time of day is not known: the layout has no timekeeper, and VMCOREINFO no CRASHTIME",
        )
        monkeypatch.setattr(VmcoreInfo, "crash_time", property(lambda _info: 1000))
        boot, doubt = boot_time(session.kernel, session.boot.vmcoreinfo, last)
    assert boot == 997.5
    assert doubt == "times of day are some seconds off: they are counted back from CRASHTIME"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1795428009, "2026-11-23T10:00:09Z"), (None, None), (1 << 62, None), (-(1 << 62), None)]
)
def test_times_are_iso_8601_in_utc(seconds: int | None, shown: str | None) -> None:
    assert iso(seconds) == shown
