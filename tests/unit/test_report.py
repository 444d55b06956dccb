"""Sentences about a core use singular and plural correctly."""

from __future__ import annotations

import pytest

from vmcore2core.process.model import OnDisk
from vmcore2core.report import _left_to_files, core_line, excluded_sentence, left_out


@pytest.mark.parametrize(
    ("missing", "threads", "pages", "expected"),
    [
        (0, 1, 1, "app.core: complete, 1 thread, 1 page"),
        (0, 6, 1743, "app.core: complete, 6 threads, 1743 pages"),
        (1, 1, 2, "app.core: incomplete, 1 page missing, 1 thread, 2 pages"),
        (2, 0, 0, "app.core: incomplete, 2 pages missing, 0 threads, 0 pages"),
    ],
)
def test_the_line_of_a_core(missing: int, threads: int, pages: int, expected: str) -> None:
    assert core_line("app.core", missing, threads, pages, complete=not missing) == expected


def test_the_line_of_a_core_that_lacks_a_thread_alone() -> None:
    assert core_line("app.core", 0, 5, 9, complete=False) == "app.core: incomplete, 5 threads, 9 pages"


@pytest.mark.parametrize(
    ("level", "form", "words"),
    [
        (None, "ELF", ["-d 16 keeps all memory", "--zero-excluded reads them so"]),
        (None, "kdump-compressed", ["-d 17 keeps all memory"]),
        (17, "kdump-compressed", ["-d 17, which keeps all memory", "--eppic or --extension"]),
        (6, "kdump-compressed", ["leaves out page cache, private page cache; -d 0 would"]),
        (31, "kdump-compressed", ["user data", "-d 17 would have kept", "userstack"]),
    ],
)
def test_what_left_pages_out_and_what_would_not_have(level: int | None, form: str, words: list[str]) -> None:
    said = excluded_sentence(level, form)
    assert [word for word in words if word not in said] == []
    assert ("zero" in said) == (form == "ELF" or level == 31)


def test_which_pages_of_processes_a_level_leaves_out() -> None:
    assert left_out(None) is None
    assert left_out(17) == []
    assert left_out(31) == ["page cache", "private page cache", "user data"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([OnDisk(b"/a", 1)], "1 page is not in memory, and left to its file, unchanged there: /a (size not known)"),
        (
            [OnDisk(b"/a", 1, size=9, mtime=0), OnDisk(b"/b", 2, "ab12")],
            "and left to their files, unchanged there: /a (9 bytes of 1970-01-01 00:00:00 UTC), /b (build ID ab12)",
        ),
        ([OnDisk(b"/a", 1, size=9, mtime=1 << 80)] * 9, " and 1 more file (--json lists all)"),
    ],
)
def test_which_files_pages_are_left_to(files: list[OnDisk], said: str) -> None:
    assert _left_to_files(files).endswith(said)
