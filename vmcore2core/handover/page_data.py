"""What the page shows, as data for its script: a table of all processes, and of each process what its panel has.

Both are made from entries of the index. The table is small, for a browser has it whole; what is said often stands once,
in a list, and numbers name its place there::

    {"pid", "nspid", "comm", "command", "exe", "uid", "states": letters of all threads, "container": the innermost,
     "cgroup", "rss": bytes, "size": of the core, "missing": pages, "complete",
     "waits": what a thread waits for, in words, "threads": [[tid, name, stack], ...]
         each of these a list with an item a process,
     "texts": [what "comm", "command", "exe", "states", "container", "cgroup", "waits" and names are numbers of],
     "functions": [names],
     "stacks": [[[functions of the kernel, innermost first], [likewise of the program]], ...],
     "errors": as in the index}

A process is its entry without the time of its core, and with the mappings in rows::

    {..., "vmas": {"names": [...], "permissions": [...],
                   "rows": [[start, end, permissions, name, in the core, {state: pages}], ...]}}

where 0, 1 and 2 say that a mapping is not in the core, is, or its first page alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

Entry = dict[str, Any]
Item = TypeVar("Item", bound=Hashable)

WAIT_MAX = 120
"""Characters of what a thread waits for that the table has."""
_IN_CORE = {"no": 0, "yes": 1, "first page": 2}


class Numbered(Generic[Item]):
    """Items that are said once, and named by their number."""

    def __init__(self) -> None:
        self._numbers: dict[Item, int] = {}

    def number(self, item: Item) -> int:
        """Return the number of an item."""
        return self._numbers.setdefault(item, len(self._numbers))

    @property
    def items(self) -> list[Item]:
        """The items, in the order of their numbers."""
        return list(self._numbers)


class ProcessTable:
    """The table of all processes."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._texts: Numbered[str] = Numbered()
        self._functions: Numbered[str] = Numbered()
        self._stacks: Numbered[tuple[tuple[int, ...], tuple[int, ...]]] = Numbered()

    def add(self, entry: Entry) -> None:
        """Add a process.

        Raises:
            KeyError, TypeError, AttributeError: it is not as any index has it.
        """
        for name, value in self._row(entry).items():
            shown = self._texts.number(value) if isinstance(value, str) else value
            self._columns.setdefault(name, []).append(shown)

    def document(self) -> dict[str, Any]:
        """Return the table, without what could not be converted."""
        columns = self._columns or {name: [] for name in self._row(_NOT_KNOWN)}
        said_once = {"texts": self._texts.items, "functions": self._functions.items, "stacks": self._stacks.items}
        return {**columns, **said_once}

    def _row(self, entry: Entry) -> dict[str, Any]:
        entry = {**_NOT_KNOWN, **entry}
        core = {**_NOT_KNOWN["core"], **entry["core"]}
        waits = (thread.get("wait") for thread in entry["threads"])
        return {
            "pid": entry["pid"],
            "nspid": (entry["nspid"] or [])[1:],
            "comm": entry["comm"],
            "command": entry["command_line"] or "",
            "exe": entry["exe"] or "",
            "uid": entry["uid"],
            "states": "".join(dict.fromkeys((entry["state"], *(thread["state"] for thread in entry["threads"])))),
            "container": next(iter(entry["containers"]), ""),
            "cgroup": next(iter(entry["cgroups"] or ()), ""),
            "rss": entry["rss_kib"] * 1024,
            "size": core["size"],
            "missing": core["missing"],
            "complete": core["complete"],
            "waits": next((wait["what"][:WAIT_MAX] for wait in waits if wait), ""),
            "threads": [
                [thread["tid"], self._texts.number(thread["comm"]), self._stack(thread)] for thread in entry["threads"]
            ],
        }

    def _stack(self, thread: dict[str, Any]) -> int:
        kernel = (thread.get("kernel") or {}).get("frames", ())
        inside, outside = (tuple(map(self._functions.number, functions(part))) for part in (kernel, thread["frames"]))
        return self._stacks.number((inside, outside))


_NOT_KNOWN: Entry = {
    **dict.fromkeys(("pid", "nspid", "comm", "command_line", "exe", "uid", "cgroups")),
    "state": "",
    "containers": [],
    "rss_kib": 0,
    "threads": [],
    "core": {"size": 0, "missing": 0, "complete": True},
}


def functions(frames: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the functions of frames of the index, innermost first.

    One without a name is its address and file, so that only the very same one is equal.
    """
    for frame in frames:
        for one in frame.get("inlined", ()):
            yield one["function"] or "?"
        yield frame["function"] or _place(frame)


def _place(frame: dict[str, Any]) -> str:
    if frame.get("signal_trampoline"):
        return "<signal trampoline>"
    file = frame.get("file")
    return f"{frame['address']} ({PurePosixPath(file).name})" if file else frame["address"]


def process_data(entry: Entry) -> Entry:
    """Return what the panel of a process has.

    Raises:
        KeyError, TypeError, AttributeError: it is not as any index has it.
    """
    names: Numbered[str] = Numbered()
    permissions: Numbered[str] = Numbered()
    rows = [
        [
            vma["start"].removeprefix("0x"),
            vma["end"].removeprefix("0x"),
            permissions.number(vma["permissions"]),
            names.number(vma["name"] or ""),
            _IN_CORE[vma["in_core"]],
            vma["pages"],
        ]
        for vma in entry.get("vmas", ())
    ]
    core = {name: value for name, value in entry["core"].items() if name != "mtime_ns"}
    return {**entry, "core": core, "vmas": {"names": names.items, "permissions": permissions.items, "rows": rows}}
