"""One message of the kernel, from either form of the buffer."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
"""dmesg(1)'s names of KERN_EMERG (0) to KERN_DEBUG (7)."""
FACILITIES = ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp")
"""dmesg(1)'s names of syslog(3)'s facilities, 0 to 11."""
NSEC_PER_SEC = 10**9
CPU_CALLER = 0x8000_0000
"""Set in ``caller_id`` if an interrupt printed, not a task; then the rest is the CPU's number."""


@dataclass(frozen=True, slots=True)
class Message:
    """One record; None is "not known".

    Attributes:
        nanoseconds: since boot.
        text: without its newline.
        level: 0 (KERN_EMERG) to 7 (KERN_DEBUG).
        facility: as syslog(3) numbers them; 0 is the kernel.
        caller: who printed it, as the kernel writes it: "T812" for a task, "C3" for CPU 3 in an interrupt.
    """

    nanoseconds: int
    text: str
    level: int | None = None
    facility: int | None = None
    caller: str | None = None

    @property
    def seconds(self) -> float:
        """Since boot."""
        return self.nanoseconds / NSEC_PER_SEC

    def stamp(self) -> str:
        """Return the time as the kernel prints it (kernel/printk/printk.c: print_time()), which cuts digits off."""
        seconds, rest = divmod(self.nanoseconds, NSEC_PER_SEC)
        return f"{seconds:5}.{rest // 1000:06}"


def caller_name(number: int) -> str:
    """Return ``caller_id`` as the kernel writes it (kernel/printk/printk.c: print_caller())."""
    return f"C{number & ~CPU_CALLER}" if number & CPU_CALLER else f"T{number}"


def level_of(bits: int, *, little: bool) -> int:
    """Return the level in a byte that C declares as ``u8 flags:5, level:3``."""
    return bits >> 5 if little else bits & 7
