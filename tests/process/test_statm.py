"""A process's memory sizes in ps, from its mm's counters, and the command line from its stack."""

from __future__ import annotations

from typing import Any

from tests.builders.kernelimage import EXPORT, MORE, Offsets
from tests.process.scene import CODE, STACK, VM_EXEC, VM_READ, VM_WRITE, Scene
from vmcore2core.containers.base import PageState
from vmcore2core.process.statm import Statm, statm

COUNTED: Offsets = {"mm_struct": {"total_vm": (600, 8), "rss_stat.count": (800, 32)}}
LINE = b"victim\0--name\0"
STRINGS = STACK + 0x2FF8  # so that they go on in the next page
PAGES = {"total_vm": 7, "rss_stat.count": b"".join(n.to_bytes(8, "little") for n in (1, 2, 9, 1))}


def scene(*, offsets: tuple[Offsets, ...] = (EXPORT, MORE, COUNTED), **members: Any) -> Scene:
    made = Scene(*offsets)
    mappings = ((CODE, CODE + 0x1000, VM_READ | VM_EXEC), (STACK, STACK + 0x4000, VM_READ | VM_WRITE))
    owner = made.mm(*mappings, **{**PAGES, "arg_start": STRINGS, "arg_end": STRINGS + len(LINE), **members})
    made.group(made.task(100), mm=owner)
    return made


def told(made: Scene) -> Statm | None:
    processes = made.processes()
    leader = processes.find(100)
    return statm(processes.mm_of(leader), processes.threads(leader), processes.swap)


def test_sizes_are_the_mm_s_and_arguments_may_go_on_in_the_next_page() -> None:
    made = scene()
    made.image.user_page(STACK + 0x2000, bytes(0xFF8) + LINE[:8])
    made.image.user_page(STACK + 0x3000, LINE[8:])
    assert told(made) == Statm(28, 16, LINE)  # swap entries are not resident


def test_arguments_that_are_in_no_page_or_in_none_of_the_dump_are_not_known() -> None:
    made = scene()
    paddr = made.image.user_page(STACK + 0x2000, bytes(0xFF8) + LINE[:8])
    assert told(made) == Statm(28, 16, LINE[:8], cut=True)  # the second page was never touched
    made.image.user_page(STACK + 0x3000, LINE[8:])
    made.states[paddr // 4096] = PageState.EXCLUDED
    assert told(made) == Statm(28, 16, None, cut=True)


def test_a_command_line_is_whole_however_long_it_is() -> None:
    line = b"--option\0" * 900
    made = scene(arg_start=STACK + 0x1F00, arg_end=STACK + 0x1F00 + len(line))
    pages = (bytes(0xF00) + line + bytes(0x4000))[: 3 * 0x1000]
    for at in range(0, len(pages), 0x1000):
        made.image.user_page(STACK + 0x1000 + at, pages[at : at + 0x1000])
    assert told(made) == Statm(28, 16, line)


def test_a_title_that_a_process_has_written_over_its_arguments_goes_on_behind_them() -> None:
    """sshd and nginx do: /proc/PID/cmdline has all of it (fs/proc/base.c: get_mm_proctitle())."""
    made = scene()
    title = b"sshd: listener on all addresses, 0 of 10"
    written = bytes(0xFF8) + title + b"\0SHELL=/bin/sh\0"
    made.image.user_page(STACK + 0x2000, written[:0x1000])
    made.image.user_page(STACK + 0x3000, written[0x1000:])
    assert told(made) == Statm(28, 16, title)


def test_an_end_before_the_start_is_no_command_line() -> None:
    assert told(scene(arg_end=STRINGS - 1)) == Statm(28, 16, None)


def test_without_the_counters_in_the_layout_it_is_for_others_to_say() -> None:
    assert told(scene(offsets=(EXPORT, MORE))) is None
