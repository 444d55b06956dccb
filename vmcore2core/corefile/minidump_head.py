"""The part of a minidump before memory: the header, the directory of streams, and the streams.

References: google/breakpad's src/client/linux/minidump_writer/minidump_writer.cc (August 2026) for the streams and
their content.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vmcore2core.addresses import align_up
from vmcore2core.corefile.contexts import ContextForm
from vmcore2core.corefile.modules import Module, modules_of
from vmcore2core.corefile.notes import provenance
from vmcore2core.corefile.stored import StoredMemory
from vmcore2core.errors import OutputError
from vmcore2core.formats import minidump as fmt
from vmcore2core.process.model import ProcessSnapshot, ThreadSnapshot
from vmcore2core.process.secrets import Secrets

STRINGS_MAX = 1 << 24
"""Most bytes of arguments, and of environment: more than execve(2) accepts."""
ALIGN = 16
U32 = 0xFFFF_FFFF
"""Mask of a DWORD, for numbers that a torn dump may have negative or too large."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts in a minidump that the process's snapshot does not have; None is "not known".

    Attributes:
        system: what uname(1) would print.
        time: the dump's time, in seconds since 1970.
        arguments: address range of the command line's strings.
        environment: address range of the environment's strings.
        maps: text in the form of /proc/PID/maps.
        status: text in the form of /proc/PID/status.
    """

    system: str = ""
    time: int | None = None
    arguments: Range | None = None
    environment: Range | None = None
    maps: bytes = b""
    status: bytes = b""


@dataclass(frozen=True, slots=True)
class MemoryRanges:
    """The ranges of the process's memory that go into the file, ``[start, end)`` each.

    Attributes:
        stacks: the threads' stacks, ascending and disjoint; they come first in the file.
        rest: all other ranges, ascending and disjoint.
    """

    stacks: tuple[Range, ...]
    rest: tuple[Range, ...]

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All ranges, in the file's order."""
        return *self.stacks, *self.rest

    @property
    def size(self) -> int:
        """Total bytes of all ranges."""
        return sum(end - start for start, end in self.ranges)


class Head:
    """Builds the part before memory: the header, the directory, and what they point to.

    Args:
        streams: most streams that the directory has room for.
    """

    def __init__(self, streams: int) -> None:
        self._directory_at = fmt.MDRawHeader.sizeof()
        self._bytes = bytearray(self._directory_at + streams * fmt.MDRawDirectory.sizeof())
        self._streams: list[dict[str, object]] = []

    @property
    def size(self) -> int:
        """Bytes added so far."""
        return len(self._bytes)

    def put(self, data: bytes) -> dict[str, int]:
        """Add bytes, and return their MDLocationDescriptor."""
        self._bytes += bytes(-len(self._bytes) % ALIGN)
        rva = len(self._bytes)
        self._bytes += data
        if len(self._bytes) >= fmt.RVA_END:
            raise OutputError("a minidump cannot hold this process: what it says of threads and files is too large")
        return {"data_size": len(data), "rva": rva}

    def string(self, shown: str) -> int:
        """Add an MDString, and return its RVA."""
        raw = shown.encode("utf-16-le", "replace")
        return self.put(fmt.MDStringHead.build(len(raw)) + raw + b"\0\0")["rva"]

    def stream(self, stream_type: int, data: bytes) -> int:
        """Add a stream, and return where it is."""
        location = self.put(data)
        self._streams.append({"stream_type": stream_type, "location": location})
        return location["rva"]

    def finish(self, time: int, flags: int) -> bytearray:
        """Return all bytes, with the header and the directory filled in."""
        directory = b"".join(map(fmt.MDRawDirectory.build, self._streams))
        header = fmt.MDRawHeader.build(
            {
                "signature": fmt.SIGNATURE,
                "version": fmt.VERSION,
                "stream_count": len(self._streams),
                "stream_directory_rva": self._directory_at,
                "checksum": 0,
                "time_date_stamp": time & U32,
                "flags": flags,
            }
        )
        self._bytes[: len(header)] = header
        self._bytes[self._directory_at : self._directory_at + len(directory)] = directory
        return self._bytes


def head_of(
    facts: Facts,
    snapshot: ProcessSnapshot,
    stored: StoredMemory,
    form: ContextForm,
    memory: MemoryRanges,
    origin: Mapping[str, str | None],
    secrets: Secrets | None,
) -> bytearray:
    """Return the part of the minidump before memory."""
    head = Head(streams=13)
    hidden: Callable[[bytes], bytes] = (lambda data: data) if secrets is None else secrets.hidden

    def name(raw: bytes) -> str:
        return hidden(raw).decode("utf-8", "replace")

    head.stream(fmt.SYSTEM_INFO_STREAM, _system_info(form, head.string(facts.system)))
    head.stream(fmt.MISC_INFO_STREAM, _misc_info(snapshot.tgid))
    modules = [_module(module, head, name(module.path)) for module in modules_of(snapshot, stored.read)]
    head.stream(fmt.MODULE_LIST_STREAM, _list(modules))
    names = [
        fmt.MDRawThreadName.build({"thread_id": t.tid & U32, "thread_name_rva": head.string(name(t.comm))})
        for t in snapshot.threads
    ]
    head.stream(fmt.THREAD_NAME_LIST_STREAM, _list(names))
    texts = (
        (fmt.LINUX_PROC_STATUS, facts.status),
        (fmt.LINUX_MAPS, facts.maps),
        (fmt.LINUX_CMD_LINE, _strings(stored, facts.arguments)),
        (fmt.LINUX_ENVIRON, _strings(stored, facts.environment)),
    )
    for stream_type, content in texts:
        if content:
            head.stream(stream_type, hidden(content))
    if snapshot.auxv is not None:
        head.stream(fmt.LINUX_AUXV, snapshot.auxv)
    head.stream(fmt.COMMENT_STREAM_A, provenance(snapshot, origin, secrets) + b"\0")
    contexts = [head.put(form.context(thread)) for thread in snapshot.threads]
    for thread, context in zip(snapshot.threads, contexts, strict=True):
        if thread.pr_cursig:
            head.stream(fmt.EXCEPTION_STREAM, _exception(thread, context))
            break
    _threads_and_memory(head, snapshot, form, memory, contexts)
    return head.finish(facts.time or 0, fmt.WITH_FULL_MEMORY)


def _threads_and_memory(
    head: Head, snapshot: ProcessSnapshot, form: ContextForm, memory: MemoryRanges, contexts: Sequence[dict[str, int]]
) -> None:
    """Add the last streams; their size is known in advance, so they can say where memory begins."""
    sizes = np.array([end - start for start, end in memory.ranges], np.uint64)
    table = np.zeros(len(sizes), fmt.MEMORY_RANGE_DTYPE)
    table["start_of_memory_range"] = [start for start, _ in memory.ranges]
    table["data_size"] = sizes
    list_size = fmt.MDMemory64List.sizeof() + table.nbytes
    threads_size = fmt.COUNT.sizeof() + len(snapshot.threads) * fmt.MDRawThread.sizeof()
    at = align_up(align_up(head.size, ALIGN) + threads_size, ALIGN)
    base = align_up(at + list_size, snapshot.page_size)
    places = (base + np.cumsum(sizes) - sizes).tolist()
    threads = [
        _thread(thread, form, memory.stacks, places, context)
        for thread, context in zip(snapshot.threads, contexts, strict=True)
    ]
    head.stream(fmt.THREAD_LIST_STREAM, _list(threads))
    start = fmt.MDMemory64List.build({"number_of_memory_ranges": len(table), "base_rva": base})
    head.stream(fmt.MEMORY_64_LIST_STREAM, start + table.tobytes())


def _list(records: Sequence[bytes]) -> bytes:
    return fmt.COUNT.build(len(records)) + b"".join(records)


def _thread(
    thread: ThreadSnapshot,
    form: ContextForm,
    stacks: Sequence[Range],
    places: Sequence[int],
    context: dict[str, int],
) -> bytes:
    """Return MDRawThread; if the stack's file offset does not fit an RVA, it has only the stack's address.

    Args:
        thread: the thread.
        form: the form of its registers.
        stacks: the ranges of memory that are stacks, ascending.
        places: file offset of each stack.
        context: place of its registers in the file.
    """
    start, place, size = form.registers(thread)[form.stack_pointer], 0, 0
    number = bisect_right(stacks, start, key=lambda stack: stack[0]) - 1
    if (
        number >= 0
        and start < stacks[number][1]
        and places[number] + stacks[number][1] - stacks[number][0] < fmt.RVA_END
    ):
        start, place, size = stacks[number][0], places[number], stacks[number][1] - stacks[number][0]
    return fmt.MDRawThread.build(
        {
            "thread_id": thread.tid & U32,
            "suspend_count": 0,
            "priority_class": 0,
            "priority": 0,
            "teb": 0,
            "stack": {"start_of_memory_range": start, "memory": {"data_size": size, "rva": place}},
            "thread_context": context,
        }
    )


def _module(module: Module, head: Head, name: str) -> bytes:
    """Return MDRawModule, with the build ID if known."""
    record = {"data_size": 0, "rva": 0}
    if module.build_id is not None:
        record = head.put(fmt.COUNT.build(fmt.CVINFOELF_SIGNATURE) + module.build_id)
    return fmt.MDRawModule.build(
        {
            "base_of_image": module.start,
            "size_of_image": min(module.end - module.start, U32),
            "checksum": 0,
            "time_date_stamp": 0,
            "module_name_rva": head.string(name),
            "version_info": None,
            "cv_record": record,
            "misc_record": None,
            "reserved": None,
        }
    )


def _system_info(form: ContextForm, csd_version_rva: int) -> bytes:
    names = ("processor_level", "processor_revision", "number_of_processors", "product_type", "suite_mask")
    return fmt.MDRawSystemInfo.build(
        {
            **dict.fromkeys((*names, "major_version", "minor_version", "build_number"), 0),
            "processor_architecture": form.architecture,
            "platform_id": fmt.OS_LINUX,
            "csd_version_rva": csd_version_rva,
            "cpu": None,
        }
    )


def _misc_info(pid: int) -> bytes:
    times = ("process_create_time", "process_user_time", "process_kernel_time")
    size = fmt.MDRawMiscInfo.sizeof()
    return fmt.MDRawMiscInfo.build(
        {**dict.fromkeys(times, 0), "size_of_info": size, "flags1": fmt.MISC_INFO_PROCESS_ID, "process_id": pid & U32}
    )


def _exception(thread: ThreadSnapshot, context: dict[str, int]) -> bytes:
    """Return MDRawExceptionStream of a thread's signal; unknown fields are zero."""
    names = ("exception_flags", "exception_record", "exception_address", "number_parameters")
    return fmt.MDRawExceptionStream.build(
        {
            **dict.fromkeys(names, 0),
            "thread_id": thread.tid & U32,
            "exception_code": thread.pr_cursig & U32,
            "thread_context": context,
        }
    )


def _strings(stored: StoredMemory, where: Range | None) -> bytes | None:
    """Return arguments or environment with their NULs; None if the minidump's memory lacks any of their bytes."""
    if where is None or not 0 < where[1] - where[0] <= STRINGS_MAX or stored.is_blanked(*where):
        return None
    return stored.read(where[0], where[1] - where[0])
