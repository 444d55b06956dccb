"""Dump files of every format: notes, eraseinfo, headers, pages; what ``tests.containers.hostile`` checks."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.builders.samples import all_samples
from tests.containers.hostile import check
from tests.fuzz.harness import Choices, Harness
from tests.needs import memory_folder

SAMPLES = list(all_samples().values())


def seeds() -> Sequence[bytes]:
    return [bytes([number]) + bytes(range(1, 33)) for number in range(len(SAMPLES))]


def run(data: bytes) -> str:
    choices = Choices(data)
    sample = SAMPLES[choices.take(1)[0] % len(SAMPLES)]
    files = [bytearray(content) for content in sample.files]
    while choices.left:
        victim = files[choices.below(len(files))]
        if not victim:
            break
        at = choices.below(min(len(victim), 640) if choices.below(2) else len(victim))
        kind = choices.below(6)
        if kind == 0:
            del victim[at:]
        elif kind < 3:
            victim[at] ^= 1 << choices.below(8)
        else:
            size = 1 << choices.below(4)
            victim[at : at + size] = (choices.word() & ((1 << 8 * size) - 1)).to_bytes(size, "little")[
                : len(victim) - at
            ]
    folder = Path(_folder().name)
    cache = folder / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    paths = [folder / f"vmcore{number}" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    try:
        return check(sample, paths, whole_truth=False)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        for path in paths:
            path.unlink()


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return the one folder of this process: setenv() keeps each value that it was ever given, 95 bytes a case."""
    return tempfile.TemporaryDirectory(dir=memory_folder())


HARNESS = Harness("containers", seeds, run, 256)
