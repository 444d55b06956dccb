r"""Bytes from the dump as text for people: a terminal or a browser must not get a process's raw control characters.

File names need not be text either: a byte that is not text is shown as ``\xff``.
"""

from __future__ import annotations

import json
import re
from typing import Any, overload

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_IN_JSON = "\\ud"
"""Half of a character beyond U+FFFF, as json.dumps() writes it, may be a lone surrogate."""
_UNDECODED = range(0xDC80, 0xDD00)
"""The characters by which Python stands for bytes that are not text (surrogateescape)."""


@overload
def text(raw: bytes) -> str: ...


@overload
def text(raw: None) -> None: ...


@overload
def text(raw: bytes | None) -> str | None: ...


def text(raw: bytes | None) -> str | None:
    """Return bytes from the dump as text that is safe for a terminal and JSON: without control characters."""
    if raw is None:
        return None
    return _escaped(raw.decode("utf-8", "replace"))


def lines(shown: str) -> str:
    """Return text without control characters, except for newlines."""
    return "\n".join(map(_escaped, shown.split("\n")))


def one_line(shown: str) -> str:
    """Return text without control characters, newlines included."""
    return _escaped(shown)


def counted(number: int, noun: str) -> str:
    """Return "1 page", "2 pages"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def amount(size: int) -> str:
    """Return a number of bytes as text in binary units."""
    units = ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB"))
    return next((f"{size / (1 << shift):.1f} {unit}" for shift, unit in units if size >> shift), f"{size} bytes")


def file_name(raw: bytes) -> bytes:
    """Return a file's name from the dump for display: without control characters."""
    return _escaped(raw.decode("utf-8", "surrogateescape")).encode()


def to_json(value: object, **options: Any) -> str:  # noqa: ANN401 - what json.dumps() takes
    """Return JSON as ``json.dumps`` does, with bytes that are not text escaped in its strings (RFC 8259, 8.2)."""
    found = json.dumps(value, **options)
    # Few documents have such bytes, and a look at the text is quicker than one at each string before.
    return json.dumps(_as_text(value), **options) if _SURROGATE_IN_JSON in found else found


def _as_text(value: object) -> object:
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: _code(found[0]), value) if not value.isascii() else value
    if isinstance(value, dict):
        return {_as_text(name): _as_text(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(one) for one in value]
    return value


def _escaped(shown: str) -> str:
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else _code(c) for c in shown)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number - 0xDC00 if number in _UNDECODED else number:02x}"
