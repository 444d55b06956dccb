"""``vmcore-tasks maps``."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vmcore2core.commands import options
from vmcore2core.commands.document import hexadecimal, print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.tasks.shown import Pid
from vmcore2core.commands.terminal import say

if TYPE_CHECKING:
    from vmcore2core import MapRow


@takes_dump
def maps(
    *,
    pid: Pid,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Show the mappings of a process, like /proc/PID/maps; with -v, count their pages by state."""
    with opened(dump) as vmcore:
        rows = vmcore.process(pid).maps(pages=bool(dump.verbose) or as_json)
        if not vmcore.mounts_known:
            say("mounts are not known: paths begin at the root of their file system")
        if as_json:
            print_document("vmcore-tasks-maps", mappings=[_document(row) for row in rows])
            return
        for row in rows:
            print(row.line(vmcore.pointer_size))
            if dump.verbose:
                print("    " + (", ".join(f"{n} {what}" for what, n in row.pages.items()) or "nothing"))


def _document(row: "MapRow") -> dict[str, Any]:
    """Return a mapping for JSON."""
    addresses = {name: hexadecimal(getattr(row, name)) for name in ("start", "end", "offset")}
    device = None if row.device is None else row.device_name()
    return {**asdict(row), **addresses, "device": device}
