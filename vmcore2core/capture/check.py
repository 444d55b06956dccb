"""What a configuration would capture of a machine, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vmcore2core.capture.config import Config
from vmcore2core.capture.run import Room, Say, targets
from vmcore2core.containers.cache import ProgressBar
from vmcore2core.printable import amount
from vmcore2core.room import existing
from vmcore2core.run.space import core_size
from vmcore2core.session import OpenOptions, Session, core_name


def would_capture(config: Config, memory: Path, say: Say, progress: ProgressBar | None = None) -> Iterator[str]:
    """Yield a line for each core with its size, and one with the sum; cache the layout for the capture kernel.

    Args:
        config: the configuration.
        memory: the running machine's memory, or a dump.
        say: takes a sentence for each condition that no process meets.
        progress: draws a bar while the dump is opened.

    Raises:
        DumpError, LayoutError: the memory cannot be used.
        TaskError, MemoryFault: a process cannot be read.
    """
    total = 0
    with Session([memory], OpenOptions(remember=True), progress) as session:
        for target in targets(session, config.wanted, say):
            size = core_size(session.capture(target.chosen.leader, config.core)).on_disk
            limit = config.limits.core
            stacks = target.stacks_only or (limit is not None and size > limit)
            total += 0 if stacks else size
            yield f"{core_name(target.chosen.leader)}: {'stacks alone of ' if stacks else ''}{amount(size)} at most"
    yield f"{amount(total)} at most, before compression"
    yield _room(config, total)


def _room(config: Config, total: int) -> str:
    """Return a sentence on the room that the target has for all whole cores; the capture kernel may mount it anew."""
    try:
        refusal = Room(existing(config.directory), replace(config.limits, core=None)).refusal(total, 0)
    except OSError as error:
        return f"{config.directory}: {error.strerror}, so its room is not known"
    if refusal is None:
        return f"{config.directory} has room for them"
    return f"{config.directory} may not have room for all, and some would keep their stacks alone: {refusal}"
