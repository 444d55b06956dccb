"""User stacks as plain records: one row per frame, one per thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmcore2core.arch.base import Arch
from vmcore2core.overrides import override
from vmcore2core.printable import text
from vmcore2core.process.kernelbt import KernelStack, NamedCall
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.threads import ThreadRow
from vmcore2core.unwind.demangle import demangled
from vmcore2core.unwind.frames import LIMIT, Backtrace, Frame
from vmcore2core.unwind.lines import SourceLine
from vmcore2core.unwind.originals import Files
from vmcore2core.unwind.process import Place, UserSpace
from vmcore2core.unwind.threads import Unwound, unwound


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """A line of a source file, and the function that it is in; None is "not known"."""

    function: str | None
    file: str | None
    line: int | None

    @override
    def __str__(self) -> str:
        return (self.file or "??") if self.line is None else f"{self.file or '??'}:{self.line}"


@dataclass(frozen=True, slots=True)
class FrameRow:
    """One line of ``bt``; None is "not known".

    Attributes:
        number: from 0, innermost first.
        address: program counter.
        function: the function that contains the address.
        offset: the address minus the function's start.
        file: the mapping's name: a path, or "[vdso]" and the like.
        file_address: the address as the file counts it, for addr2line.
        file_offset: where it is in the file, in bytes.
        found_by: how the frame was found.
        signal_trampoline: whether it is the return from a signal handler.
        width: hexadecimal digits of an address.
        cfi_from: source of the call frame information that found the frame: "memory", "file" or "debug information";
            None if it was found otherwise.
        function_from: source of the function's name, in the same words.
        original: path of the file that was found for the mapped one.
        linkage_name: the function's mangled name, if it is mangled.
        source: source line of the call, or of the next instruction to run.
        inlined: source lines in the functions that are inlined there, the innermost first.
    """

    number: int
    address: int
    function: str | None
    offset: int | None
    file: str | None
    file_address: int | None
    file_offset: int | None
    found_by: str
    signal_trampoline: bool
    width: int
    cfi_from: str | None = None
    function_from: str | None = None
    original: str | None = None
    linkage_name: str | None = None
    source: SourcePlace | None = None
    inlined: tuple[SourcePlace, ...] = ()

    def line(self) -> str:
        """Return the line that ``bt`` prints, after lines for inlined functions; "from memory" is not printed."""
        if self.function is not None:
            name = f"{self.function}+{self.offset:#x}"
        else:
            name = "<signal trampoline>" if self.signal_trampoline else "??"
        name += "" if self.source is None else f" at {self.source}"
        if self.file_address is not None:
            place = f" ({self.file or 'an image without a file'}+{self.file_address:#x})"
        elif self.file and self.file_offset is not None:
            place = f" ({self.file}, file offset {self.file_offset:#x})"
        else:
            place = f" ({self.file})" if self.file else ""
        found = self.found_by
        if self.cfi_from not in (None, "memory"):
            found += f" from {self.cfi_from}"
        if self.function_from not in (None, "memory"):
            found += f"; name from {self.function_from}"
        head = f"#{self.number:<3}{self.address:#0{self.width + 2}x} "
        inlined = [f"{one.function or '??'} at {one} [inlined]" for one in self.inlined]
        return head + f"\n{' ' * len(head)}".join([*inlined, f"{name}{place} [{found}]"])


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A missing file that would improve the stack; ``build_id`` is hexadecimal, or None if it is not in memory."""

    path: str
    build_id: str | None

    @override
    def __str__(self) -> str:
        return f"{self.path} ({'build ID not in memory' if self.build_id is None else f'build ID {self.build_id}'})"


@dataclass(frozen=True, slots=True)
class StackRow:
    """One thread's frames.

    Attributes:
        complete: whether the last frame is the outermost.
        end: why the stack ends there.
        wanted: missing files that would name frames or lead to more frames.
        kernel: the kernel's frames, which come before these; None if the caller did not ask for them.
        system_call: the system call that the thread is in; None if it is in none, it is not known, or nobody asked.
    """

    pid: int
    tid: int
    comm: str
    state: str
    source: str
    frames: tuple[FrameRow, ...]
    complete: bool
    end: str
    wanted: tuple[WantedFile, ...] = ()
    kernel: KernelStack | None = None
    system_call: NamedCall | None = None


def backtraces(
    captured: Captured,
    arch: Arch,
    rows: Iterable[ThreadRow],
    limit: int = LIMIT,
    files: Files | None = None,
) -> Iterator[StackRow]:
    """Yield the user stacks of threads of one process; see ``unwound``."""
    return stack_rows(unwound(captured, arch, rows, files, limit))


def stack_rows(stacks: Unwound) -> Iterator[StackRow]:
    """Yield the stacks of one process, with functions' names and the sources of these names."""
    space = stacks.space
    for row, found in stacks.threads:
        places = [space.place(frame.lookup_pc) for frame in found.frames]
        frames = tuple(
            _frame_row(place, number, frame, 2 * stacks.spec.word)
            for number, (frame, place) in enumerate(zip(found.frames, places, strict=True))
        )
        yield StackRow(
            pid=space.snapshot.tgid,
            tid=row.tid,
            comm=row.comm,
            state=row.state,
            source=row.source,
            frames=frames,
            complete=found.complete,
            end=found.end,
            wanted=tuple(_wanted(space, frames, found, places)),
        )


def _frame_row(place: Place | None, number: int, frame: Frame, width: int) -> FrameRow:
    image = place.image if place is not None else None
    symbol = image.symbol(frame.lookup_pc) if image is not None else None
    original = image.source.original if image is not None else None
    lines = image.lines(frame.lookup_pc) if image is not None else ()
    linked = text(symbol.name) if symbol is not None else None
    name = None if linked is None else demangled(linked)
    back = frame.pc - frame.lookup_pc
    return FrameRow(
        number=number,
        address=frame.pc,
        function=name,
        offset=frame.pc - symbol.value if symbol is not None else None,
        file=text(place.name) if place is not None else None,
        file_address=frame.pc - image.bias if image is not None else None,
        file_offset=place.file_offset + back if place is not None and place.file_offset is not None else None,
        found_by=frame.found.value,
        signal_trampoline=frame.trampoline,
        width=width,
        cfi_from=frame.cfi_origin.value if frame.cfi_origin is not None else None,
        function_from=symbol.source.value if symbol is not None else None,
        original=str(original.path) if original is not None and original.path is not None else None,
        linkage_name=linked if linked != name else None,
        source=_place(lines[-1]) if lines and lines[-1].file else None,
        inlined=tuple(_place(line) for line in lines[:-1]),
    )


def _place(line: SourceLine) -> SourcePlace:
    function = demangled(text(line.function)) if line.function else None
    return SourcePlace(function, text(line.file.encode(errors="replace")) or None, line.line or None)


def _wanted(
    space: UserSpace, rows: Iterable[FrameRow], found: Backtrace, places: Iterable[Place | None]
) -> Iterator[WantedFile]:
    """Yield the missing files that would name frames, or would lead to the next frame."""
    seen: set[WantedFile] = set()
    last = found.frames[-1] if found.frames and not found.complete else None
    for row, frame, place in zip(rows, found.frames, places, strict=True):
        nameless = row.function is None and (place is None or place.image is None or not place.image.knows_all_names)
        poor = nameless or frame is last
        original = space.original(place.vma) if poor and place is not None and not frame.trampoline else None
        if original is None or original.path is not None:
            continue
        build_id = original.image.build_id
        wanted = WantedFile(text(original.image.path), None if build_id is None else build_id.hex())
        if wanted not in seen:
            seen.add(wanted)
            yield wanted
