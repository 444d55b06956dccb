"""The ``--check`` of a core that an earlier run finished."""

from __future__ import annotations

from pathlib import Path

from vmcore2core.compare_with_dump import compare, open_core
from vmcore2core.corefile.inspect import problems
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import Vmcore2coreError
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import counted
from vmcore2core.session import Session


def damage(session: Session, leader: StructView, path: Path, options: CoreOptions, pages: int) -> str | None:
    """Return a sentence if a core differs from what this run would write, else None.

    Args:
        session: the dump.
        leader: the process.
        path: the core.
        options: how this run would write it.
        pages: number of its pages when it was written.
    """
    try:
        with open_core(path) as core:
            wrong = next(problems(core), None)
            if wrong is not None:
                return wrong
            found = compare(core, session)
            wanted = [load._replace(offset=0, shared=False) for load in session.segments(leader, options)]
            if [load._replace(offset=0) for load in core.loads] != wanted:
                return "its program headers differ from those that it would get"
    except Vmcore2coreError as error:
        return str(error)
    if found.equal and found.same != pages:
        return f"it has {counted(found.same, 'page')}, expected {pages}"
    return next(found.sentences(), None)
