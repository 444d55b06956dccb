"""``index.html``: the index as a page that opens from disk, without network.

The page itself holds its script, its style and the facts about the machine, and stays small however large the machine
is. The processes are in ``index.data``: ``processes.js`` is a table of all of them, and the page loads ``PID.js`` when
the reader opens that process. A browser does not let a page read a file from disk, but does let it run one as a script,
so each file is a function call with JSON text.

Strings from the dump are data: they are JSON, and the script adds them to the page only as text. A content security
policy allows only the template's own script and style and these files, and no network access. In browsers with trusted
types, no text can become markup either.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vmcore2core.corefile.atomic import atomic_file, new_file
from vmcore2core.errors import OutputError
from vmcore2core.folders import opened_below, opened_folder
from vmcore2core.handover.page_data import Entry, ProcessTable, process_data
from vmcore2core.handover.tree import PAGE_DATA_NAME
from vmcore2core.printable import one_line, to_json

HTML_NAME = "index.html"
SCRIPTS = ("words", "data", "rows", "search", "machine", "process", "main")
"""In the order in which they are run, as one."""
NO_NAME = ("", "(none)")
"""The nodename of a kernel on which none was ever set."""
_PROCESS_FILE = re.compile(r"\d+\.js")
_IN_SCRIPTS = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}
_IN_QUOTES = {ord("\\"): "\\\\", ord("'"): "\\'"}


def page(head: dict[str, Any]) -> str:
    """Return the page.

    Args:
        head: the index without "processes" and "errors".
    """
    parts = {"TITLE": html.escape(one_line(_title(head))), "HEAD": to_json(head).translate(_IN_SCRIPTS), **_assets()}
    return re.sub(r"@([A-Z_]+)@", lambda found: parts[found[1]], _asset("page.html"))


@cache
def _assets() -> dict[str, str]:
    script = "".join(_asset(f"{name}.js") for name in SCRIPTS)
    style = _asset("page.css")
    return {"SCRIPT": script, "STYLE": style, "SCRIPT_HASH": _source(script), "STYLE_HASH": _source(style)}


def _asset(name: str) -> str:
    return files("vmcore2core.handover").joinpath("page", name).read_text("utf-8")


def _source(text: str) -> str:
    """Return the source expression (hash) of an inline script or style for the content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _title(head: dict[str, Any]) -> str:
    name: str = head["kernel"].get("nodename") or ""
    return name if name not in NO_NAME else next((file["name"] for file in head["dump"]["files"]), "Cores")


def write_page(directory: Path, head: dict[str, Any], processes: Iterable[Entry]) -> None:
    """Write the page and its data, the page last; each file appears whole.

    Args:
        directory: the directory of the cores.
        head: the index without "processes".
        processes: the entries of the index.

    Raises:
        OutputError: a system call fails, or an entry does not have an index entry's form.
    """
    table, written = ProcessTable(), set()
    with _data_folder(directory) as data:
        for entry in processes:
            try:
                table.add(entry)
                found = process_data(entry)
            except (KeyError, TypeError, AttributeError) as error:  # an entry from an index that --resume took over
                words = f"the index's entry of process {entry['pid']} is not as this version writes it: {error!r}"
                raise OutputError(f"{directory}: {words}") from error
            written.add(_write(data, str(entry["pid"]), found))
        written.add(_write(data, "processes", {**table.document(), "errors": head["errors"]}))
        _remove_others(data, written)
    text = page({name: value for name, value in head.items() if name != "errors"})
    with atomic_file(directory / HTML_NAME, force=True) as fd, os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def _data_folder(directory: Path) -> Iterator[int]:
    """Open the folder of the page's data, created if needed, and give its descriptor."""
    shown = f"{directory}/{PAGE_DATA_NAME}"
    try:
        with opened_folder(directory) as above, opened_below(above, PAGE_DATA_NAME, shown, make=True) as data:
            yield data
    except OSError as error:
        raise OutputError(f"{shown} cannot be written: {error.strerror or error}") from error


def _write(data: int, name: str, value: object) -> str:
    """Write one file of the page's data, and return its name."""
    text = json.dumps(value, separators=(",", ":")).translate(_IN_QUOTES)
    with new_file(data, f"{name}.js", ".", force=True) as fd, os.fdopen(os.dup(fd), "w", encoding="ascii") as file:
        file.write(f"loaded('{name}','{text}')\n")
    return f"{name}.js"


def _remove_others(data: int, written: set[str]) -> None:
    """Remove the files that an earlier run wrote for processes that this run does not have."""
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=data)
    try:
        with os.scandir(readable) as found:
            names = sorted(entry.name for entry in found)
    finally:
        os.close(readable)
    for name in (name for name in names if _PROCESS_FILE.fullmatch(name) and name not in written):
        with suppress(IsADirectoryError):
            os.unlink(name, dir_fd=data)
