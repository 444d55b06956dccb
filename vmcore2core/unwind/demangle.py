"""Names of C++ and Rust functions as their programmers wrote them.

pycxxfilt has LLVM's demanglers for the Itanium C++ ABI and for Rust's v0 names. Rust's legacy names have the form of
C++ names; this module removes what Rust adds to them.

Reference: rustc-demangle's src/legacy.rs (0.1.24).
"""

from __future__ import annotations

import re

_LLVM_SUFFIX = re.compile(r" \(\.llvm\.[0-9A-F]+\)$")
_LEGACY_HASH = re.compile(r"::h[0-9a-f]{16}(?= \(\.|$)")
_LEGACY_START = re.compile(r"(^|::)_\$")
_LEGACY_ESCAPE = re.compile(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$")
_LEGACY_LETTERS = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}
NAME_MAX = 1 << 14


def demangled(name: str) -> str:
    """Return a function's name as its programmer wrote it, or the name unchanged if it is not mangled."""
    if not name.startswith(("_Z", "_R", "__Z")) or len(name) > NAME_MAX:
        return name
    try:
        from pycxxfilt import demangle

        found: str | None = demangle(name)
    except (ImportError, ValueError):
        return name
    if found is None:
        return name
    found = _LLVM_SUFFIX.sub("", found)
    return _of_rust(found) if _LEGACY_HASH.search(found) else found


def _of_rust(name: str) -> str:
    plain = _LEGACY_START.sub(r"\1$", _LEGACY_HASH.sub("", name))
    return _LEGACY_ESCAPE.sub(_letter, plain).replace("..", "::")


def _letter(escape: re.Match[str]) -> str:
    word = escape[1]
    if word in _LEGACY_LETTERS:
        return _LEGACY_LETTERS[word]
    number = int(word[1:], 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else escape[0]
