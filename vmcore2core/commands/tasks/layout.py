"""``vmcore-tasks layout``."""

from enum import Enum
from typing import Annotated

import typer

from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.errors import LayoutUnknown


class LayoutFrom(Enum):
    """Which source ``layout`` asks."""

    DUMP = "dump"
    BTF = "BTF"
    VMLINUX = "vmlinux"


@takes_dump
def layout(
    *,
    source: Annotated[
        LayoutFrom,
        typer.Option("--from", help="The source of the layout: all that the dump has, only its BTF, or the vmlinux."),
    ] = LayoutFrom.DUMP,
    dump: DumpOptions,
) -> None:
    """Print the layout that conversion needs as VMCOREINFO text, for --vmcoreinfo."""
    with opened(dump) as session:
        from vmcore2core.layout.export import export_layout
        from vmcore2core.layout.resolver import KernelLayout
        from vmcore2core.layout.vmlinux import vmlinux_sources

        if source is LayoutFrom.VMLINUX:
            layout_asked = KernelLayout(vmlinux_sources(dump.vmlinux, session.boot.vmcoreinfo))
        else:
            layout_asked = session.boot.layout.only("BTF" if source is LayoutFrom.BTF else "")
        if layout_asked.find_member("task_struct", "pid") is None:
            raise LayoutUnknown(f"a layout from {source.value}", session.boot.layout.source_names)
        for line in export_layout(
            layout_asked, session.boot.layout, session.boot.vmcoreinfo, session.boot.arch.layout_keys
        ):
            print(line)
