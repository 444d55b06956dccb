"""Combine and print what a measured run left, and hold it against COVERAGE.md: ``python -m tests.measured``.

The run is ``coverage run -m pytest``. A file of which less is reached than the table says ends it with an error.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import coverage

TABLE = Path(__file__).with_name("COVERAGE.md")
ROW = re.compile(r"^\| `([^`]+)` \| (\d+) % \| (\S.*\S) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """Files, what share of their lines and branches is reached at least, in percent, and why not the rest."""

    pattern: str
    at_least: float
    reason: str


def rows(text: str) -> list[Row]:
    """Return the rows of the table; of those that fit a file, the first one counts."""
    return [Row(pattern, float(share), reason) for pattern, share, reason in ROW.findall(text)]


def contradictions(table: list[Row], found: dict[str, float]) -> list[str]:
    """Return what ``found``, percent by file, has against the table."""
    wrong, used = [], set()
    for name, share in sorted(found.items()):
        row = next((row for row in table if fnmatch(name, row.pattern)), None)
        used.add(row)
        at_least, reason = (row.at_least, row.reason) if row else (100.0, "no row of its own")
        if share < at_least:
            wrong.append(f"{name}: {share:.1f} % is reached, expected at least {at_least:.0f} % ({reason})")
    wrong += [f"{TABLE.name}: no file is `{row.pattern}`" for row in table if row not in used]
    return wrong


def main() -> int:
    """Print the report and what contradicts the table, and return the exit status."""
    measured = coverage.Coverage()
    measured.combine()
    measured.save()
    total = measured.report()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    wrong = contradictions(
        rows(TABLE.read_text()), {name: file["summary"]["percent_covered"] for name, file in files.items()}
    )
    at_least = measured.get_option("report:fail_under")
    assert isinstance(at_least, float)
    if total < at_least:
        wrong.append(f"in all, {total:.1f} % is reached, expected at least {at_least:.0f} %")
    print(*wrong, sep="\n", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
