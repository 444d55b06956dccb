"""The page's data for its script: a table of all processes, and the panel of each process.

Both are made from the index's entries. The browser loads the whole table, so it must be small: each repeated value is
listed once, and rows hold its number in that list::

    {"pid", "nspid", "comm", "command", "exe", "uid", "states": letters of all threads, "container": the innermost,
     "cgroup", "rss": bytes, "size": of the core, "missing": pages, "complete",
     "waits": what a thread waits for, in words, "threads": [[tid, name, stack], ...]
         each of these a list with one item per process,
     "texts": [strings, which "comm", "command", "exe", "states", "container", "cgroup", "waits" and names number],
     "functions": [names],
     "stacks": [[[functions of the kernel, innermost first], [likewise of the program]], ...],
     "errors": as in the index}

A process's panel is its entry without its core's modification time, and with its mappings as rows::

    {..., "vmas": {"names": [...], "permissions": [...],
                   "rows": [[start, end, permissions, name, in the core, {state: pages}], ...]}}

where "in the core" is 0 for a mapping that is not in the core, 1 for one that is, and 2 if only its first page is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

Entry = dict[str, Any]
Item = TypeVar("Item", bound=Hashable)

WAIT_MAX = 120
"""The table cuts the text that says what a thread waits for at this many characters."""
_IN_CORE = {"no": 0, "yes": 1, "first page": 2}


class Numbered(Generic[Item]):
    """Lists each item once, and gives it a number."""

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
            KeyError, TypeError, AttributeError: the entry does not have an index entry's form.
        """
        for name, value in self._row(entry).items():
            shown = self._texts.number(value) if isinstance(value, str) else value
            self._columns.setdefault(name, []).append(shown)

    def document(self) -> dict[str, Any]:
        """Return the table, without the processes that could not be converted."""
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

    A function without a name is shown as its address and file, so that different ones do not compare equal.
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
    """Return the data of a process's panel.

    Raises:
        KeyError, TypeError, AttributeError: the entry does not have an index entry's form.
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
