"""vmcore2core writes ordinary per-process ELF cores from Linux kernel crash dumps, without kernel debug information.

Start with ``open_dump``; ``vmcore2core/docs/api.md`` has examples. The names here are all that vmcore2core's own
commands use. Modules are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmcore2core.arguments import NamedDump as NamedDump
    from vmcore2core.arguments import find_dump as find_dump
    from vmcore2core.arguments import named_dump as named_dump
    from vmcore2core.choose import Choice as Choice
    from vmcore2core.compare_with_dump import Comparison as Comparison
    from vmcore2core.compare_with_dump import open_core as open_core
    from vmcore2core.corefile.inspect import CoreCheck as CoreCheck
    from vmcore2core.corefile.inspect import CoreFile as CoreFile
    from vmcore2core.corefile.inspect import check_core as check_core
    from vmcore2core.corefile.options import CoreOptions as CoreOptions
    from vmcore2core.dump import Dump as Dump
    from vmcore2core.dump import Plan as Plan
    from vmcore2core.dump import Selection as Selection
    from vmcore2core.dump import open_dump as open_dump
    from vmcore2core.dumped_process import Process as Process
    from vmcore2core.dumped_process import Thread as Thread
    from vmcore2core.errors import Vmcore2coreError as Vmcore2coreError
    from vmcore2core.handover.cores import cores_of as cores_of
    from vmcore2core.kernel.message import FACILITIES as FACILITIES
    from vmcore2core.kernel.message import LEVELS as LEVELS
    from vmcore2core.kernel.message import Message as Message
    from vmcore2core.process.debuginfod import debuginfod as debuginfod
    from vmcore2core.process.dump_filter import DumpFilter as DumpFilter
    from vmcore2core.process.kernelbt import KernelFrameRow as KernelFrameRow
    from vmcore2core.process.kernelbt import KernelStack as KernelStack
    from vmcore2core.process.openfiles import OpenFiles as OpenFiles
    from vmcore2core.process.redact import Redaction as Redaction
    from vmcore2core.process.redact import parse_redaction as parse_redaction
    from vmcore2core.report import CoreReport as CoreReport
    from vmcore2core.report import RunReport as RunReport
    from vmcore2core.run.cluster import cluster_workers as cluster_workers
    from vmcore2core.run.cluster import worker_dump as worker_dump
    from vmcore2core.run.options import RunOptions as RunOptions
    from vmcore2core.session import CoreResult as CoreResult
    from vmcore2core.session import OpenOptions as OpenOptions
    from vmcore2core.tasks.maps import MapRow as MapRow
    from vmcore2core.tasks.messages import KernelLog as KernelLog
    from vmcore2core.tasks.messages import open_log as open_log
    from vmcore2core.tasks.ps import Part as Part
    from vmcore2core.tasks.ps import TaskRow as TaskRow
    from vmcore2core.tasks.stacks import ProcessStacks as ProcessStacks
    from vmcore2core.tasks.stacks import StackOptions as StackOptions
    from vmcore2core.tasks.stacks import Stacks as Stacks
    from vmcore2core.tasks.waits import WaitReport as WaitReport
    from vmcore2core.tasks.waits import WaitRow as WaitRow
    from vmcore2core.unwind.stacks import FrameRow as FrameRow
    from vmcore2core.unwind.stacks import StackRow as StackRow
    from vmcore2core.unwind.stacks import WantedFile as WantedFile

__version__ = "0.1.0"
_PUBLIC = {
    "arguments": "NamedDump find_dump named_dump",
    "choose": "Choice",
    "compare_with_dump": "Comparison open_core",
    "corefile.inspect": "CoreCheck CoreFile check_core",
    "corefile.options": "CoreOptions",
    "dump": "Dump Plan Selection open_dump",
    "dumped_process": "Process Thread",
    "errors": "Vmcore2coreError",
    "handover.cores": "cores_of",
    "kernel.message": "FACILITIES LEVELS Message",
    "process.debuginfod": "debuginfod",
    "process.dump_filter": "DumpFilter",
    "process.kernelbt": "KernelFrameRow KernelStack",
    "process.openfiles": "OpenFiles",
    "process.redact": "Redaction parse_redaction",
    "report": "CoreReport RunReport",
    "run.cluster": "cluster_workers worker_dump",
    "run.options": "RunOptions",
    "session": "CoreResult OpenOptions",
    "tasks.maps": "MapRow",
    "tasks.messages": "KernelLog open_log",
    "tasks.ps": "Part TaskRow",
    "tasks.stacks": "ProcessStacks StackOptions Stacks",
    "tasks.waits": "WaitReport WaitRow",
    "unwind.stacks": "FrameRow StackRow WantedFile",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
