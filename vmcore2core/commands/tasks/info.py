"""``vmcore-tasks info``."""

from collections.abc import Iterator
from typing import Any

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.printable import one_line

IN_A_LINE = ("crashed", "paths", "user_pages_left_out", "sources")
"""Lists that fit on one line."""


@takes_dump
def info(
    *,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Show why the kernel died, what kind of dump this is, and what is not known."""
    with opened(dump) as vmcore:
        document = vmcore.info()
        if as_json:
            print_document("vmcore-tasks-info", **document)
            return
        for line in _lines(document):
            print(one_line(line))


def _lines(document: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a document: one for a value, a list below its name; unknown values are left out."""
    if (crash := document.get("crash")) is not None:
        about = {name: value for name, value in crash.items() if name not in ("panic", "oops", "trace")}
        first = {"panic": crash["panic"], "oops": crash["oops"], "crashed": [about], "trace": crash["trace"]}
        document = {**first, **document}
    for name, value in document.items():
        title = name.replace("_", " ")
        if value is None or value == [] or name == "crash":
            continue
        if name in ("dump", "kernel"):
            yield from _lines(value)
        elif isinstance(value, list):
            items = [_in_words(item) if isinstance(item, dict) else item for item in value]
            if name in IN_A_LINE:
                yield f"{title}: {', '.join(items)}"
            else:
                yield f"{title}:"
                yield from (f"  {item}" for item in items)
        elif isinstance(value, dict):
            yield f"{title}: {', '.join(f'{n} {state}' for state, n in value.items())}"
        else:
            yield f"{title}: {value}"


def _in_words(item: dict[str, Any]) -> str:
    """Return an item's known values on one line: "cpu 1, pid 812, user mode yes"."""
    yes_or_no = {True: "yes", False: "no"}
    known = {key: value for key, value in item.items() if value is not None}
    words = {k: yes_or_no[value] if isinstance(value, bool) else value for k, value in known.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in words.items())
