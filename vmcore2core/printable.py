"""Bytes from the dump as text for people: whatever a process set must not reach a terminal or a browser as it is."""

from __future__ import annotations

from typing import overload


@overload
def text(raw: bytes) -> str: ...


@overload
def text(raw: None) -> None: ...


@overload
def text(raw: bytes | None) -> str | None: ...


def text(raw: bytes | None) -> str | None:
    """Return bytes from the dump as text that a terminal and JSON can take: no control characters."""
    if raw is None:
        return None
    return _escaped(raw.decode("utf-8", "replace"))


def lines(shown: str) -> str:
    """Return what is about to be printed without control characters, but for the ends of lines."""
    return "\n".join(map(_escaped, shown.split("\n")))


def _escaped(shown: str) -> str:
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
