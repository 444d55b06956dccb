"""One process's entry in the index, as plain data for JSON; ``index``'s docstring describes its form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from vmcore2core.elf.build_id import build_id
from vmcore2core.errors import MemoryFault, Vmcore2coreError
from vmcore2core.formats.elf import ELFMAG
from vmcore2core.kernel import mm, sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pages import UserPageState
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import text
from vmcore2core.process.identity import Identity
from vmcore2core.process.kernelbt import KernelFrameRow, KernelStacks, NamedCall
from vmcore2core.process.model import ProcessSnapshot, Vma
from vmcore2core.process.openfiles import FileTables
from vmcore2core.process.sleepers import AWAKE, Sleep, Sleepers
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.sysroot import mapped
from vmcore2core.process.threads import thread_rows
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.stacks import FrameRow, StackRow, stack_rows
from vmcore2core.unwind.threads import Unwound

IMAGES_MAX = 4096
_NOT_LOOKED = {"kernel": None, "system_call": None, "since": None, "wait": None}

_SWAPPED = frozenset(
    {
        UserPageState.SWAPPED,
        UserPageState.SWAPPED_TO_DISK,
        UserPageState.SWAP_UNREADABLE,
        UserPageState.SWAP_CUT_OFF,
    }
)
_NAMES = {
    UserPageState.PRESENT: "present",
    UserPageState.ZERO: "zero",
    UserPageState.STORED: "from_swap",
    UserPageState.ORIGINAL: "from_file",
    UserPageState.EXCLUDED: "excluded",
    UserPageState.NOT_CACHED: "not_in_memory",
    UserPageState.BEYOND_FILE: "none",
    UserPageState.GUARD: "none",
    **dict.fromkeys(_SWAPPED, "swapped"),
}


@dataclass(frozen=True)
class KernelReaders:
    """Readers of the kernel's side of processes; each is None if it is not wanted or the layout does not support it.

    Attributes:
        stacks: the kernel stacks of threads.
        sleepers: why threads sleep, and since when.
        tables: the open files of processes.
    """

    stacks: KernelStacks | None = None
    sleepers: Sleepers | None = None
    tables: FileTables | None = None


def process_entry(
    identity: Identity, captured: Captured, stacks: Unwound | str, kernel: KernelReaders
) -> dict[str, Any]:
    """Return a process's entry in the index, without the facts that are known only once its core is written.

    Args:
        identity: the process's identity.
        captured: the same process.
        stacks: the frames of its threads; or why there are none, as a sentence.
        kernel: readers of the kernel's side of it.
    """
    in_kernel = _in_kernel(captured, kernel)
    return {
        **identity_entry(identity, captured.snapshot),
        "rss_kib": captured.rss_kib(),
        "threads": [{**one, **in_kernel.get(one["tid"], _NOT_LOOKED)} for one in _threads(captured, stacks)],
        "vmas": _vmas(captured),
        "images": list(_images(captured)),
        "files": _files(captured, kernel.tables),
    }


def identity_entry(identity: Identity, snapshot: ProcessSnapshot) -> dict[str, Any]:
    """Return the part of the entry that needs no user memory.

    Args:
        identity: the process's identity.
        snapshot: the same process.
    """
    psargs = snapshot.psinfo.pr_psargs
    return {
        "pid": identity.pid,
        "nspid": list(identity.nspids) if identity.nspids is not None else None,
        "comm": text(identity.comm),
        "exe": text(identity.exe),
        "command_line": text(psargs.removesuffix(b" ")) if psargs is not None else None,
        "uid": identity.uid,
        "gid": snapshot.psinfo.pr_gid,
        "state": identity.states[0],
        "cgroups": [text(path) for path in identity.cgroups] if identity.cgroups is not None else None,
        "containers": list(identity.containers),
        "page_size": snapshot.page_size,
    }


def _threads(captured: Captured, stacks: Unwound | str) -> Iterator[dict[str, Any]]:
    why = stacks if isinstance(stacks, str) else "no registers"
    try:
        rows = {} if isinstance(stacks, str) else {stack.tid: stack for stack in stack_rows(stacks)}
    except Vmcore2coreError as error:  # the core was written: list it even without names
        rows, why = {}, str(error)
    for row in thread_rows(captured.answers):
        stack = rows.get(row.tid)
        yield {
            "tid": row.tid,
            "comm": row.comm,
            "state": row.state,
            "registers": row.source,
            "frames": [_frame(frame) for frame in stack.frames] if stack is not None else [],
            "end": _end(stack) if stack is not None else why,
            "wanted": [asdict(file) for file in stack.wanted] if stack is not None else [],
        }


def _in_kernel(captured: Captured, kernel: KernelReaders) -> dict[int, dict[str, Any]]:
    """Return what each thread was doing in the kernel, by its TID."""
    found: dict[int, dict[str, Any]] = {}
    if kernel.stacks is None:
        return found
    space = UserSpace(captured.snapshot, captured.memory)
    leader = _leader(captured)
    for task, answer in captured.answers:
        registers = None if isinstance(answer, str) else answer.regs
        try:
            tid = sched.task_pid(task)
            stack, call = kernel.stacks.with_call(task, registers)
            asleep = leader is not None and sched.task_state_char(task) not in AWAKE
        except Vmcore2coreError:  # the core was written: list it anyway
            continue
        frames = [_kernel_frame(frame) for frame in stack.frames]
        found[tid] = {
            **_NOT_LOOKED,
            "kernel": {"frames": frames, "end": None if stack.complete else stack.end},
            "system_call": None if call is None else _call(call),
        }
        if kernel.sleepers is not None and leader is not None and asleep:
            found[tid] |= _sleep(kernel.sleepers.of((task, leader), captured, space.named, stack, call))
    return found


def _leader(captured: Captured) -> StructView | None:
    """Return the leader of a thread group; None if it cannot be read."""
    for task, _ in captured.answers:
        with suppress(MemoryFault):
            if sched.task_pid(task) == captured.snapshot.tgid:
                return task
    return None


def _sleep(sleep: Sleep) -> dict[str, Any]:
    wait = sleep.wait
    if wait is None:
        return {"since": sleep.since, "wait": None}
    address = None if wait.address is None else f"{wait.address:#x}"
    return {"since": sleep.since, "wait": {**asdict(wait), "address": address, "holders": list(wait.holders)}}


def _files(captured: Captured, tables: FileTables | None) -> list[dict[str, Any]] | None:
    leader = _leader(captured)
    if tables is None or leader is None:
        return None
    try:
        return [table.as_json() for table in tables.of(leader)]
    except Vmcore2coreError:  # likewise
        return None


def _kernel_frame(frame: KernelFrameRow) -> dict[str, Any]:
    return {
        "address": f"{frame.address:#x}",
        "function": frame.function,
        "offset": None if frame.offset is None else f"{frame.offset:#x}",
        "size": None if frame.size is None else f"{frame.size:#x}",
        "module": frame.module,
        "found_by": frame.found_by,
    }


def _call(call: NamedCall) -> dict[str, Any]:
    arguments = [{"name": one.name, "value": f"{one.value:#x}", "text": one.text} for one in call.arguments]
    return {"number": call.number, "name": call.name, "arguments": arguments}


def _frame(frame: FrameRow) -> dict[str, Any]:
    return {
        "address": f"{frame.address:#x}",
        "function": frame.function,
        "offset": None if frame.offset is None else f"{frame.offset:#x}",
        "file": frame.file,
        "signal_trampoline": frame.signal_trampoline,
        "found_by": frame.found_by,
        "cfi_from": frame.cfi_from,
        "function_from": frame.function_from,
        "source": None if frame.source is None else asdict(frame.source),
        "inlined": [asdict(place) for place in frame.inlined],
    }


def _end(stack: StackRow) -> str | None:
    """Return why a stack ends before its outermost frame, or None if it does not."""
    return None if stack.complete else stack.end


def _vmas(captured: Captured) -> list[dict[str, Any]]:
    regions = {region.start: region for region in captured.memory.regions}
    return [_vma(vma, regions.get(vma.start), captured.memory) for vma in captured.snapshot.vmas]


def _vma(vma: Vma, region: Region | None, memory: UserMemory) -> dict[str, Any]:
    return {
        "start": f"{vma.start:#x}",
        "end": f"{vma.end:#x}",
        "permissions": mm.vma_permissions(vma.vm_flags),
        "file_pages_offset": vma.pgoff,
        "name": text(vma.path) if vma.path is not None else text(vma.name.encode()),
        "in_core": "first page" if vma.dumped and vma.first_page_only else "yes" if vma.dumped else "no",
        "pages": page_accounting(region, memory) if region is not None else {},
    }


def page_accounting(region: Region, memory: UserMemory) -> dict[str, int]:
    """Return the number of a mapping's pages by state; states without pages are omitted.

    Pages that are only in the page cache are counted apart from pages that the process has mapped in.
    """
    states = memory.survey(region).counts
    counts: Counter[str] = Counter()
    for state, n in states.items():
        counts[_NAMES.get(state, "missing")] += n
    if region.backing is not None and counts["present"]:
        mapped = memory.survey(region._replace(backing=None, original=None)).counts[UserPageState.PRESENT]
        counts["page_cache"] = counts["present"] - mapped
        counts["present"] = mapped
    return {name: n for name, n in counts.items() if n}


def _images(captured: Captured) -> Iterator[dict[str, Any]]:
    """Yield the ELF images whose first page is mapped: programs, libraries, the vDSO."""
    snapshot = captured.snapshot
    seen: set[tuple[bytes | str, str | None]] = set()
    for vma in snapshot.vmas:
        if len(seen) >= IMAGES_MAX or not (vma.pgoff == 0 or vma.name == "[vdso]"):
            continue
        read = mapped(vma, snapshot.vmas, captured.memory)
        if read(0, len(ELFMAG)) != ELFMAG:
            continue
        found = build_id(read, snapshot.elf_class, snapshot.byte_order)
        key = vma.path if vma.path is not None else vma.name, found.hex() if found is not None else None
        if key not in seen:
            seen.add(key)
            name = text(vma.path) if vma.path is not None else vma.name
            yield {"name": name, "start": f"{vma.start:#x}", "build_id": key[1]}
