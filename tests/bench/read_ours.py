"""Reads every page of RAM of a dump; argument: the dump."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vmcore2core.containers import open_container

BATCH = 256

with open_container([Path(sys.argv[1])]) as container:
    out = np.zeros((BATCH, container.page_size), np.uint8)
    for memory in container.memory_ranges():
        first, end = memory.start // container.page_size, memory.end // container.page_size
        for pfn in range(first, end, BATCH):
            pfns = np.arange(pfn, min(pfn + BATCH, end), dtype=np.uint64)
            container.read_pages(pfns, out[: len(pfns)])
