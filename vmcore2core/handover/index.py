"""``index.json``: a machine-readable list of a directory of cores; every string from the dump is made printable.

::

    {"format": "vmcore2core-index", "version": 1,
     "tool": "vmcore2core 0.1.0", "started": UTC time as ISO 8601, "finished": same, or null until then,
     "dump": {"files": [{"name", "size", "mtime_ns"}], "format", "dump_level"}: for a URL, "mtime_ns" is null, and
             "tag" is the server's version tag; for a pipe, "size" is null, too,
     "kernel": {"machine", "nodename", "release", "version", "build_id", "panic", "crash_time": seconds since 1970},
     "options": {...} the options that change a core's content,
     "crash", "cpus", "unknown": as in vmcore-tasks info --json,
     "messages": the kernel's last ones, as dmesg shows them,
     "blocked": [{"pid", "tid", "comm", "frames": [functions, innermost first]} of tasks in uninterruptible sleep],
     "deadlocks": [[TIDs, each of which waits for the next one, and the last for the first]],
     "left_out": [the kinds of process pages that the dump left out] or null, "notices": [sentences],
     "warnings": [sentences about the dump],
     "processes": [one entry per process, by PID],
     "errors": [{"pid", "comm", "error": sentence}]}

A process::

    {"pid", "nspid": [its number in each PID namespace, from the initial one] or null, "comm", "exe", "command_line",
     "uid", "gid", "state": its leader's letter, "cgroups": [paths], "containers": [IDs, the innermost first],
     "rss_kib", "page_size",
     "core": {"file": name in this directory, "size": bytes of the core (holes included), "file_size": of the
              file, which may be compressed, "mtime_ns": of the file,
              "complete": true or false, "pages": present, "missing": pages,
              "absent": {reason: pages}, "blanked": [[start, end] of bytes that were blanked on request],
              "threads_left_out": [{"tid", "comm", "reason"}],
              "warnings": [sentences], "notices": [sentences]},
     "threads": [{"tid", "comm", "state", "registers": their source, or why they are missing,
                  "frames": [{"address", "function", "offset", "file", "signal_trampoline", "found_by", "cfi_from",
                              "function_from", "source": {"function", "file", "line"} or null,
                              "inlined": [likewise, the innermost first]}], innermost first: as of vmcore-tasks bt,
                  "end": why the stack ends before its outermost frame, or null,
                  "kernel": {"frames": [{"address", "function", "offset", "size", "module", "found_by"}, innermost
                             first], "end": likewise} or null,
                  "system_call": {"number", "name", "arguments": [{"name", "value", "text": as a person reads it}]} or
                                 null,
                  "since": seconds since a sleeping thread last ran, or null,
                  "wait": {"kind", "what": what it waits for, in words, "address": of the futex or the lock or null,
                           "holders": [TIDs of threads that can end it], "all_known": whether nothing else can} or null,
                  "wanted": [{"path", "build_id"} of files that would improve the stack]}],
     "vmas": [{"start", "end", "permissions", "file_pages_offset", "name", "in_core": "yes", "first page" or "no",
               "pages": {state: pages}}],
     "images": [{"name", "start", "build_id"}],
     "files": [as in vmcore-tasks files --json: the process's, and threads' own file tables; of each file, the first 32
               "other_ends", and "other_ends_count": how many there are] or null,
     "debug": {"sysroot": folder in this directory or null, "program": its path below it or null,
               "scripts": [names in this directory], "notices": [sentences]},
     "capture": {"kept": "whole" or "stacks", "reason": why no more, or null}}

Only ``vmcore2core capture`` writes ``capture``; its index has no ``crash`` to ``notices``. ``debug`` is added once all
cores are written. Page states: ``present`` (mapped in, in the dump), ``page_cache`` (in the dump, not mapped in),
``zero``, ``from_swap`` and ``from_file`` (recovered), ``swapped`` (not recovered), ``excluded`` (when the dump was
written), ``not_in_memory`` (a file's page), ``none`` (no such page exists), ``missing`` (all others). null means
"not known".

``--resume`` keeps a core if the index lists it, the index was made from the same files (names, sizes, modification
times) with the same options, and the core still has the size and modification time in the index. With ``--check``, its
pages and notes must also match the dump's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from vmcore2core import __version__
from vmcore2core.corefile.atomic import atomic_file, remove_partial
from vmcore2core.errors import OutputError
from vmcore2core.folders import open_own_file, opened_folder
from vmcore2core.handover.tree import PAGE_DATA_NAME, SYSROOT_NAME
from vmcore2core.printable import to_json

FORMAT, VERSION = "vmcore2core-index", 1
INDEX_NAME = "index.json"
SLOWDOWN = 10
"""Rewrite the index after this many times as long as the last write took, so that writing takes a tenth of the time."""
INDEX_MAX = 1 << 30

Entry = dict[str, Any]


class EntryText(NamedTuple):
    """A process's entry as JSON: workers make it, as text goes from process to process faster than what is in it.

    Attributes:
        pid, comm: of the process.
        json: the entry.
        fields: the names in it.
        waits: the threads that end each thread's wait, as TIDs, if nothing else can.
    """

    pid: int
    comm: str
    json: str
    fields: frozenset[str]
    waits: dict[int, list[int]]


def entry_text(entry: Entry) -> EntryText:
    """Return a process's entry as JSON."""
    threads = [thread for thread in entry["threads"] if isinstance(thread, dict)]  # it may be from an earlier run
    waits = [(thread.get("tid", 0), thread.get("wait")) for thread in threads]
    holders = {tid: wait.get("holders", []) for tid, wait in waits if isinstance(wait, dict) and wait.get("all_known")}
    return EntryText(entry["pid"], entry["comm"], to_json(entry), frozenset(entry), holders)


def now() -> str:
    """Return the time for ``started`` and ``finished``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Index:
    """The index of one directory.

    Args:
        directory: where it is.
        head: "dump", "kernel", "options".
        hide: blanks secrets in values added later; the caller has already blanked them in processes' entries.

    Attributes:
        warnings: sentences about the dump.
        errors: processes that could not be converted.
        story: what the machine was doing, from "crash" to "notices"; empty if that was not read.
    """

    def __init__(self, directory: Path, head: dict[str, Any], hide: Callable[[Any], Any] = lambda value: value) -> None:
        self.directory, self._hide = directory, hide
        self.head = {"format": FORMAT, "version": VERSION, "tool": f"vmcore2core {__version__}", **head}
        self.warnings: list[str] = []
        self.errors: list[dict[str, Any]] = []
        self.story: dict[str, Any] = {}
        self._started = now()
        self._entries: dict[int, EntryText] = {}
        self._next_write = 0.0

    @property
    def path(self) -> Path:
        """Path of the index file."""
        return self.directory / INDEX_NAME

    def add(self, entry: EntryText) -> None:
        """Add a process whose core was written, and write the index if it is time."""
        self._entries[entry.pid] = entry
        if time.monotonic() >= self._next_write:
            self.write()

    def amend(self, pid: int, /, **more: object) -> None:
        """Add fields to a process's entry, or replace them."""
        entry, new = self._entries[pid], self._hide(more)
        if entry.fields.isdisjoint(new):
            text = f"{entry.json[:-1]}, {to_json(new)[1:]}"
            self._entries[pid] = entry._replace(json=text, fields=entry.fields | new.keys())
        else:
            self._entries[pid] = entry_text({**json.loads(entry.json), **new})

    def write(self, *, finished: bool = False) -> None:
        """Write the index; the file is replaced only when the new one is complete.

        Raises:
            OutputError: a system call fails.
        """
        began = time.monotonic()
        with atomic_file(self.path, force=True) as fd, os.fdopen(os.dup(fd), "w", encoding="ascii") as file:
            file.writelines(self._pieces(finished=finished))
        self._next_write = time.monotonic() + SLOWDOWN * (time.monotonic() - began)

    def _pieces(self, *, finished: bool) -> Iterator[str]:
        """Yield the index as JSON, one process per line; in pieces, as that of thousands of processes is large."""
        top = ",\n".join(f"{to_json(name)}: {to_json(value)}" for name, value in self.top(finished=finished).items())
        yield f'{{{top},\n"processes": [\n'
        for number, pid in enumerate(sorted(self._entries)):
            yield ",\n" if number else ""
            yield self._entries[pid].json
        yield "\n]}\n"

    def top(self, *, finished: bool = False) -> dict[str, Any]:
        """Return the index without its processes."""
        head = {**self.head, "started": self._started, "finished": now() if finished else None}
        errors = sorted(self.errors, key=lambda error: error["pid"] or 0)
        return {**head, **self._hide({**self.story, "warnings": self.warnings, "errors": errors})}

    def entries(self) -> Iterator[Entry]:
        """Yield each process's entry, by PID."""
        for pid in sorted(self._entries):
            yield json.loads(self._entries[pid].json)

    def waits(self) -> dict[int, list[int]]:
        """Return the threads that end each thread's wait, as TIDs, if nothing else can."""
        return {tid: holders for pid in sorted(self._entries) for tid, holders in self._entries[pid].waits.items()}

    def resume(self) -> bool:
        """Take over the cores that an earlier run finished, and remove its unfinished files.

        Returns:
            Whether there was an earlier run.

        Raises:
            OutputError: the existing index belongs to another dump or other options, or is not an index.
        """
        before = read_index(self.path)
        if before is not None:
            self._check(before)
        self.remove_parts(below=True)
        if before is None:
            return False
        for entry in before["processes"]:
            if self._is_there(entry):
                self._entries[entry["pid"]] = entry_text(entry)
        return True

    def remove_parts(self, *, below: bool = False) -> None:
        """Remove the unfinished files of killed workers; no worker may be running.

        Args:
            below: also clean up the folders in the directory that hold files of ours.

        Raises:
            OutputError: a system call fails.
        """
        try:
            with opened_folder(self.directory) as directory:
                remove_partial(directory)
                for folder in self._folders() if below else ():
                    for _, _, _, found in os.fwalk(folder, dir_fd=directory):
                        remove_partial(found)
        except OSError as error:
            raise OutputError(f"{self.directory} cannot be read: {error.strerror}") from error

    def _check(self, before: dict[str, Any]) -> None:
        """Raise ``OutputError`` if an index belongs to another dump, other options or another version."""
        if any(file["size"] is None for file in self.head["dump"]["files"]):
            raise OutputError(
                f"{self.path}: cannot resume: the dump was read from a pipe, so it may be another one; name the file "
                "that was kept"
            )
        for part, words in (("dump", "another dump"), ("options", "other options"), ("tool", "another version")):
            if before.get(part) != json.loads(to_json(self.head[part])):
                raise OutputError(f"{self.path} is of {words}, so its cores cannot be kept; --force replaces them")

    def _folders(self) -> list[str]:
        found = (*self.directory.glob(f"{SYSROOT_NAME}*"), self.directory / PAGE_DATA_NAME)
        return [path.name for path in found if path.is_dir() and not path.is_symlink()]

    def drop(self, pid: int) -> None:
        """Forget a process, so that its core is written again."""
        self._entries.pop(pid, None)

    @property
    def size(self) -> int:
        """Bytes of the processes' entries so far."""
        return sum(len(entry.json) for entry in self._entries.values())

    def has(self, pid: int, comm: str) -> bool:
        """Tell whether a process has an entry."""
        return pid in self._entries and self._entries[pid].comm == comm

    def kept(self, pid: int, comm: str) -> Entry | None:
        """Return the entry of a process whose core an earlier run wrote, or None."""
        return json.loads(self._entries[pid].json) if self.has(pid, comm) else None

    def _is_there(self, entry: Entry) -> bool:
        core = entry["core"]
        if Path(core["file"]).name != core["file"]:
            return False
        try:
            found = (self.directory / core["file"]).lstat()
        except (OSError, ValueError):  # ValueError: a NUL in the name
            return False
        return (found.st_size, found.st_mtime_ns) == (core["file_size"], core["mtime_ns"])


def read_index(path: Path) -> dict[str, Any] | None:
    """Return an index, or None if the file does not exist.

    Raises:
        OutputError: the file is not an index.
    """
    try:
        found = json.loads(_content(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise OutputError(f"{path} is no index: its brackets are nested too deep") from error
    except ValueError as error:
        raise OutputError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise OutputError(f"{path} is no index of version {VERSION} by vmcore2core")
    good = isinstance(found.get("processes"), list) and all(map(_is_entry, found["processes"]))
    if not good:
        raise OutputError(f"{path} has processes without the fields that --resume reads")
    return found


def _content(path: Path) -> bytes:
    """Return a file's content, if it can be an index."""
    with opened_folder(path.parent) as directory:
        fd = open_own_file(directory, path.name, str(path))
    with os.fdopen(fd, "rb") as file:
        content = file.read(INDEX_MAX + 1)
    if len(content) > INDEX_MAX:
        raise OutputError(f"{path} is larger than {INDEX_MAX:#x} bytes, expected an index")
    return content


def _is_entry(entry: object) -> bool:
    """Tell whether an entry has the fields that ``--resume`` reads."""
    if not isinstance(entry, dict) or not isinstance(core := entry.get("core"), dict):
        return False
    numbers = (entry.get("pid"), *(core.get(name) for name in ("file_size", "mtime_ns", "missing", "pages")))
    texts = entry.get("comm"), core.get("file")
    return (
        all(isinstance(number, int) for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and isinstance(core.get("complete"), bool)
        and isinstance(entry.get("threads"), list)
    )
