"""A developer types one command, and sees function names: with the directory of cores and nothing else.

Tests handover/mapped.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.debuggers import (
    environment,
    gdb_backtraces,
    gdb_command,
    in_order,
    lldb_backtraces,
    lldb_command,
)
from tests.e2e.guests import FIXTURES, PROGRAMS, bundled
from tests.handover.test_recovered import leaders
from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.handover.images import Image, images_of
from vmcore2core.handover.mapped import Finder
from vmcore2core.handover.recovered import RecoveredFiles, Recovery
from vmcore2core.handover.scripts import gdb_script, lldb_script, write_helpers, write_scripts
from vmcore2core.handover.tree import plain_name
from vmcore2core.session import Session, core_name

GUEST = "debian-7.2-amd64"


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cores, recovered files and scripts, moved to another place after they were made."""
    made = tmp_path_factory.mktemp("made") / "cores"
    with Session([bundled(GUEST, tmp_path_factory.mktemp("dump"))]) as session:
        finder, recovery = Finder(session.processes), Recovery(session.processes, made / "sysroot")
        made.mkdir()
        for leader in leaders(session, *PROGRAMS):
            core = made / core_name(leader)
            captured = session.extract(leader, core).captured
            write_scripts(core, recovery.add(finder.find(leader)), images_of(captured))
            os.utime(core, (1, 1))  # as if what follows had taken long
        write_helpers(made)
    moved = tmp_path_factory.mktemp("moved") / "with space"
    shutil.move(made, moved)
    return moved


def run(folder: Path, *words: str | Path, sysroot: Path | str = "") -> str:
    """Run a debugger that sees nothing of this machine's files but what ``sysroot`` has."""
    result = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**environment(), "VMCORE2CORE_SYSROOT": str(sysroot)},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return result.stdout + result.stderr


def gdb_stacks(folder: Path, script: Path | str, sysroot: Path | str = "") -> tuple[dict[int, list[str]], str]:
    """Return what gdb shows of every thread after a start script, and all that it printed."""
    output = run(folder, *gdb_command(), "-x", script, "-ex", "thread apply all bt", sysroot=sysroot)
    return gdb_backtraces(output), output


def lldb_stacks(folder: Path, script: str, sysroot: Path | str = "", *more: str) -> tuple[dict[int, list[str]], str]:
    """Return what lldb shows of every thread after a start script, and all that it printed."""
    extra = [word for command in more for word in ("-o", command)]
    output = run(folder, *lldb_command(), "-s", script, *extra, "-o", "thread list", "-o", "bt all", sysroot=sysroot)
    return lldb_backtraces(output), output


def expected(program: str) -> dict[int, list[str]]:
    """Return functions that each thread's stack has, by thread ID, as the guest's recipe says."""
    truth = FIXTURES / GUEST / "truth"
    rows = [line.split("\t") for line in (truth / f"{program}.tasks").read_text().splitlines()]
    tids = {row[1]: int(row[0]) for row in rows}
    known = json.loads((truth / "expected.json").read_text())[program]
    return {tids[name]: functions for name, functions in known.items()}


def test_a_relative_sysroot_is_seen_from_where_gdb_was_started(handed_over: Path, tmp_path: Path) -> None:
    script = next(handed_over.glob(f"core.{PROGRAMS[0]}.*.gdb"))
    ask = 'python print("roots", os.environ["VMCORE2CORE_SYSROOT"])'
    output = run(tmp_path, *gdb_command(), "-x", script, "-ex", ask, sysroot="here:/there")
    assert f"roots {tmp_path}/here:/there" in output.splitlines()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("place", ["there", "elsewhere"])
def test_gdb_shows_function_names_in_every_thread(handed_over: Path, program: str, place: str, tmp_path: Path) -> None:
    script = next(handed_over.glob(f"core.{program}.*.gdb"))
    stacks, output = gdb_stacks(*((handed_over, script.name) if place == "there" else (tmp_path, script)))
    assert len(stacks) == 6, output
    # Debian's libc has no names for its static functions, and no debug package of this machine may add them.
    nameless = [line for line in output.splitlines() if "?? (" in line]
    assert all(line.endswith(" from sysroot/lib/libc.so.6") for line in nameless), output
    assert bool(nameless) == (program == "lab-dynamic")
    assert "newer than core file" not in output
    for tid, wanted in expected(program).items():
        assert in_order(wanted, stacks[tid]), output


@pytest.mark.parametrize("program", PROGRAMS)
def test_lldb_shows_function_names_in_every_thread(handed_over: Path, program: str) -> None:
    script = next(handed_over.glob(f"core.{program}.*.lldb"))
    stacks, output = lldb_stacks(handed_over, script.name)
    assert len(stacks) == 6, output
    for tid, wanted in expected(program).items():
        assert in_order(wanted, stacks[tid]), output


def recovered(**members: object) -> RecoveredFiles:
    values: dict[str, object] = {
        "sysroot": Path("/x/sysroot"),
        "program": b"/usr/bin/app",
        "libraries": (b"/lib",),
        "names": {b"/usr/bin/app": b"/usr/bin/app"},
        "incomplete": Path("/x/sysroot.incomplete"),
        "partial": {},
        "files": (),
        "sentences": (),
    }
    return RecoveredFiles(**{**values, **members})  # type: ignore[arg-type]


CORE = Path("/x/core.app.1")


def image(path: bytes = b"/usr/bin/app", **members: object) -> Image:
    values: dict[str, object] = {"address": 0x401000, "offset": 0x1000, "bias": 0, "build_id": "ab12", "program": True}
    return Image(path, **{**values, **members})  # type: ignore[arg-type]


def test_the_scripts_say_what_a_debugger_needs() -> None:
    script = gdb_script(CORE, recovered(), [image()])
    assert script.path == Path("/x/core.app.1.gdb")
    after = script.text.partition("\n\nset ")[2]
    assert after.splitlines()[:5] == [
        "sysroot sysroot",
        "set solib-search-path sysroot/lib",
        'file "sysroot/usr/bin/app"',
        "core-file core.app.1",
        "sharedlibrary",
    ]
    wanted = "(\"/usr/bin/app\", 'ab12', 0, 0x401000, 0x1000, 'sysroot/usr/bin/app', None, True, None, None)"
    load = f"lambda adapt: debugger_files.in_lldb([{wanted}], debugger_download.download, adapt)"
    assert lldb_script(CORE, recovered(), [image()]).text.splitlines()[1:] == [
        'platform select --sysroot "sysroot" remote-linux',
        'settings set target.exec-search-paths "sysroot/lib"',
        'target create --core core.app.1 "sysroot/usr/bin/app"',
        "command script import --relative-to-command-file debugger_files.py",
        "command script import --relative-to-command-file debugger_frames.py",
        "command script import --relative-to-command-file debugger_download.py",
        "command script import --relative-to-command-file debugger_cfi.py",
        f"script debugger_frames.in_lldb({load}, debugger_cfi.copied, debugger_cfi.undescribed, [], [])",
    ]
    assert "sysroot" not in gdb_script(CORE, None).text
    assert "core-file core.app.1\n" in gdb_script(Path("/x/core.app.1.zst"), None).text


@pytest.mark.parametrize(
    "name", ['a"b', "a\nshell id", "a'b", "a\\b", "a;b", "a|b", "a$b", "a`b", "a:b", "a\x7fb", "é", "\udcff"]
)
def test_a_hostile_name_is_not_written(name: str) -> None:
    path = b"/bin/" + os.fsencode(name)
    alias = plain_name(path)
    hostile = recovered(program=path, libraries=(b"/lib/" + os.fsencode(name), b"/lib"), names={path: alias})
    for script in (gdb_script(CORE, hostile, [image(path)]), lldb_script(CORE, hostile, [image(path)])):
        assert name not in script.text
        assert "sysroot/bin" not in script.text
        assert "sysroot/lib" in script.text
        assert f"sysroot{alias.decode()}" in script.text
        assert f'"{ascii_literal("/bin/" + name)}"' in script.text


def ascii_literal(name: str) -> str:
    return "".join(c if (c.isalnum() and c.isascii()) or c in "/ " else f"\\U{ord(c):08x}" for c in name)


def test_a_name_for_scripts_is_plain_and_one_file_s_alone() -> None:
    assert plain_name(b"/lib/libstdc++.so.6") == b"/lib/libstdc++.so.6"
    assert plain_name(b"/memfd:x") == b"/.renamed/memfd%3Ax"
    assert plain_name(b"/a b/c") == b"/.renamed/a%20b%2Fc"
    long = [plain_name(b"/" + b":" * 200 + end) for end in (b"a", b"b")]
    assert len(set(long)) == 2
    assert all(len(name) <= 255 + len(b"/.renamed/") for name in long)


def test_a_hostile_folder_or_core_gets_no_scripts() -> None:
    with pytest.raises(OutputError, match="misread"):
        gdb_script(CORE, recovered(sysroot=Path("/x/a\nshell id")))
    with pytest.raises(OutputError, match="misread"):
        lldb_script(Path("/x/a\nb"), None)


def test_existing_scripts_are_kept_without_force(tmp_path: Path) -> None:
    core = tmp_path / "core.app.1"
    assert {path.name for path in write_scripts(core, None)} == {"core.app.1.gdb", "core.app.1.lldb"}
    with pytest.raises(OutputExists):
        write_scripts(core, None)
    write_scripts(core, None, force=True)
    assert (tmp_path / "core.app.1.gdb").stat().st_mode & 0o777 == 0o600
