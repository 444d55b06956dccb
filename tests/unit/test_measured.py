"""The table of uncovered code is compared with the measurement."""

from __future__ import annotations

import pytest

from tests.measured import TABLE, contradictions, rows

TEXT = """
| file | at least | what is not reached, and why |
| --- | --- | --- |
| `a/one.py` | 60 % | none at hand |
| `a/*.py` | 90 % | damaged input |
"""


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({"a/one.py": 60.0, "a/two.py": 90.0}, []),
        (
            {"a/one.py": 59.9, "a/two.py": 90.0},
            ["a/one.py: 59.9 % is reached, expected at least 60 % (none at hand)"],
        ),
        ({"a/one.py": 60.0, "a/two.py": 60.0}, ["a/two.py: 60.0 % is reached, expected at least 90 % (damaged input)"]),
        ({"a/one.py": 60.0}, ["COVERAGE.md: no file is `a/*.py`"]),
        (
            {"a/one.py": 100.0, "a/two.py": 100.0, "b.py": 99.9},
            ["b.py: 99.9 % is reached, expected at least 100 % (no row of its own)"],
        ),
    ],
)
def test_a_file_below_what_the_table_says_is_told(found: dict[str, float], wrong: list[str]) -> None:
    assert contradictions(rows(TEXT), found) == wrong


def test_every_line_of_the_table_is_understood() -> None:
    text = TABLE.read_text()
    assert len(rows(text)) == sum(line.startswith("| `") for line in text.splitlines()) > 0
