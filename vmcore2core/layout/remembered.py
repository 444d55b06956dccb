"""Answers from a dump's own symbols and types, cached for later runs. They are checked, and every run can do without.

Two kinds of files, in the folder ``layout`` of the cache:

- ``dump-HASH.json``: all answers from one dump, by the identity of its files (device, inode, size, times of change; of
  a URL, the version that the server names for certain). With these, neither kallsyms nor BTF is read at all.
- ``btf-HASH.json``: answers of one kernel's types, by the hash of the whole BTF; they serve every dump of that kernel,
  wherever it was loaded. Another kernel's answers cannot get in: its BTF has another hash.

Each file begins with the hash of the rest. Answers from here go through the same checks as the dump's own
(``bootstrap``); if one fails, the dump is asked.

References: XDG Base Directory Specification 0.8, $XDG_CACHE_HOME.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from vmcore2core import __version__
from vmcore2core.containers.cache import cache_folder, find
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import DumpError, OutputError
from vmcore2core.folders import opened_folder, part_name
from vmcore2core.interfaces import Member, SymbolAt
from vmcore2core.layout.base import LayoutSource
from vmcore2core.overrides import override

log = logging.getLogger(__name__)

FORM = 1
"""Version of the files; it increases whenever a source would give other answers than before."""

SIZE_MAX = 1 << 20
ANSWERS_MAX = 1 << 14
FILES_MAX = 256  # the oldest are removed

T = TypeVar("T")


class Answers:
    """The answers of one source, by question; None is an answer, too.

    Attributes:
        name: of the source.
        changed: whether there are new answers to keep.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.changed = False
        self._members: dict[str, Member | None] = {}
        self._numbers: dict[str, int | None] = {}
        self._returned = (0, 0)  # how many of each ``news`` has returned

    def member(self, key: str, ask: Callable[[], Member | None]) -> Member | None:
        """Return a member's place, asking the source once."""
        return self._once(self._members, key, ask)

    def number(self, key: str, ask: Callable[[], int | None]) -> int | None:
        """Return a size, an address or a constant, asking the source once."""
        return self._once(self._numbers, key, ask)

    def _once(self, known: dict[str, T | None], key: str, ask: Callable[[], T | None]) -> T | None:
        if key not in known:
            answer = ask()
            if len(known) >= ANSWERS_MAX:
                return answer
            known[key] = answer
            self.changed = True
        return known[key]

    def to_json(self) -> dict[str, object]:
        """Return the answers in the form that ``from_json`` reads."""
        return self._to_json(0, 0)

    def _to_json(self, nr_members: int, nr_numbers: int) -> dict[str, object]:
        """Return the answers after the first ones, as counted."""
        members = islice(self._members.items(), nr_members, None)
        return {
            "name": self.name,
            "members": {key: None if member is None else member._asdict() for key, member in members},
            "numbers": dict(islice(self._numbers.items(), nr_numbers, None)),
        }

    def news(self) -> dict[str, object] | None:
        """Return the answers since the last call, in the form that ``learn`` reads; None if there are none."""
        before, self._returned = self._returned, (len(self._members), len(self._numbers))
        return None if before == self._returned else self._to_json(*before)

    def learn(self, found: dict[str, Any]) -> None:
        """Add answers that another process of this run got."""
        other = Answers.from_json(found)
        self.name = self.name or other.name
        for key, member in other._members.items():
            self.member(key, partial(_same, member))
        for key, number in other._numbers.items():
            self.number(key, partial(_same, number))

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Answers:
        """Return the answers that were kept.

        Raises:
            TypeError, KeyError, ValueError: the document has another form.
        """
        answers = cls()
        answers.name = found["name"]
        if not isinstance(answers.name, str | None):
            raise TypeError("a name that is no text")
        for key, value in found["members"].items():
            member = None if value is None else Member(**value)
            if member is not None and not (_is_number(member.offset) and isinstance(member.source, str)):
                raise ValueError(key)
            answers._members[key] = member
        for key, value in found["numbers"].items():
            if value is not None and not _is_number(value):
                raise ValueError(key)
            answers._numbers[key] = value
        answers._returned = len(answers._members), len(answers._numbers)
        return answers


def _same(answer: T) -> T:
    return answer


def _is_number(value: object) -> bool:
    return isinstance(value, int) and -(1 << 64) < value < 1 << 64


class RememberedSource(LayoutSource):
    """A source that is asked each question only once.

    Args:
        source: the source.
        answers: its earlier answers.
    """

    def __init__(self, source: LayoutSource, answers: Answers) -> None:
        self._source, self._answers = source, answers
        self.name = answers.name or source.name

    def _named(self, answer: T) -> T:
        # A source that opens at the first question knows its name only then.
        self.name = self._answers.name = self._source.name
        return answer

    @override
    def forget(self) -> None:
        self._source.forget()

    @override
    def member(self, struct: str, path: str) -> Member | None:
        return self._answers.member(f"{struct}.{path}", lambda: self._named(self._source.member(struct, path)))

    @override
    def size(self, struct: str) -> int | None:
        return self._answers.number(f"SIZE({struct})", lambda: self._named(self._source.size(struct)))

    @override
    def symbol(self, name: str) -> int | None:
        return self._answers.number(f"SYMBOL({name})", lambda: self._named(self._source.symbol(name)))

    @override
    def all_symbols(self, name: str) -> tuple[int, ...]:
        """Rarely asked, so not remembered."""
        return self._named(self._source.all_symbols(name))

    @override
    def symbol_at(self, address: int) -> SymbolAt | None:
        """Not remembered."""
        return self._named(self._source.symbol_at(address))

    @override
    def constant(self, name: str) -> int | None:
        return self._answers.number(f"NUMBER({name})", lambda: self._named(self._source.constant(name)))


class LayoutMemory:
    """The files of the cache that one session uses; without a cache, all questions go to the sources.

    Args:
        files: the dump's files.
        variant: everything else that the answers depend on.
    """

    def __init__(self, files: Sequence[DumpFile], variant: str = "") -> None:
        self._folder: Path | None = None
        self._open: dict[str, dict[str, Answers]] = {}
        with contextlib.suppress(DumpError):
            self._folder = cache_folder(files[0].path, "layout")
        self._dump = _identity(files, variant)
        self._reads, self._kept = True, False

    def forget(self) -> bool:
        """Drop all answers; tell whether there were any from an earlier run."""
        kept = self._kept
        self._open.clear()
        self._reads, self._kept = False, False
        return kept

    def of_dump(self, source: str) -> Answers:
        """Return the answers of a source of this very dump."""
        return Answers() if self._dump is None else self._answers(f"dump-{self._dump}", source)

    def of_btf(self, data: bytes) -> Answers:
        """Return the answers of these types, from any dump."""
        # Megabytes: OpenSSL's SHA-256 uses the processor's instructions, BLAKE2 of hashlib none.
        digest = hashlib.sha256(_PERSON)
        digest.update(data)
        return self._answers(f"btf-{digest.hexdigest()[:40]}", "btf")

    def _answers(self, file: str, source: str) -> Answers:
        if file not in self._open:
            self._open[file] = self._read(file)
        return self._open[file].setdefault(source, Answers())

    def _read(self, file: str) -> dict[str, Answers]:
        if self._folder is None or not self._reads:
            return {}
        path = self._folder / f"{file}.json"
        handle = find(self._folder, path.name)
        if handle is None:
            return {}
        try:
            with os.fdopen(handle, "rb") as stream:
                found = _checked(stream.read(SIZE_MAX))
            answers = {source: Answers.from_json(value) for source, value in found.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.info("%s is not used: %s", path, error)
            return {}
        log.info("%s: answers of an earlier run", path)
        self._kept = True
        return answers

    def news(self) -> dict[str, dict[str, dict[str, object]]]:
        """Return the answers since the last call, as plain data for ``learn``: by file, by source."""
        told: dict[str, dict[str, dict[str, object]]] = {}
        for file, sources in self._open.items():
            for source, answers in sources.items():
                new = answers.news()
                if new is not None:
                    told.setdefault(file, {})[source] = new
        return told

    def learn(self, news: Mapping[str, Mapping[str, Any]]) -> None:
        """Add answers that workers of this run got from the dump; workers end without ``save``."""
        for file, sources in news.items():
            for source, found in sources.items():
                self._answers(file, source).learn(found)

    def save(self) -> None:
        """Write the new answers; if that fails, the next run asks again."""
        if self._folder is None:
            return
        try:
            for file, sources in self._open.items():
                if any(answers.changed for answers in sources.values()):
                    self._write(file, {source: answers.to_json() for source, answers in sources.items()})
        except (OSError, OutputError) as error:
            log.info("%s: the layout is not kept: %s", self._folder, error)

    def _write(self, file: str, content: dict[str, dict[str, object]]) -> None:
        assert self._folder is not None  # noqa: S101 - see save()
        text = json.dumps(content).encode()
        temporary = part_name(f".{file}.")
        with opened_folder(self._folder, make=True) as directory:
            try:
                # Not synced: a file that is incomplete after a power cut has another hash, and is not used.
                with open(temporary, "xb", opener=partial(_opener, directory)) as stream:
                    stream.write(_digest(text) + b"\n" + text)
                os.replace(temporary, f"{file}.json", src_dir_fd=directory, dst_dir_fd=directory)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory)
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.lstat().st_mtime, reverse=True)
        for old in files[FILES_MAX:]:
            old.unlink(missing_ok=True)


def _opener(directory: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o600, dir_fd=directory)


def _checked(raw: bytes) -> dict[str, Any]:
    digest, _, content = raw.partition(b"\n")
    if digest != _digest(content):
        raise ValueError("its hash does not match its content")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise TypeError("it is not an object")
    return found


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=20, person=_PERSON).hexdigest().encode()


_PERSON = f"{FORM} {__version__}".encode()[:16]


def _identity(files: Sequence[DumpFile], variant: str) -> str | None:
    """Return a hash that no other files have; None if too little is known about one of them."""
    digest = hashlib.blake2b(variant.encode(), digest_size=20, person=_PERSON)
    for file in files:
        identity = file.strong_identity()
        if identity is None:
            return None
        digest.update(f"{identity}\n".encode())
    return digest.hexdigest()
