"""Block signals during work that they must not interrupt."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals by which a user ends a command."""


@contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block these signals until the end of the block; a process that is forked in it begins with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
