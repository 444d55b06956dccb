"""``vmcore-tasks layout``."""

from enum import Enum
from typing import Annotated

import typer

from vmcore2core.commands.opening import DumpOptions, opened, takes_dump


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
    """Print the layout, as far as this program asks for it, as VMCOREINFO text for --vmcoreinfo."""
    with opened(dump) as vmcore:
        for line in vmcore.layout_text(source.value):
            print(line)
