"""README's tables say what the code says of itself."""

from __future__ import annotations

from pathlib import Path

from vmcore2core import support
from vmcore2core.arch import all_archs

README = Path(__file__).resolve().parents[2] / "README.md"


def test_readme_has_the_tables_that_the_code_makes() -> None:
    text = README.read_text()
    made = text.partition(f"{support.BEGIN}\n")[2].partition(f"\n{support.END}")[0]
    assert made.splitlines() == list(support.tables()), "run: python -m vmcore2core.support README.md"


def test_every_architecture_says_what_it_was_tested_on() -> None:
    for arch in all_archs():
        assert arch.DOC.tested
        assert arch.DOC.page_tables
