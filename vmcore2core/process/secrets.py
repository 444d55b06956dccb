"""Search for secrets in all data to be written, and blank them; the search cannot find every secret.

It finds only plain bytes. Secrets that are compressed, encrypted, encoded otherwise, split in two, or of a form that is
not described here, stay.

References: GitHub's "Supported secret scanning patterns"; gitleaks' default rules (8.18); RFC 7468, 7515, 6750, 7617;
AWS IAM's "Reference identifiers".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vmcore2core.errors import UsageError

ALL = "secrets"
ONE = "secret:"
LITERAL_MIN = 4
"""Bytes of the shortest secret in a file: shorter ones would match everywhere."""
VALUE_MIN = 6
"""The same for the value of an environment variable."""
LITERALS_MAX = 4096
FILE_MAX = 1 << 20
OVERLAP = 1 << 16
"""Length in bytes of the longest match that is certainly found if it lies across the borders of two pieces."""


class Form(NamedTuple):
    """What secrets of one kind look like.

    Attributes:
        anchors: bytes that one begins with, each of ``ANCHOR_MIN`` bytes or more: these are looked for first.
        expression: matches one at its anchor; of one with a group, the group is the secret.
    """

    anchors: tuple[bytes, ...]
    expression: bytes


def _form(anchors: bytes, expression: bytes) -> Form:
    return Form(tuple(anchors.split(b" ")), expression)


ANCHOR_MIN = 3

FORMS = {
    "private key": _form(
        b"-BEGIN", rb"-BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\\\r\n\t :,.-]{16,32768}"
    ),
    "JSON web token": _form(b"eyJ", rb"eyJ[\w-]{8,4096}\.eyJ[\w-]{8,16384}\.[\w-]{8,4096}"),
    "AWS access key": _form(b"AKIA ASIA", rb"A(?:KIA|SIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    "AWS secret key": _form(
        b"secret_access_key SECRET_ACCESS_KEY session_token SESSION_TOKEN",
        rb"(?i:secret_access_key|session_token)[\"' ]{0,4}[=:][\"' ]{0,4}([\w/+=]{20,4096})",
    ),
    "GitHub token": _form(b"ghp_ gho_ ghu_ ghs_ ghr_", rb"gh[pousr]_[A-Za-z0-9]{36,255}"),
    "GitHub fine-grained token": _form(b"github_pat_", rb"github_pat_\w{22,255}"),
    "GitLab token": _form(b"glpat-", rb"glpat-[\w-]{20,128}"),
    "Slack token": _form(b"xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs-", rb"xox[abeoprs]-[A-Za-z0-9-]{10,255}"),
    "Google API key": _form(b"AIza", rb"AIza[\w-]{35}"),
    "Google access token": _form(b"ya29.", rb"ya29\.[\w-]{20,2048}"),
    "Stripe key": _form(b"sk_live_ rk_live_", rb"[rs]k_live_[A-Za-z0-9]{16,255}"),
    "npm token": _form(b"npm_", rb"npm_[A-Za-z0-9]{36}"),
    "Azure storage key": _form(b"AccountKey=", rb"AccountKey=([A-Za-z0-9+/=]{40,128})"),
    "HTTP credentials": _form(
        b"uthorization: UTHORIZATION:", rb"(?i:uthorization: ?(?:bearer|basic) )([A-Za-z0-9._~+/=-]{8,8192})"
    ),
    "URL with a password": _form(b"://", rb"://[^\s:/@\"'<>\0]{0,64}:([^\s/@\"'<>\0]{3,128})@"),
    "variable": _form(
        b"PASSWORD PASSWD TOKEN SECRET API_KEY APIKEY ACCESS_KEY ACCESSKEY PRIVATE_KEY PRIVATEKEY",
        rb"(?:PASSWORD|PASSWD|TOKEN|SECRET|(?:API|ACCESS|PRIVATE)_?KEY)[A-Z0-9_]{0,32}=([^\0\n\"' ]{6,4096})",
    ),
}
"""Name -> form. All of memory is searched for the beginnings of anchors only, which takes a few nanoseconds a byte."""


class _Anchors:
    """Finds where forms may begin."""

    def __init__(self, forms: Iterable[Form]) -> None:
        self._forms: dict[bytes, list[tuple[bytes, re.Pattern[bytes]]]] = {}
        self._bytes = np.zeros((ANCHOR_MIN, 256), np.bool_)
        for form in forms:
            for anchor in form.anchors:
                self._forms.setdefault(anchor[:ANCHOR_MIN], []).append((anchor, re.compile(form.expression)))
                self._bytes[np.arange(ANCHOR_MIN), list(anchor[:ANCHOR_MIN])] = True
        self._begun = np.array([int.from_bytes(begun, "little") for begun in self._forms], np.uint32)

    def matches(self, data: bytes) -> Iterator[re.Match[bytes]]:
        """Yield the matches of all forms."""
        raw = np.frombuffer(data, np.uint8)
        at = np.flatnonzero(self._bytes[0][raw[: max(0, len(raw) - ANCHOR_MIN + 1)]])
        for index in range(1, ANCHOR_MIN):
            at = at[self._bytes[index][raw[at + index]]]
        begun = sum(raw[at + index].astype(np.uint32) << np.uint32(8 * index) for index in range(ANCHOR_MIN))
        at = at[np.isin(begun, self._begun)]
        for start in at.tolist():
            for anchor, expression in self._forms.get(data[start : start + ANCHOR_MIN], ()):
                if data.startswith(anchor, start) and (match := expression.match(data, start)):
                    yield match


@cache
def _anchors() -> _Anchors:
    """Return those of all forms; few conversions search for secrets, and all would wait for these to be compiled."""
    return _Anchors(FORMS.values())


_SECRET_NAME = re.compile(rb"PASS(?:WORD|WD|PHRASE)?|TOKEN|KEY|SECRET|CREDENTIAL", re.IGNORECASE)
_NO_SECRET_NAME = re.compile(rb"(?:_FILE|_PATH|_DIR|_SOCK|_URL_BASE)\Z", re.IGNORECASE)

Spans = list[tuple[int, int]]


class Secrets(NamedTuple):
    """Which secrets to search for.

    Attributes:
        literals: bytes as they stand.
        expressions: regular expressions of bytes; of one with a group, the group is the secret.
        known: what has one of the ``FORMS``, and the values of environment variables whose names say that they are
            secret.
    """

    literals: tuple[bytes, ...] = ()
    expressions: tuple[re.Pattern[bytes], ...] = ()
    known: bool = False

    def with_environment(self, strings: bytes) -> Secrets:
        """Return these secrets and the secret values in a process's environment, "NAME=VALUE" with NULs between."""
        if not self.known:
            return self
        pairs = (string.partition(b"=") for string in strings.split(b"\0"))
        values = {value for name, _, value in pairs if len(value) >= VALUE_MIN and _is_secret(name)}
        return self._replace(literals=tuple(sorted({*self.literals, *values}))[:LITERALS_MAX])

    def spans(self, data: bytes) -> Spans:
        """Return where secrets are, ascending and disjoint."""
        found = [span for literal in self.literals for span in _all(literal, data)]
        matches = [match for expression in self.expressions for match in expression.finditer(data)]
        matches += _anchors().matches(data) if self.known else ()
        found += [match.span(match.re.groups and 1) for match in matches]
        return merged(span for span in found if span[0] < span[1])

    def hidden(self, data: bytes) -> bytes:
        """Return bytes with "*" for each byte of a secret."""
        spans = self.spans(data)
        if not spans:
            return data
        shown = bytearray(data)
        for start, end in spans:
            shown[start:end] = b"*" * (end - start)
        return bytes(shown)

    def hide(self, value: Any) -> Any:  # noqa: ANN401 - what JSON has
        """Return text or a JSON value with "*" for secrets in its strings."""
        if isinstance(value, str):
            return self.hidden(value.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
        if isinstance(value, dict):
            return {self.hide(name): self.hide(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.hide(one) for one in value)
        return value


def merged(ranges: Iterable[tuple[int, int]]) -> Spans:
    """Return the ranges in ascending order, with adjacent and overlapping ones joined."""
    found: Spans = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _is_secret(name: bytes) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET_NAME.search(name)


def _all(literal: bytes, data: bytes) -> Iterator[tuple[int, int]]:
    at = data.find(literal)
    while at >= 0:
        yield at, at + len(literal)
        at = data.find(literal, at + 1)


def parse_secrets(words: Sequence[str]) -> Secrets | None:
    """Return what ``--redact secrets`` and ``--redact secret:FILE|REGEX`` ask for; None for nothing.

    Args:
        words: of the command line; "secrets", or "secret:" with the name of a file, each line of which is a secret as
            it stands, or with a regular expression. What begins with "/", "./", "../" or "~" is a file's name.

    Raises:
        UsageError: a file cannot be read or has no secret, or an expression is none.
    """
    found = Secrets()
    for word in words:
        if word == ALL:
            found = found._replace(known=True)
            continue
        given = word.removeprefix(ONE)
        path = Path(given).expanduser()
        if given.startswith(("/", "./", "../", "~")) or path.is_file():
            found = found._replace(literals=tuple(sorted({*found.literals, *_lines(path)})))
        else:
            found = found._replace(expressions=(*found.expressions, _expression(given)))
    if len(found.literals) > LITERALS_MAX:
        raise UsageError(f"--redact {ONE}...: {len(found.literals)} secrets, expected {LITERALS_MAX} at most")
    return found if words else None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_MAX + 1)
    except OSError as error:
        raise UsageError(f"--redact {ONE}{path}: {error.strerror}") from error
    lines = [line.rstrip(b"\r\n") for line in content.split(b"\n")]
    lines = [line for line in lines if line]
    if len(content) > FILE_MAX or not lines or min(map(len, lines)) < LITERAL_MIN:
        raise UsageError(
            f"--redact {ONE}{path}: expected lines of {LITERAL_MIN} bytes or more, {FILE_MAX:#x} bytes at most"
        )
    for line in lines:
        yield line
        wide = line.decode("utf-8", "replace").encode("utf-16-le")
        yield wide  # as Java, .NET and Windows keep it


def _expression(text: str) -> re.Pattern[bytes]:
    try:
        expression = re.compile(text.encode("utf-8", "surrogateescape"))
    except re.error as error:
        raise UsageError(f"--redact {ONE}...: no regular expression ({error}), and no file") from error
    if expression.match(b"") or expression.groups > 1:
        raise UsageError(
            f"--redact {ONE}...: expected an expression that matches one byte or more, with one group or none"
        )
    return expression


class Search:
    """Looks for secrets in pages that come in ascending order, also across the borders of two pieces.

    Args:
        secrets: what is looked for.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._kept, self._at = b"", 0
        self.found: Spans = []

    def add(self, start: int, data: bytes) -> None:
        """Search the bytes at ``start``, and if the last piece ends there, also across the border."""
        if start != self._at + len(self._kept):
            self._kept, self._at = b"", start
        window = self._kept + data
        self.found += [(self._at + low, self._at + high) for low, high in self._secrets.spans(window)]
        if len(self.found) > FOUND_MERGED:
            self.found = merged(self.found)
        keep = min(len(window), OVERLAP)
        self._at += len(window) - keep
        self._kept = window[len(window) - keep :]


FOUND_MERGED = 1 << 16
