"""BTF."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.harness import Harness
from tests.layout.test_btf import sample
from vmcore2core.layout.btf import BtfSource, find_btf_candidates, validate_btf

PATHS = ("stack", "comm", "a", "thread.sp", "thread.fsbase", "f.low", "f.high", "none.at.all")


def seeds() -> Sequence[bytes]:
    return [sample("<").blob(), sample(">").blob()]


def run(data: bytes) -> None:
    find_btf_candidates(data)
    validate_btf(data)
    source = BtfSource(data, "BTF", pointer_size=8)
    for path in PATHS:
        source.member("task_struct", path)
    for name in ("task_struct", "thread_struct", "u64", "bits"):
        source.size(name)
    for name in ("MINUS", "BIG", "NONE"):
        source.constant(name)


HARNESS = Harness("btf", seeds, run)
