"""``/etc/vmcore2core/capture.toml``: which processes get cores when the machine crashes, and the limits.

::

    directory = "/var/crash"       # cores go to DATE/cores below it, as kdump puts dumps into DATE
    compress = "zstd"              # or "none"
    redact = ["no-env"]            # as --redact; default: nothing
    filter = "0x33"                # as --filter; default: each process's own coredump_filter

    [limits]
    seconds = 60                   # from the start; then makedumpfile's turn comes
    core = "2 GiB"                 # a larger process keeps a core of its stacks
    total = "8 GiB"                # all cores together
    keep_free = "10 %"             # of the file system, or an amount such as "4 GiB"
    memory = "64 MiB"              # of the capture kernel's, as --install writes it into the unit

    [[process]]                    # in the order of importance; of one kind any, of several kinds all must fit
    comm = ["postgres"]
    uid = [109]

    [[process]]
    cgroup = ["/system.slice/app-*.service"]
    stacks_only = true             # registers and stacks, whatever room there is

Conditions are those of the command line: comm, exe, uid, cgroup, container, nspid, state, exclude.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vmcore2core.choose import Choice
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import UsageError
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.redact import parse_redaction

DEFAULT_PATH = Path("/etc/vmcore2core/capture.toml")
SIZE_MAX = 1 << 20
FILTER_MAX = (DumpFilter.DAX_SHARED << 1) - 1
SECONDS_MAX = 3600
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_AMOUNT = re.compile(r"(\d+) ?(KiB|MiB|GiB|TiB)?")
_NUMBERS = ("uid", "nspid")
_CONDITIONS = tuple(part.name for part in fields(Choice) if part.name != "pid")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the cores may cost.

    Attributes:
        seconds: wall-clock time from the start.
        core: most bytes of one core, or None.
        total: most bytes of all cores, or None.
        keep_free: bytes of the file system that must stay free.
        keep_free_percent: likewise, in percent of its size.
        memory: bytes of the capture kernel's memory, which the service manager enforces.
    """

    seconds: int = 60
    core: int | None = None
    total: int | None = None
    keep_free: int = 0
    keep_free_percent: int = 10
    memory: int = 64 << 20

    def free_at_least(self, size: int) -> int:
        """Return the bytes that must stay free on a file system of ``size`` bytes."""
        return max(self.keep_free, size * self.keep_free_percent // 100)


DEFAULTS = Limits()
PACKED = CoreOptions(compression="zstd")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One ``[[process]]``: which processes, and whether their stacks are enough."""

    choice: Choice
    stacks_only: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A site's configuration.

    Attributes:
        directory: the capture makes DATE/cores below it.
        wanted: the wanted processes, most important first.
        limits: the limits of the cores.
        core: how to write each core.
        words: settings that change a core's contents, as the index records them.
    """

    directory: Path
    wanted: tuple[Wanted, ...]
    limits: Limits = DEFAULTS
    core: CoreOptions = PACKED
    words: dict[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> Config | None:
    """Return the file's configuration, or None if it does not exist: then nothing is captured.

    Raises:
        UsageError: it cannot be read, or is not valid.
    """
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > SIZE_MAX:
        raise UsageError(f"{path} is larger than {SIZE_MAX:#x} bytes, expected a few lines of TOML")
    try:
        found = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    try:
        return _config(found)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _config(found: Mapping[str, Any]) -> Config:
    _only(found, {"directory", "compress", "redact", "filter", "limits", "process"}, "")
    compress = _word(found.get("compress", "zstd"), "compress")
    if compress not in ("zstd", "none"):
        raise UsageError(f'compress is "{compress}", expected "zstd" or "none"')
    redact = _words(found["redact"], "redact") if "redact" in found else []
    mask = found.get("filter")
    directory = _word(found.get("directory", "/var/crash"), "directory")
    if not os.path.isabs(directory):  # noqa: PTH117 - a Path would lose what is wrong with the word
        raise UsageError(f'directory is "{directory}", expected an absolute path')
    return Config(
        directory=Path(directory),
        wanted=_wanted(found.get("process")),
        limits=_limits(_table(found.get("limits", {}), "[limits]")),
        core=CoreOptions(
            dump_filter=None if mask is None else DumpFilter(_mask(mask)),
            redaction=parse_redaction(redact),
            compression="zstd" if compress == "zstd" else None,
        ),
        words={"filter": mask, "redact": sorted(redact), "compress": None if compress == "none" else compress},
    )


def _wanted(found: object) -> tuple[Wanted, ...]:
    if not isinstance(found, list) or not found:
        raise UsageError("no [[process]] says which processes are wanted")
    wanted = []
    for number, entry in enumerate(found, 1):
        where = f"[[process]] number {number}"
        table = _table(entry, where)
        _only(table, {*_CONDITIONS, "stacks_only"}, f" in {where}")
        conditions: dict[str, tuple[Any, ...]] = {
            name: tuple((_numbers if name in _NUMBERS else _words)(table[name], f"{name} in {where}"))
            for name in _CONDITIONS
            if name in table
        }
        if "state" in conditions:
            conditions["state"] = tuple("".join(conditions["state"]))
        choice = Choice(**conditions)
        if not choice.positive:
            raise UsageError(f'{where} has no condition, expected one such as comm = ["postgres"]; comm = ["*"] is all')
        stacks_only = table.get("stacks_only", False)
        if not isinstance(stacks_only, bool):
            raise UsageError(f"stacks_only in {where} is {stacks_only!r}, expected true or false")
        wanted.append(Wanted(choice, stacks_only))
    return tuple(wanted)


def _limits(table: Mapping[str, Any]) -> Limits:
    _only(table, {"seconds", "core", "total", "keep_free", "memory"}, " in [limits]")
    seconds = table.get("seconds", DEFAULTS.seconds)
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds <= SECONDS_MAX:
        raise UsageError(f"seconds in [limits] is {seconds!r}, expected a number from 1 to {SECONDS_MAX}")
    free = table.get("keep_free", f"{DEFAULTS.keep_free_percent} %")
    percent = re.fullmatch(r"(\d{1,2}) ?%", free) if isinstance(free, str) else None
    return Limits(
        seconds=seconds,
        core=_amount(table["core"], "core") if "core" in table else None,
        total=_amount(table["total"], "total") if "total" in table else None,
        memory=_amount(table["memory"], "memory") if "memory" in table else DEFAULTS.memory,
        keep_free=0 if percent else _amount(free, "keep_free"),
        keep_free_percent=int(percent[1]) if percent else 0,
    )


def _amount(value: object, name: str) -> int:
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UsageError(f'{name} in [limits] is {value!r}, expected an amount such as "500 MiB" or "2 GiB"')
    return int(match[1]) * _UNITS[match[2] or ""]


def _mask(value: object) -> int:
    mask = int(value, 16) if isinstance(value, str) and re.fullmatch(r"0x[0-9a-f]{1,8}", value) else -1
    if not 0 <= mask <= FILTER_MAX:
        raise UsageError(f'filter is {value!r}, expected a text such as "0x33", "{FILTER_MAX:#x}" at most')
    return mask


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise UsageError(f"{name}{where} is not known, expected one of {', '.join(sorted(known))}")


def _table(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is no table")
    return value


def _word(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}, expected a text")
    return value


def _list_of(kind: type) -> Callable[[object, str], list[Any]]:
    def check(value: object, name: str) -> list[Any]:
        if not isinstance(value, list) or not value or not all(type(one) is kind for one in value):
            raise UsageError(f"{name} is {value!r}, expected a list of {'texts' if kind is str else 'numbers'}")
        return value

    return check


_numbers = _list_of(int)
_words = _list_of(str)
