"""Runs inside gdb and lldb: tells the debugger the callers that vmcore2core found, and says which frames it guesses.

Where call frame information is missing, debuggers guess callers and do not say so. gdb takes the callers that
vmcore2core found by other means; lldb gets them as ``debugger_cfi`` says. Start scripts load this file from the folder
of the cores.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

Copied = Callable[[Path, Path, dict[int, dict[int, dict[str, int]]]], Path]
Undescribed = Callable[[Path, set[int]], set[int]]
Load = Callable[[Callable[[str, Path, int], Path]], "Loaded"]


class Loaded(Protocol):
    """``debugger_files.Loaded``."""

    @property
    def lost(self) -> set[str]:
        """Wanted paths of files that are missing or incomplete."""
        ...

    @property
    def whole(self) -> dict[str, tuple[Path, int]]:
        """Complete files and their load biases, by wanted path."""
        ...


NO_FILE = "code of no file"
NONE_FOR = "vmcore2core: no call frame information for"
THREADS_SHOWN = 8
WAYS = {"instructions": "the instructions", "back chain": "the back chain"}
OTHER_WAY = "frame pointers, and some may be missing"


class Caller(NamedTuple):
    """The caller of a frame, found without call frame information.

    Attributes:
        path: path of the file whose code the frame runs; empty if the code is in no file.
        pc, sp: program counter and stack pointer of the frame.
        registers: name and value of each known register of the caller: first the program counter, 0 if there is no
            caller; then the stack pointer; then the others.
        found_by: how the caller was found.
    """

    path: str
    pc: int
    sp: int
    registers: tuple[tuple[str, int], ...]
    found_by: str

    @property
    def is_none(self) -> bool:
        """Whether the frame is the outermost."""
        return self.registers[0][1] == 0


class LastFrame(NamedTuple):
    """The frame of a thread from which on the debugger guesses callers.

    Attributes:
        path: as in ``Caller``.
        pc: program counter of the frame.
        tid: the thread's TID.
    """

    path: str
    pc: int
    tid: int


def use(loaded: Loaded, undescribed: Undescribed, callers: list[tuple[Any, ...]], last: list[tuple[Any, ...]]) -> None:
    """Give gdb callers where it has no call frame information, and print which frames these are.

    Args:
        loaded: the files that gdb has.
        undescribed: ``debugger_cfi.undescribed``.
        callers: arguments of ``Caller``, one tuple per caller.
        last: arguments of ``LastFrame``, one tuple per frame.
    """
    taken = _without_cfi([Caller(*one) for one in callers], loaded, undescribed)
    if taken:
        _unwind_by(taken)
    for line in notices(taken, _ends(last, loaded.lost), "gdb"):
        print(line)


def in_lldb(
    load: Load,
    copied: Copied,
    undescribed: Undescribed,
    callers: list[tuple[Any, ...]],
    last: list[tuple[Any, ...]],
) -> None:
    """Load the files into lldb with callers where call frame information is missing, and print which frames these are.

    Args:
        load: loads the files; its argument is ``debugger_files.Adapt``.
        copied: ``debugger_cfi.copied``.
        undescribed, callers, last: as in ``use``.
    """
    known = [Caller(*one) for one in callers]
    with ExitStack() as folders:  # removed at the end: lldb keeps what it has loaded
        copies = _Copies(folders, copied, known)
        loaded = load(copies.adapt)
    taken = [one for one in known if one.path in copies.made]
    guessed = {one.path for one in _without_cfi(known, loaded, undescribed)} - copies.made
    for line in notices(taken, _ends(last, loaded.lost), "lldb"):
        print(line, flush=True)
    if guessed:
        print(f"{NONE_FOR} {_files(guessed)}: lldb guesses frames there, and some may be missing", flush=True)


def _without_cfi(callers: list[Caller], loaded: Loaded, undescribed: Undescribed) -> list[Caller]:
    """Return the callers of frames of which the debugger has no call frame information."""
    bare = {
        (path, pc + bias)
        for path, (file, bias) in loaded.whole.items()
        for pc in undescribed(file, {one.pc - bias for one in callers if one.path == path})
    }
    return [one for one in callers if not one.path or one.path in loaded.lost or (one.path, one.pc) in bare]


def _ends(last: list[tuple[Any, ...]], lost: set[str]) -> list[LastFrame]:
    return [one for one in (LastFrame(*one) for one in last) if not one.path or one.path in lost]


class _Copies:
    """Copies of incomplete files with the callers of the frames that run their code.

    Args:
        folders: removes the copies.
        copied, callers: as in ``in_lldb``.

    Attributes:
        made: wanted paths of the files that were copied.
    """

    def __init__(self, folders: ExitStack, copied: Copied, callers: list[Caller]) -> None:
        self._folders, self._copied, self._callers = folders, copied, callers
        self.made: set[str] = set()

    def adapt(self, name: str, file: Path, bias: int) -> Path:
        """Return the file to load in place of an incomplete one: a copy, or the file itself; see ``Adapt``."""
        callers: dict[int, dict[int, dict[str, int]]] = {}
        for one in self._callers:
            if one.path == name:
                callers.setdefault((one.pc - bias) % (1 << 64), {})[one.sp] = dict(one.registers)
        try:
            folder = self._folders.enter_context(TemporaryDirectory(prefix="vmcore2core-"))
            path = self._copied(file, Path(folder), callers)
        except OSError:
            return file
        self.made |= {name} if path != file else set()
        return path


def notices(taken: list[Caller], ends: list[LastFrame], debugger: str) -> list[str]:
    """Return one line for each way in which frames were found without call frame information."""
    found = [one for one in taken if not one.is_none]
    by_way = dict[str, set[str]]()
    for one in found:
        by_way.setdefault(WAYS.get(one.found_by, OTHER_WAY), set()).add(one.path)
    shown_ways = (way for way in (*WAYS.values(), OTHER_WAY) if way in by_way)
    lines = [f"{NONE_FOR} {_files(by_way[way])}: frames come from {way}" for way in shown_ways]
    if ends:
        shown = ", ".join(f"{one.tid} from {one.pc:#x} on" for one in ends[:THREADS_SHOWN])
        more = f" and {len(ends) - THREADS_SHOWN} more" if len(ends) > THREADS_SHOWN else ""
        guesses = f"{debugger} guesses the frames of thread {shown}{more}"
        lines.append(f"{NONE_FOR} {_files({e.path for e in ends})}: {guesses}")
    return lines


def _files(paths: set[str]) -> str:
    return ", ".join(quote(path, safe="/+=@,:~") if path else NO_FILE for path in sorted(paths))


def _unwind_by(callers: list[Caller]) -> None:
    import gdb
    from gdb.unwinder import Unwinder, register_unwinder

    table = {(caller.pc, caller.sp): caller for caller in callers}

    class FrameId:
        def __init__(self, sp: int, pc: int) -> None:
            self.sp, self.pc = gdb.Value(sp), gdb.Value(pc)

    class Known(Unwinder):  # type: ignore[misc]
        def __call__(self, pending: Any) -> Any:  # noqa: ANN401
            pc, sp = (int(pending.read_register(name)) % (1 << 64) for name in ("pc", "sp"))
            caller = table.get((pc, sp))
            if caller is None:
                return None
            info = pending.create_unwind_info(FrameId(caller.registers[1][1], pc))
            for name, value in caller.registers:
                info.add_saved_register(name, gdb.Value(value).cast(pending.read_register(name).type))
            return info

    register_unwinder(None, Known("vmcore2core"), replace=True)
    gdb.invalidate_cached_frames()
