"""Folders and files that other users made are not used for output; the user's own are."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmcore2core import folders
from vmcore2core.errors import OutputError
from vmcore2core.folders import open_own_file, opened_below, opened_folder

STRANGER = 4711
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")

Foreign = Callable[[Path], None]


@pytest.fixture(params=["faked", "real"])
def foreign(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    """Make something a stranger's: by chown as root, else by what stat says of it."""
    if request.param == "real":
        if os.geteuid() != 0:
            pytest.skip("only root can make what belongs to somebody else")
        return lambda path: os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    theirs: set[tuple[int, int]] = set()

    def faked(real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def status(*args: Any, **more: Any) -> os.stat_result:
            found = real(*args, **more)
            if (found.st_dev, found.st_ino) not in theirs:
                return found
            return os.stat_result([*found[:4], STRANGER, STRANGER, *found[6:10]])

        return status

    monkeypatch.setattr(os, "fstat", faked(os.fstat))
    monkeypatch.setattr(os, "stat", faked(os.stat))

    def mark(path: Path) -> None:
        there = path.lstat()
        theirs.add((there.st_dev, there.st_ino))

    return mark


def write(folder: Path, *, make: bool = False) -> None:
    with opened_folder(folder, make=make) as at:
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=at))


def test_what_is_not_there_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        write(tmp_path / "a/b/../c/.//d", make=True)
    finally:
        os.umask(umask)
    assert (tmp_path / "a/c/d/file").exists()
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "not there")


def test_a_relative_path_is_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path())
    write(Path("a/b"), make=True)
    write(Path("a/../.."))
    assert (tmp_path / "file").exists()
    assert (tmp_path / "a/b/file").exists()
    assert (tmp_path.parent / "file").exists()


@pytest.mark.parametrize("target", ["real", "./real/../real", "ABSOLUTE"])
def test_a_link_of_ones_own_on_the_way_is_followed(target: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" if target == "ABSOLUTE" else target)
    write(tmp_path / "link")
    write(tmp_path / "link" / "out", make=True)
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["file", "out"]


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        write(tmp_path / "a" / "out")


def test_a_link_of_somebody_else_is_not_followed(foreign: Foreign, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    foreign(tmp_path / "link")
    for path in (tmp_path / "link", tmp_path / "link" / "out"):
        with pytest.raises(OutputError, match=rf"{tmp_path}/link is a link that user {STRANGER} made"):
            write(path, make=True)
    assert not list((tmp_path / "real").iterdir())


@pytest.mark.parametrize("below", ["", "out", "out/deeper"])
def test_a_directory_of_somebody_else_is_not_used(below: str, foreign: Foreign, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    foreign(tmp_path / "theirs")
    with pytest.raises(OutputError, match=rf"{tmp_path}/theirs is not used: it belongs to user {STRANGER}, who could"):
        write(tmp_path / "theirs" / below, make=True)
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o733])
def test_a_directory_that_others_can_write_to_is_not_used(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    for path in (folder, folder / "out"):
        with pytest.raises(OutputError, match=r"others can write to it .d.*, and it has no sticky bit"):
            write(path, make=True)
    folder.chmod(mode | stat.S_ISVTX)  # as /tmp and /var/crash are
    write(folder / "out", make=True)
    assert (folder / "out" / "file").exists()


class Group:
    def __init__(self, name: str, members: list[str]) -> None:
        self.gr_name, self.gr_mem, self.pw_name = name, members, "me"


@pytest.mark.parametrize(
    ("name", "members", "good"),
    [("me", [], True), ("me", ["me"], True), ("me", ["me", "you"], False), ("staff", [], False)],
)
def test_a_group_of_one_user_is_nobody_else(
    name: str, members: list[str], good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian and RHEL give each user a group of that name, and Ubuntu and RHEL a umask of 002."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o775)
    monkeypatch.setattr(grp, "getgrgid", lambda _number: Group(name, members))
    monkeypatch.setattr(pwd, "getpwuid", lambda _number: Group("", []))
    if good:
        write(folder)
    else:
        with pytest.raises(OutputError, match="others can write"):
            write(folder)


@needs_root
def test_who_called_sudo_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    os.chown(tmp_path / "home", STRANGER, STRANGER)
    with pytest.raises(OutputError, match="belongs to"):
        write(tmp_path / "home")
    monkeypatch.setenv("SUDO_UID", f"{STRANGER}")
    write(tmp_path / "home")


def test_sudo_is_nothing_to_somebody_who_is_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("SUDO_UID", f"{STRANGER}")
    assert STRANGER not in folders.trusted_owners()


def test_where_every_file_is_somebody_elses_it_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS makes root's files nobody's, vfat makes all files the same user's: a directory of theirs is as good."""
    real, there = os.fstat, tmp_path.stat()

    def squashed(fd: int) -> os.stat_result:
        found = real(fd)
        theirs = found.st_dev == there.st_dev and (stat.S_ISREG(found.st_mode) or found.st_ino == there.st_ino)
        return os.stat_result([*found[:4], STRANGER, *found[5:10]]) if theirs else found

    monkeypatch.setattr(os, "fstat", squashed)
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("mode", "good"), [(0o755, True), (0o1777, False)])
def test_in_a_user_namespace_nobody_is_the_outer_root_where_only_root_can_make_anything(
    mode: int, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp it may be any other user of the machine, whom the namespace does not map either."""
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer").chmod(mode)
    nobody = (tmp_path / "outer" / "inner").stat().st_ino
    real = os.fstat

    def mapped(fd: int) -> os.stat_result:
        found = real(fd)
        return os.stat_result([*found[:4], STRANGER, *found[5:10]]) if found.st_ino == nobody else found

    monkeypatch.setattr(os, "fstat", mapped)
    monkeypatch.setattr(folders, "_owners_outside", lambda: frozenset({STRANGER}))
    if good:
        write(tmp_path / "outer" / "inner" / "out", make=True)
    else:
        with pytest.raises(OutputError, match=f"inner is not used: it belongs to user {STRANGER}"):
            write(tmp_path / "outer" / "inner" / "out", make=True)


def test_below_the_output_no_link_is_followed_whoever_made_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sysroot").symlink_to("elsewhere")
    with (
        opened_folder(tmp_path) as at,
        pytest.raises(OutputError, match="sysroot is not used: it is a link or a file"),
        opened_below(at, "sysroot", "sysroot", make=True),
    ):
        pass


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "writable"])
def test_a_file_that_is_read_back_is_ones_own(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    if kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.touch()
        path.chmod(0o666)
    with opened_folder(tmp_path) as at, pytest.raises(OutputError, match="is not used: "):
        open_own_file(at, "index.json", "index.json")


def test_a_file_of_somebody_else_is_not_read_back(foreign: Foreign, tmp_path: Path) -> None:
    (tmp_path / "index.json").touch()
    foreign(tmp_path / "index.json")
    with opened_folder(tmp_path) as at, pytest.raises(OutputError, match=f"belongs to user {STRANGER}"):
        open_own_file(at, "index.json", "index.json")


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("open")
    for path in (tmp_path / "a/b", tmp_path / "open", tmp_path / "link/c", tmp_path / "no"):
        with contextlib.suppress(OutputError, OSError):
            write(path, make=path.name != "no")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
