"""Text for people and for machines, whatever bytes it was made of."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, convert, tasks
from vmcore2core.commands.progress import one_bar, progress_bars
from vmcore2core.printable import counted, file_name, lines, to_json

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
MARKUP = ("[/red]", "[link=file:///etc/passwd]x", "[bold]", "\\[", "[/]", "a\x1b[2Jb")


def strictly(document: str) -> object:
    """Parse JSON as RFC 8259 has it: text is Unicode, and nothing else."""
    document.encode("ascii")
    found = json.loads(document)
    json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate does not encode
    return found


def test_one_is_one_and_all_others_are_several() -> None:
    assert [counted(n, "page") for n in (0, 1, 2)] == ["0 pages", "1 page", "2 pages"]


def test_json_has_no_lone_surrogates() -> None:
    odd = b"a\xff\xc3\xa9".decode("utf-8", "surrogateescape")
    assert strictly(to_json({odd: [odd, (1, None, "\ud800"), {"x": 2.5}]})) == {
        "a\\xff\u00e9": ["a\\xff\u00e9", [1, None, "\\xd800"], {"x": 2.5}]
    }


def test_names_and_lines_say_the_byte_that_is_no_text() -> None:
    assert file_name(b"a\xff\n") == rb"a\xff\x0a"
    assert lines("a\udcff\nb\x1b") == "a\\xff\nb\\x1b"


def test_the_summary_of_a_file_with_an_odd_name_is_json(tmp_path: Path) -> None:
    dump = tmp_path / b"d\xffump".decode("utf-8", "surrogateescape")
    dump.symlink_to(DUMP)
    cores = tmp_path / b"c\xfeores".decode("utf-8", "surrogateescape")
    result = convert(dump, "--all", "-o", cores, "--json", "--no-companions")
    assert result.returncode == 0
    strictly(result.stdout)
    strictly((cores / "index.json").read_text())
    single = convert(dump, "--pid", "1", "-o", cores / "one", "--json")
    strictly(single.stdout)
    verified = convert("verify", cores / "one", "--json")
    strictly(verified.stdout)
    strictly(tasks("info", dump, "--json").stdout)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", MARKUP)
def test_a_label_is_never_taken_as_markup(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("vmcore2core.commands.progress.LONG_S", 0.0)
    with progress_bars(2) as bar:
        update = bar(name)
        assert update is not None
        update(1, 2)
        bar(name)
    with one_bar(name) as one:
        assert one is not None
        one(1, 2)
    assert name.replace("\x1b", "\\x1b") in shown.getvalue()
    assert "\x1b[2J" not in shown.getvalue()
    assert "\x1b]8;" not in shown.getvalue()
