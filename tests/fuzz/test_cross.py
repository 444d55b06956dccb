"""Some variants of ``tests.fuzz.cross``, whose five hundred take a minute and a half."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.cross import ALLOWED, KIND_OF, Dump, open_guest, run

pytestmark = pytest.mark.no_cover

COUNT = 40
SILENT = 0


def test_of_exchanged_words_few_change_a_core_unnoticed(tmp_path: Path) -> None:
    with open_guest("amd64", tmp_path) as session:
        outcome = run(Dump(session), COUNT, 1)
    assert outcome.failures == []
    assert len(outcome.silent) == SILENT, outcome.silent
    assert outcome.total["marked"] > COUNT // 3
    assert outcome.total.total() == COUNT


def test_what_is_allowed_is_exchanged() -> None:
    assert ALLOWED.keys() <= KIND_OF.keys()
