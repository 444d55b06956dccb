"""Completion as bash, zsh and fish ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.guests import TASKS

pytestmark = pytest.mark.no_cover

PROGRAMS = Path(sys.executable).parent
CONVERT = "from vmcore2core.__main__ import vmcore2core; vmcore2core()"


def asked(code: str, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize(
    ("shell", "words", "offered"),
    [
        ("bash", "vmcore2core --compress z", "zstd"),
        ("bash", "vmcore2core verify --ag", "--against"),
        ("bash", "vmcore-tasks maps --ver", "--verbose"),
        ("zsh", "vmcore2core --comp", "--compress"),
        ("zsh", "vmcore2core verify --ag", "--against"),
        ("fish", "vmcore-tasks m", "maps"),
        ("fish", "vmcore2core --comp", "--companions"),
    ],
)
def test_the_shells_are_told_what_could_come_next(shell: str, words: str, offered: str) -> None:
    program = words.split()[0]
    variables = {
        f"_{program.replace('-', '_').upper()}_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    if shell == "bash":
        del variables["_TYPER_COMPLETE_ARGS"]
    else:
        del variables["COMP_WORDS"], variables["COMP_CWORD"]
    assert offered in asked(TASKS if program == "vmcore-tasks" else CONVERT, **variables)


@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [("vmcore2core", "vmcore2core --exc", "--exclude"), ("vmcore-tasks", "vmcore-tasks lay", "layout")],
)
def test_bash_completes_by_what_readme_says(program: str, words: str, offered: str) -> None:
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    script = (
        f'PATH="{PROGRAMS}:$PATH"; eval "$({variable}=source_bash {program})"\n'
        f"entry=$(complete -p {program}); entry=${{entry##*-F }}\n"
        f"COMP_WORDS=({words}); COMP_CWORD=1\n"
        f'"${{entry%% *}}" {program}\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (result.stdout.split(), result.stderr) == ([offered], "")
