"""Why a kernel died, out of what kernels print: reports of several machines, as their consoles showed them."""

from __future__ import annotations

import pytest

from vmcore2core.crash import Cause, cause
from vmcore2core.kernel.message import Message
from vmcore2core.times import iso


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


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1795428009, "2026-11-23T10:00:09Z"), (None, None), (1 << 62, None), (-(1 << 62), None)]
)
def test_times_are_iso_8601_in_utc(seconds: int | None, shown: str | None) -> None:
    assert iso(seconds) == shown
