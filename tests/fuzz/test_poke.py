"""Some variants of ``tests.fuzz.poke``, whose thousand take some minutes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.poke import DUMP, run
from vmcore2core.session import Session

pytestmark = pytest.mark.no_cover

COUNT = 60


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session([DUMP]) as opened:
        yield opened


def test_a_replaced_word_never_changes_a_core_unnoticed(session: Session) -> None:
    outcome = run(session, COUNT, 1)
    assert outcome.failures == []
    assert outcome.counts["marked"] + outcome.counts["error"] > COUNT // 3
    assert sum(outcome.counts.values()) == COUNT
