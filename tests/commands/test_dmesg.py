"""``vmcore-tasks dmesg``: against what makedumpfile and the guests' own dmesg show for the same kernels.

Tests tasks/messages.py.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.builders.old_kernel import OldKernel
from tests.conftest import unpack
from tests.e2e.guests import FIXTURES, bundled, tasks
from tests.needs import need
from vmcore2core.commands.tasks.dmesg import _document, _line
from vmcore2core.kernel.message import LEVELS, Message
from vmcore2core.session import Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


def words(line: str) -> list[str]:
    """Return a line's time and words: tabs and columns are each program's own."""
    time, found, rest = line.partition("] ")
    return [time.replace(" ", ""), *rest.split()] if found and line.startswith("[") else line.split()


def old_kernel(folder: Path) -> Path:
    """Return a dump with struct printk_log records, which go round in their buffer."""
    made = OldKernel()
    made.record(0, b"Linux version 5.4.0-old", 5, 1)
    made.record(500_000_999, b"two lines\nof one message", 4, 1, b"SUBSYSTEM=pci\0DEVICE=+pci:0000")
    for number in range(400, 420):
        made.record(number * 1_000_001_000, b"message %d" % number, number % 8, 812 if number % 3 else 0x8000_0003)
    return made.write(folder / "vmcore")


@pytest.mark.parametrize(
    ("make", "count"),
    [(lambda folder: bundled("debian-5.10-amd64", folder), 367), (old_kernel, 23)],
    ids=["5.10", "5.4"],
)
def test_messages_are_those_that_makedumpfile_reads(make: Callable[[Path], Path], count: int, tmp_path: Path) -> None:
    dump = make(tmp_path)
    theirs = tmp_path / "dmesg.txt"
    subprocess.run([need("makedumpfile"), "--dump-dmesg", dump, theirs], capture_output=True, check=True)
    lines = theirs.read_text().splitlines()
    assert len(lines) == count
    callers = re.match(r"\[ *[\d.]+\] \[ *[TC]\d+\] ", lines[0]) is not None  # newer makedumpfiles show them
    result = tasks("dmesg", dump, *(["--caller"] if callers else []))
    assert (result.returncode, result.stderr) == (0, "")
    before = 3 if callers else 1  # the time; "[", "T812]"
    for ours, line in zip(result.stdout.splitlines(), lines, strict=True):
        # Before further lines of a message, makedumpfile has spaces in the place of what is before the text.
        assert words(ours)[0 if line.startswith("[") else before :] == words(line)


def test_levels_and_callers_of_a_kernel_before_5_10(tmp_path: Path) -> None:
    shown = tasks("dmesg", old_kernel(tmp_path), "-x", "--caller", "-l", "alert").stdout.splitlines()
    assert shown == [
        "kern  :alert : [  401.000401] [   T812] message 401",
        "kern  :alert : [  409.000409] [   T812] message 409",
        "kern  :alert : [  417.000417] [     C3] message 417",
    ]


def test_a_kernel_whose_types_nobody_tells_has_messages(tmp_path: Path) -> None:
    """Debian's 32-bit kernels have no BTF; where the messages are is all in VMCOREINFO."""
    dump = bundled("debian-6.1-i386-pae", tmp_path)
    assert "--vmlinux" in tasks("ps", dump).stderr
    alone = tasks("dmesg", dump)
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout.startswith("[    0.000000] Linux version 6.1.")
    layout = FIXTURES / "debian-6.1-i386-pae" / "layout.txt"
    assert tasks("dmesg", dump, "--vmcoreinfo", layout).stdout == alone.stdout
    times = tasks("dmesg", dump, "-T")
    assert times.stderr == (
        "vmcore-tasks: the time of day is not known: the layout has no timekeeper, and VMCOREINFO no CRASHTIME\n"
    )
    assert times.stdout == alone.stdout


@pytest.mark.corpus
def test_messages_are_those_of_the_guests_dmesg(corpus: Path, tmp_path: Path) -> None:
    folder = FIXTURES / "debian-6.1-mips64el"
    dump = unpack(folder / "vmcore.zst", tmp_path / "vmcore")
    shown = tasks("dmesg", dump, "--vmcoreinfo", folder / "layout.txt").stdout
    truth = (corpus / "debian-6.1-mips64el" / "truth" / "dmesg.txt").read_text().splitlines()
    assert list(map(words, shown.splitlines())) == list(map(words, truth))


@pytest.mark.parametrize("name", ["debian-7.2-amd64", "debian-7.2-s390x"])
def test_levels_are_where_the_kernels_own_types_have_them(name: str, tmp_path: Path) -> None:
    with Session([bundled(name, tmp_path)]) as session:
        level, length = (session.kernel.layout.member("printk_info", member) for member in ("level", "text_len"))
        assert (level.offset, level.bit_offset, level.bit_size) == (length.offset + 3, 5, 3)


def test_a_level_is_as_dmesg_takes_it() -> None:
    rows = tasks("dmesg", DUMP, "-x").stdout.splitlines()
    levels = [line[6:13].strip(": ") for line in rows]
    assert set(levels) <= set(LEVELS)
    assert {"warn", "info", "debug"} <= set(levels)
    assert all(line.startswith("kern  :") for line in rows)
    for words, wanted in (
        ("warn", {"warn"}),
        ("err,info", {"err", "info"}),
        ("warn+", {"emerg", "alert", "crit", "err", "warn"}),
        ("+info", {"info", "debug"}),
    ):
        assert tasks("dmesg", DUMP, "-x", "-l", words).stdout.splitlines() == [
            line for line, level in zip(rows, levels, strict=True) if level in wanted
        ]
    refused = tasks("dmesg", DUMP, "-l", "warning")
    assert refused.returncode == 2
    assert "expected emerg, alert, crit, err, warn, notice, info, debug" in " ".join(
        refused.stderr.replace("│", "").split()
    )


def test_the_time_of_day_is_what_the_clock_was_set_to() -> None:
    (line,) = (one for one in tasks("dmesg", DUMP, "-T", "--caller").stdout.splitlines() if "system clock to" in one)
    shown, caller, said = re.fullmatch(r"\[(.{24})\] \[ *(\w+)\] .*system clock to (\S+) UTC .*", line).groups()  # type: ignore[union-attr]
    assert datetime.strptime(shown, "%c").isoformat() == said
    assert caller == "T1"


def test_what_a_process_wrote_to_the_log_reaches_no_terminal() -> None:
    """Whoever may write to /dev/kmsg may have ESC, ends of lines, and characters that turn text around in it."""
    hostile = Message(0, "\x1b[2J\r\u202e[bold]evil\u2028\x07\tx")
    for shown in (_line(hostile, None, decode=True, caller=True), str(_document(hostile)["text"])):
        assert shown.replace("\t", " ").isprintable()
        assert "\\x1b[2J\\x0d\\x202e[bold]evil\\x2028\\x07" in shown


def test_json_has_all_of_a_message() -> None:
    document = tasks("dmesg", DUMP, "--json", "-l", "warn").stdout
    assert '"level": "warn"' in document
    result = tasks("dmesg", DUMP, "--json")
    assert result.returncode == 0
    assert '"caller": "T1"' in result.stdout
