"""A vmlinux given by the user: placeholder."""

from __future__ import annotations

from pathlib import Path

from vmcore2core.layout.base import LayoutSource


def vmlinux_sources(vmcoreinfo: bytes | None, vmlinux: Path | None) -> tuple[LayoutSource, ...]:
    """Return nothing yet."""
    return ()
