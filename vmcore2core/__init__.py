"""vmcore2core writes ordinary per-process ELF cores from Linux kernel crash dumps, without kernel debug information.

Start with ``open_dump``; ``vmcore2core/docs/api.md`` has examples. Modules are imported on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmcore2core.dump import Dump, Process, Thread, open_dump
    from vmcore2core.errors import Vmcore2coreError

__version__ = "0.1.0"
__all__ = ["Dump", "Process", "Thread", "Vmcore2coreError", "__version__", "open_dump"]


def __getattr__(name: str) -> object:
    if name == "Vmcore2coreError":
        from vmcore2core.errors import Vmcore2coreError

        return Vmcore2coreError
    if name in ("Dump", "Process", "Thread", "open_dump"):
        from vmcore2core import dump

        return getattr(dump, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
