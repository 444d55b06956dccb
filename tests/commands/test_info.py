"""``vmcore-tasks info`` of dumps whose guests said how they died."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, tasks


@pytest.mark.corpus
def test_a_crash_comes_first(corpus: Path) -> None:
    """The guest wrote c to /proc/sysrq-trigger, from its PID 1."""
    result = tasks("info", corpus / "debian-6.1-amd64-kdump" / "vmcore.zlib-d31-userstack")
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "panic: sysrq triggered crash",
        "crashed: time 2026-11-23T10:00:09Z, cpu 1, pid 1, comm init",
    ]
    assert lines[2:5] == ["trace:", "   <TASK>", "   dump_stack_lvl+0x44/0x5c"]
    assert "user pages left out: page cache, private page cache, user data" in lines
    assert result.returncode == 0


def test_a_running_kernel_has_no_crash() -> None:
    result = tasks("info", FIXTURES / "debian-6.1-amd64" / "vmcore")
    assert result.returncode == 0
    assert "panic:" not in result.stdout
    assert "crashed" not in result.stdout
    assert "user pages left out" not in result.stdout  # it is -d 1: pages of zeros alone
    assert "\nclock: 2026-11-23T15:55:4" in result.stdout
    assert "crash time: VMCOREINFO has no CRASHTIME (the kernel did not panic)" in result.stdout
