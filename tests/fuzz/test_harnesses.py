"""Each harness for a while, with a fixed seed, in a process whose memory is bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.fuzz import chains, containers, pipeline
from tests.fuzz.__main__ import GROWTH_MAX, HARNESSES, LED_FURTHER, MEMORY_MAX, Report, case

pytestmark = pytest.mark.no_cover

SECONDS = 60 if os.environ.get("CI") == "true" else 3
"""Of CPU time, for each harness."""


@pytest.mark.parametrize("name", HARNESSES)
def test_whatever_the_bytes_are_errors_are_sentences(name: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60 + 20 * SECONDS, check=False)
    assert result.stdout, result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["failures"] == []
    assert report["cases"] > 10
    assert report["results"].keys() & LED_FURTHER, "nothing was read"
    assert report["growth"] < GROWTH_MAX < MEMORY_MAX


def test_what_nothing_was_done_to_is_read() -> None:
    assert chains.run(b"") == "read"
    assert all(pipeline.run(bytes([number, 0])) == "read" for number in range(len(pipeline.GUESTS)))
    assert all(containers.run(bytes([number])) == "unnoticed" for number in range(len(containers.SAMPLES)))


def test_a_traceback_and_a_control_character_are_failures() -> None:
    from vmcore2core.errors import LayoutError

    def raises(error: Exception) -> Report:
        def run(_data: bytes) -> None:
            raise error

        report = Report("planted", 1)
        case(run, b"x", report)
        return report

    assert "KeyError" in raises(KeyError("x")).failures[0]
    assert "control characters" in raises(LayoutError("a\x1b[31m")).failures[0]
    assert raises(LayoutError("a sentence")).failures == []
