"""What is said of a core agrees in number."""

from __future__ import annotations

import pytest

from vmcore2core.report import core_line


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
