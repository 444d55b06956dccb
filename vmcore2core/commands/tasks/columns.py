"""The columns that ``vmcore-tasks ps -o`` knows, named and headed as ps(1) has them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from vmcore2core.times import ctime

if TYPE_CHECKING:
    from vmcore2core import Part, TaskRow

DAY, HOUR, MINUTE = 86400, 3600, 60


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        head: its heading.
        width: characters that most values need; negative for text, which begins at the left.
        value: what a row has there; None is "not known".
        part: the name of the ``ps.Part`` that has to be looked up, or None.
    """

    head: str
    width: int
    value: "Callable[[TaskRow], object]"
    part: str | None = None

    def cell(self, shown: str) -> str:
        """Return a value in the column's width."""
        return shown.rjust(self.width) if self.width > 0 else shown.ljust(-self.width)

    def text(self, row: "TaskRow") -> str:
        """Return a row's value as text."""
        value = self.value(row)
        return self.cell("-" if value is None or value == "" else str(value))


def command(row: "TaskRow") -> str:
    """Return the command line, or the name in brackets if there is none, as for a kernel thread."""
    shown = f"[{row.comm}]" if row.kernel_thread or row.command is None else row.command
    return f"{shown} <defunct>" if row.state == "Z" else shown


def _time(row: "TaskRow") -> str | None:
    """Return the time on a CPU as ps(1) writes it: [DD-]HH:MM:SS."""
    if row.cpu_seconds is None:
        return None
    days, rest = divmod(int(row.cpu_seconds), DAY)
    shown = f"{rest // HOUR:02}:{rest % HOUR // MINUTE:02}:{rest % MINUTE:02}"
    return f"{days:02}-{shown}" if days else shown


COLUMNS = {
    "pid": Column("PID", 7, lambda row: row.pid),
    "lwp": Column("LWP", 7, lambda row: row.tid),
    "ppid": Column("PPID", 7, lambda row: row.ppid),
    "pgid": Column("PGID", 7, lambda row: row.pgid, "IDS"),
    "sid": Column("SID", 7, lambda row: row.sid, "IDS"),
    "uid": Column("UID", 5, lambda row: row.uid, "IDS"),
    "ruid": Column("RUID", 5, lambda row: row.ruid, "IDS"),
    "gid": Column("GID", 5, lambda row: row.gid, "IDS"),
    "rgid": Column("RGID", 5, lambda row: row.rgid, "IDS"),
    "ni": Column("NI", 3, lambda row: row.nice, "IDS"),
    "s": Column("S", 1, lambda row: row.state),
    "psr": Column("PSR", 3, lambda row: row.cpu),
    "nlwp": Column("NLWP", 4, lambda row: row.threads),
    "vsz": Column("VSZ", 9, lambda row: row.vsz_kib, "MEMORY"),
    "rss": Column("RSS", 8, lambda row: row.rss_kib, "MEMORY"),
    "lstart": Column("STARTED", 24, lambda row: ctime(row.started), "TIMES"),
    "time": Column("TIME", 8, _time, "TIMES"),
    "comm": Column("COMMAND", -15, lambda row: row.comm),
    "args": Column("COMMAND", -27, command, "MEMORY"),
    "exe": Column("EXE", -27, lambda row: row.exe, "PLACES"),
    "cgroup": Column("CGROUP", -27, lambda row: ",".join(row.cgroups or ()), "PLACES"),
    "container": Column("CONTAINER", -64, lambda row: ",".join(row.containers or ()), "PLACES"),
}
ALIASES = {
    **dict.fromkeys(("tid", "spid"), "lwp"),
    **dict.fromkeys(("state", "stat"), "s"),
    **dict.fromkeys(("cmd", "command"), "args"),
    "ucmd": "comm",
    "cputime": "time",
    "thcount": "nlwp",
    "nice": "ni",
    "pgrp": "pgid",
    **dict.fromkeys(("sess", "session"), "sid"),
    **dict.fromkeys(("rssize", "rsz"), "rss"),
    "vsize": "vsz",
    "euid": "uid",
    "egid": "gid",
}
DEFAULT = ("pid", "ppid", "s", "psr", "nlwp", "vsz", "rss", "args")


def columns(words: list[str] | None, *, threads: bool) -> list[Column]:
    """Return the columns that -o names, separated by commas or blanks; by default those of ps(1).

    Raises:
        typer.BadParameter: there is no such column.
    """
    names = [name for word in words or () for name in word.replace(",", " ").split()]
    for name in names:
        if ALIASES.get(name, name) not in COLUMNS:
            raise typer.BadParameter(f"-o {name}: expected some of {', '.join(COLUMNS)}")
    default = [DEFAULT[0], "lwp", *DEFAULT[1:]] if threads else DEFAULT
    return [COLUMNS[ALIASES.get(name, name)] for name in names or default]


def parts(shown: list[Column]) -> "Part":
    """Return which data of a task the columns need."""
    from vmcore2core import Part

    found = Part(0)
    for column in shown:
        found |= Part(0) if column.part is None else Part[column.part]
    return found
