"""Generate the tables of dump formats and architectures in docs/formats.md from the plug-ins' descriptions.

Run ``python -m vmcore2core.support`` to write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcore2core.arch import all_archs
from vmcore2core.containers import all_containers

DOCUMENT = Path(__file__).parent / "docs" / "formats.md"
BEGIN = "<!-- made by: python -m vmcore2core.support -->"
END = "<!-- end of what is made -->"


def tables() -> Iterator[str]:
    """Yield the lines of Markdown tables of all dump formats and of all architectures."""
    docs = [container.DOC for container in all_containers()]
    rows = [(doc.name, doc.summary, "; ".join(doc.limitations)) for doc in docs]
    yield from _table(("dump format", "written by", "limits"), rows)
    yield ""
    machines = [(arch.name, arch.DOC) for arch in all_archs()]
    tested = [(name, doc.page_tables, doc.tested, "; ".join(doc.limitations)) for name, doc in machines]
    yield from _table(("architecture", "page tables", "tested on", "not done"), tested)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def main() -> None:
    """Write the tables between the two marks of the document."""
    text = DOCUMENT.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    DOCUMENT.write_text("\n".join([before + begin, *tables(), end + after]))


if __name__ == "__main__":
    main()
