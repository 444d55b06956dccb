"""The tables of docs/formats.md are those that the code makes."""

from __future__ import annotations

from vmcore2core import support
from vmcore2core.arch import all_archs


def test_the_document_has_the_tables_that_the_code_makes() -> None:
    text = support.DOCUMENT.read_text()
    made = text.partition(f"{support.BEGIN}\n")[2].partition(f"\n{support.END}")[0]
    assert made.splitlines() == list(support.tables()), "run: python -m vmcore2core.support"


def test_every_architecture_says_what_it_was_tested_on() -> None:
    for arch in all_archs():
        assert arch.DOC.tested
        assert arch.DOC.page_tables
