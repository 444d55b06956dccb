"""When and why the kernel died, as far as the dump tells."""

from __future__ import annotations

from vmcore2core.kernel.message import Message
from vmcore2core.kernel.timekeeping import clock
from vmcore2core.session import Session


def crash_time(session: Session) -> int | None:
    """Return VMCOREINFO's CRASHTIME, seconds since 1970: only a kernel that panicked writes it."""
    found = session.boot.vmcoreinfo.string("CRASHTIME")
    return int(found) if found and found.isdigit() else None


def boot_time(session: Session, messages: list[Message]) -> tuple[float | None, str | None]:
    """Return when the messages' seconds begin, in seconds since 1970, and a sentence where that is not exact.

    Args:
        session: the dump.
        messages: the kernel's, oldest first.
    """
    known = clock(session.kernel)
    if known is not None:
        return known.boot, None
    crashed = crash_time(session)
    if crashed is None or not messages:
        return None, "the time of day is not known: the layout has no timekeeper, and VMCOREINFO no CRASHTIME"
    return crashed - messages[-1].seconds, "times of day are some seconds off: they are counted back from CRASHTIME"
