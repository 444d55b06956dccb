"""The kernel's layout as text, as ``vmcore-tasks layout`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import LayoutUnknown
from vmcore2core.layout.export import export_layout
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmlinux import vmlinux_sources
from vmcore2core.session import Session


def layout_text(session: Session, source: str) -> Iterator[str]:
    """Return the lines of VMCOREINFO text that conversion needs.

    Args:
        session: the dump.
        source: "dump" for all that the dump has, "BTF" for that alone, or "vmlinux".

    Raises:
        LayoutError: the source has no layout.
    """
    boot = session.boot
    if source == "vmlinux":
        layout = KernelLayout(vmlinux_sources(session.options.vmlinux, boot.vmcoreinfo))
    else:
        layout = boot.layout.only("BTF" if source == "BTF" else "")
    if layout.find_member("task_struct", "pid") is None:
        raise LayoutUnknown(f"a layout from {source}", boot.layout.source_names)
    return export_layout(layout, boot.layout, boot.vmcoreinfo, boot.arch.layout_keys)
