"""Signals that must not come in the middle of something."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals by which a user ends a command."""


@contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Let none of these signals come before the block ends; a process that is forked in it begins with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
