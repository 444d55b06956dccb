"""The initial user stack is read only if it is plausible, and never without a limit."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from tests.builders.kernelimage import EXPORT
from tests.process.scene import CODE, STACK, VM_EXEC, VM_READ, VM_WRITE, Scene
from vmcore2core.process.model import ProcessSnapshot

TOP = STACK + 0x2000  # where argc is
STRINGS = STACK + 0x2800
AUXV = (6, 4096, 3, CODE, 33, 0x7FFF_0000_0000, 25, STRINGS, 0, 0)
ARGS = b"victim\0--name\0value with spaces\0"
ENV = b"HOME=/root\0PATH=/bin\0"


def stack_words(args: bytes = ARGS, env: bytes = ENV, auxv: Sequence[int] = AUXV) -> list[int]:
    """Return argc, argv, NULL, envp, NULL and the auxiliary vector, as create_elf_tables() lays them out."""
    argv = [STRINGS + at for at in range(len(args)) if not at or not args[at - 1]]
    envp = [STRINGS + len(args) + at for at in range(len(env)) if not at or not env[at - 1]]
    return [len(argv), *argv, 0, *envp, 0, *auxv]


def captured(words: Sequence[int], strings: bytes = ARGS + ENV, *, known: bool = False, **mm: Any) -> ProcessSnapshot:
    """Capture a process whose kernel layout does not know saved_auxv and arg_start, unless ``known``."""
    scene = Scene() if known else Scene(EXPORT)
    owner = scene.mm(
        (CODE, CODE + 0x1000, VM_READ | VM_EXEC), (STACK, STACK + 0x3000, VM_READ | VM_WRITE), start_stack=TOP, **mm
    )
    scene.group(scene.task(100), mm=owner)
    content = bytearray(struct.pack(f"<{len(words)}Q", *(word & (1 << 64) - 1 for word in words)).ljust(0x1000, b"\0"))
    content[0x800 : 0x800 + len(strings)] = strings
    scene.image.user_page(TOP, bytes(content))
    return scene.capture().snapshot


def test_auxv_and_arguments_are_those_of_the_stack() -> None:
    snapshot = captured(stack_words())
    assert snapshot.auxv == struct.pack("<10Q", *AUXV)
    assert snapshot.psinfo.pr_psargs == b"victim --name value with spaces "  # as fill_psinfo() has it
    assert any("NT_AUXV is read from the initial user stack" in text for text in snapshot.notices)


def test_saved_auxv_and_arg_start_go_first() -> None:
    saved = struct.pack("<4Q", 6, 4096, 0, 0)
    snapshot = captured(
        [0], b"\0" * 16 + b"renamed\0-x\0", known=True, saved_auxv=saved, arg_start=STRINGS + 16, arg_end=STRINGS + 27
    )
    assert snapshot.auxv == saved
    assert snapshot.psinfo.pr_psargs == b"renamed -x "
    assert snapshot.notices == ()


def test_long_arguments_are_cut_to_what_psargs_holds() -> None:
    args = b"victim\0" + b"x" * 200 + b"\0"
    assert captured(stack_words(args), args + ENV).psinfo.pr_psargs == b"victim " + b"x" * 72


def args_words(*at: int) -> list[int]:
    """Return the initial stack with other pointers to arguments, each by its address."""
    return [3, *at, *stack_words()[4:]]


def test_arguments_that_getopt_put_in_another_order_are_those_of_the_command_line() -> None:
    snapshot = captured(args_words(STRINGS, STRINGS + 14, STRINGS + 7))
    assert snapshot.auxv == struct.pack("<10Q", *AUXV)
    assert snapshot.psinfo.pr_psargs == b"victim --name value with spaces "


@pytest.mark.parametrize("other", [0, 0x1000], ids=["none", "a string elsewhere"])
def test_arguments_that_were_taken_away_are_not_known_and_the_auxv_is(other: int) -> None:
    snapshot = captured(args_words(STRINGS, STRINGS + 14, other))
    assert snapshot.auxv == struct.pack("<10Q", *AUXV)
    assert snapshot.psinfo.pr_psargs is None


@pytest.mark.parametrize("env", [[STRINGS + len(ARGS), 0, 0], [0, 0, 0]], ids=["one", "all"])
def test_unsetenv_leaves_room_before_the_auxv(env: list[int]) -> None:
    """It moves the pointers behind the one that goes, and the NULL at their end."""
    snapshot = captured([*stack_words()[:5], *env, *AUXV])
    assert snapshot.auxv == struct.pack("<10Q", *AUXV)


def test_only_a_program_that_loads_another_changes_the_auxv_on_the_stack() -> None:
    kernels = {6: 4096, 3: CODE, 4: 56, 5: 9, 7: 0, 9: CODE + 0x10, 25: STRINGS}
    loaded = {**kernels, 3: CODE + 0x5040, 5: 13, 7: CODE + 0x8000, 9: CODE + 0x5810}

    def warnings(on_stack: dict[int, int]) -> tuple[str, ...]:
        pairs, saved = ([word for pair in each.items() for word in pair] for each in (on_stack, kernels))
        return captured(
            stack_words(auxv=(*pairs, 0, 0)),
            known=True,
            saved_auxv=struct.pack("<16Q", *saved, 0, 0),
            arg_start=STRINGS,
            arg_end=STRINGS + len(ARGS),
        ).warnings

    assert warnings(loaded) == ()
    (sentence,) = warnings(loaded | {25: 0x1234})
    assert f"type 25 is {STRINGS:#x}, expected 0x1234 as the initial stack has it" in sentence
    (sentence,) = warnings(loaded | {9: kernels[9]})
    assert "mm_struct.saved_auxv at 0x" in sentence
    assert f"type 3 is {CODE:#x}" in sentence


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="nothing"),
        pytest.param([1 << 40, *stack_words()[1:]], id="more arguments than can be"),
        pytest.param([-1, *stack_words()[1:]], id="a negative number of arguments"),
        pytest.param([2, *stack_words()[1:]], id="fewer than there are"),
        pytest.param([4, *stack_words()[1:]], id="more than there are"),
        pytest.param(stack_words(auxv=(6, 8192, 0, 0)), id="another page size"),
        pytest.param(stack_words(auxv=(3, CODE, 0, 0)), id="no page size"),
        pytest.param(stack_words(auxv=(6, 4096)) + [7] * 480, id="an auxv without end"),
        pytest.param(stack_words()[:6] + [STRINGS] * 250, id="an environment up to the strings"),
    ],
)
def test_a_stack_that_does_not_look_right_gives_nothing(words: list[int]) -> None:
    snapshot = captured(words)
    assert snapshot.auxv is None
    assert snapshot.psinfo.pr_psargs is None


@pytest.mark.parametrize("start_stack", [0, 0x1000, STACK + 0x3000, STACK + 0x2FFC, (1 << 64) - 8])
def test_a_stack_that_is_not_mapped_gives_nothing(start_stack: int) -> None:
    scene = Scene(EXPORT)
    mm = scene.mm((STACK, STACK + 0x3000, VM_READ | VM_WRITE), start_stack=start_stack)
    scene.group(scene.task(100), mm=mm)
    snapshot = scene.capture().snapshot
    assert (snapshot.auxv, snapshot.psinfo.pr_psargs) == (None, None)


@pytest.mark.parametrize(
    ("arg_start", "arg_end"),
    [
        (0, 0),
        (STRINGS + 10, STRINGS),
        (0x1000, 0x1010),
        ((1 << 64) - 8, (1 << 64) - 1),
        (STACK + 0x2FF0, STACK + 0x3010),
    ],
)
def test_an_argument_area_that_cannot_be_read_gives_none(arg_start: int, arg_end: int) -> None:
    snapshot = captured(stack_words(), known=True, arg_start=arg_start, arg_end=arg_end)
    assert snapshot.psinfo.pr_psargs is None


def test_an_argument_area_that_runs_on_beyond_the_strings_is_cut() -> None:
    snapshot = captured(stack_words(), known=True, arg_start=STRINGS, arg_end=STRINGS + (1 << 40))
    assert snapshot.psinfo.pr_psargs is not None
    assert len(snapshot.psinfo.pr_psargs) <= 79


def test_an_excluded_stack_gives_nothing() -> None:
    from vmcore2core.containers.base import PageState

    scene = Scene(EXPORT)
    mm = scene.mm((STACK, STACK + 0x3000, VM_READ | VM_WRITE), start_stack=TOP)
    scene.group(scene.task(100), mm=mm)
    content = struct.pack(f"<{len(stack_words())}Q", *stack_words())
    scene.states[scene.image.user_page(TOP, content) >> 12] = PageState.EXCLUDED
    snapshot = scene.capture().snapshot
    assert (snapshot.auxv, snapshot.psinfo.pr_psargs) == (None, None)
