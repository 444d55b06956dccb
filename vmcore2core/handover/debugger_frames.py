"""Runs inside gdb and lldb: says which frames the debugger guesses, and tells gdb the callers that vmcore2core found.

Where call frame information is missing, debuggers guess callers and do not say so. gdb takes the callers that
vmcore2core found by other means; lldb has no way to take them. Start scripts load this file from the folder of the
cores.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import quote

NO_FILE = "code of no file"
NONE_FOR = "vmcore2core: no call frame information for"
THREADS_SHOWN = 8


class Caller(NamedTuple):
    """The caller of a frame, found without call frame information.

    Attributes:
        path: path of the file whose code the frame runs; empty if the code is in no file.
        pc, sp: program counter and stack pointer of the frame.
        registers: name and value of each known register of the caller.
        found_by: how the caller was found.
    """

    path: str
    pc: int
    sp: int
    registers: tuple[tuple[str, int], ...]
    found_by: str


class LastFrame(NamedTuple):
    """The last frame found on a thread's stack, where the stack itself goes on.

    Attributes:
        path: as in ``Caller``.
        pc: program counter of the frame.
        tid: the thread's TID.
    """

    path: str
    pc: int
    tid: int


def use(lost: set[str], callers: list[tuple[Any, ...]], last: list[tuple[Any, ...]]) -> None:
    """Give gdb callers where it has no call frame information, and print which frames these are.

    Args:
        lost: paths of files that are missing or incomplete; gdb has call frame information of all others.
        callers: arguments of ``Caller``, one tuple per caller.
        last: arguments of ``LastFrame``, one tuple per frame.
    """
    taken = [one for one in (Caller(*one) for one in callers) if not one.path or one.path in lost]
    ends = [one for one in (LastFrame(*one) for one in last) if not one.path or one.path in lost]
    if taken:
        _unwind_by(taken)
    for line in notices(taken, ends):
        print(line)


def in_lldb(lost: set[str], without: list[str]) -> None:
    """Print once which frames lldb guesses: it cannot be told callers.

    Args:
        lost: paths of files that are missing or incomplete.
        without: paths of files whose frames were found without call frame information, or not at all.
    """
    guessed = {path for path in without if not path or path in lost}
    if guessed:
        print(f"{NONE_FOR} {_files(guessed)}: lldb guesses frames there, and some may be missing", flush=True)


def notices(taken: list[Caller], ends: list[LastFrame]) -> list[str]:
    """Return one line for each way in which frames were found without call frame information."""
    by_code = {one.path for one in taken if one.found_by == "instructions"}
    others = {one.path for one in taken if one.found_by != "instructions"}
    lines = []
    if by_code:
        lines.append(f"{NONE_FOR} {_files(by_code)}: frames come from the instructions")
    if others:
        lines.append(f"{NONE_FOR} {_files(others)}: frames come from frame pointers, and some may be missing")
    if ends:
        shown = ", ".join(f"{one.tid} from {one.pc:#x} on" for one in ends[:THREADS_SHOWN])
        more = f" and {len(ends) - THREADS_SHOWN} more" if len(ends) > THREADS_SHOWN else ""
        lines.append(f"{NONE_FOR} {_files({e.path for e in ends})}: gdb guesses the frames of thread {shown}{more}")
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
            info = pending.create_unwind_info(FrameId(dict(caller.registers)["rsp"], pc))
            for name, value in caller.registers:
                kind = pending.read_register(name).type
                info.add_saved_register(name, gdb.Value(value.to_bytes(8, "little"), kind))
            return info

    register_unwinder(None, Known("vmcore2core"), replace=True)
    gdb.invalidate_cached_frames()
