"""Reads every page of RAM of a dump; arguments: the dump, and "count" to print how many there are, how many differ."""

from __future__ import annotations

import json
import sys
from hashlib import blake2b
from pathlib import Path

import numpy as np

from vmcore2core.containers import open_container

BATCH = 256

counting, pages, seen = "count" in sys.argv[2:], 0, set()
with open_container([Path(sys.argv[1])]) as container:
    out = np.zeros((BATCH, container.page_size), np.uint8)
    for memory in container.memory_ranges():
        first, end = memory.start // container.page_size, memory.end // container.page_size
        for pfn in range(first, end, BATCH):
            pfns = np.arange(pfn, min(pfn + BATCH, end), dtype=np.uint64)
            container.read_pages(pfns, out[: len(pfns)])
            if counting:
                full = out[: len(pfns)].any(axis=1)
                pages += len(pfns)
                seen |= {blake2b(page.tobytes(), digest_size=16).digest() for page in out[: len(pfns)][full]}
print(json.dumps({"pages": pages, "distinct": len(seen)}) if counting else "")
