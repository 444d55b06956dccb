"""Times from a dump as text in UTC; None if a number is not a valid date."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(seconds: float | None) -> str | None:
    """Return seconds since 1970 as an ISO 8601 time."""
    return _formatted(seconds, "%Y-%m-%dT%H:%M:%SZ")


def ctime(seconds: float | None) -> str | None:
    """Return seconds since 1970 as dmesg and ps write them: Mon Nov 30 02:06:00 2026."""
    return _formatted(seconds, "%a %b %e %H:%M:%S %Y")


def _formatted(seconds: float | None, how: str) -> str | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime(how)
    except (ValueError, OverflowError, OSError):
        return None
