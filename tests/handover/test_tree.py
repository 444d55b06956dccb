"""Names from a dump never lead out of the folder, whatever they are and whatever the folder has already."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.handover.tree import Tree, check_trees, names_of


def put(tree: Tree, path: bytes, content: bytes = b"content") -> None:
    with tree.create(path) as fd:
        os.write(fd, content)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_file_lies_at_its_path_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    put(Tree(tmp_path / "out" / "sysroot"), b"//usr/./lib/libc.so.6")
    found = tmp_path / "out/sysroot/usr/lib/libc.so.6"
    assert (found.read_bytes(), found.stat().st_mode & 0o777) == (b"content", 0o600)
    assert {path.stat().st_mode & 0o777 for path in (found.parent, found.parent.parent)} == {0o700}
    assert everything(tmp_path / "out/sysroot") == {"usr", "usr/lib", "usr/lib/libc.so.6"}


@pytest.mark.parametrize(
    "path",
    [
        b"../outside",
        b"/a/../../outside",
        b"/..",
        b"/",
        b"",
        b"/a/..",
        b"/a\0b",
        b"/" + b"n" * 256,
        b"/a" * 257,
    ],
)
def test_what_is_no_path_below_the_folder_is_refused(path: bytes, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError):
        put(Tree(tmp_path / "out"), path)
    with pytest.raises(OutputError):
        Tree(tmp_path / "out").link(path, b"/x")
    with pytest.raises(OutputError):
        Tree(tmp_path / "out").link(b"/x", path)
    assert everything(tmp_path) == {"out"}


@pytest.mark.parametrize("name", [b"quote'\"", b"back\\slash", b"-x", b"$(id)", "größe".encode()])
def test_odd_names_are_kept_as_they_are(name: bytes, tmp_path: Path) -> None:
    put(Tree(tmp_path), b"/d/" + name)
    assert [os.fsencode(path.name) for path in (tmp_path / "d").iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        (b"new\nline", "new\\x0aline"),
        (b"\x1b[2J", "\\x1b[2J"),
        ("gpj.\u202eexe".encode(), "gpj.\\x202eexe"),
        ("\u2066x\u2028".encode(), "\\x2066x\\x2028"),
        (b"\x9bA\xff", "\\x9bA\\xff"),
        (b"tab\t\x7f", "tab\\x09\\x7f"),
    ],
)
def test_what_a_terminal_would_act_on_stands_escaped_in_names(name: bytes, there: str, tmp_path: Path) -> None:
    put(Tree(tmp_path), b"/d/" + name + b"/" + name)
    assert everything(tmp_path) == {"d", f"d/{there}", f"d/{there}/{there}"}
    Tree(tmp_path).link(b"/l" + name, b"/d/" + name + b"/" + name)
    assert (tmp_path / f"l{there}").read_bytes() == b"content"


@pytest.mark.parametrize("target", ["/etc", "..", "outside", "/nonexistent/there"])
def test_a_link_that_lies_in_the_folder_is_not_followed(target: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    tree = Tree(tmp_path / "out", force=True)
    tree.folder.mkdir()
    (tree.folder / "usr").symlink_to(target if target != "outside" else tmp_path / "outside")
    with pytest.raises(OutputError, match="usr"):
        put(tree, b"/usr/secret")
    with pytest.raises(OutputError, match="usr"):
        tree.link(b"/usr/secret", b"/x")
    assert not any((tmp_path / "outside").iterdir())
    assert not Path("/etc/secret").exists()


@pytest.mark.parametrize("name", ["sysroot", "sysroot.2", "sysroot.incomplete", "sysroot.3.incomplete"])
def test_the_folder_itself_is_no_link(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(OutputError, match=f"{name} is not used: it is a link"):
        put(Tree(tmp_path / "out" / name, force=True), b"secret")
    with pytest.raises(OutputError, match=f"{name} is not used: it is a link"):
        check_trees(tmp_path / "out")
    assert not list((tmp_path / "outside").iterdir())


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/name").symlink_to(victim)
    with pytest.raises(OutputExists):
        put(Tree(tmp_path / "out"), b"name")
    put(Tree(tmp_path / "out", force=True), b"name")
    assert victim.read_bytes() == b"mine"
    assert (tmp_path / "out/name").read_bytes() == b"content"
    assert not (tmp_path / "out/name").is_symlink()


def test_the_same_file_again_is_no_error_and_another_one_is(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    put(tree, b"a")
    put(tree, b"a")
    with pytest.raises(OutputExists, match="--force"):
        put(tree, b"a", b"another")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert everything(tmp_path) == {"a"}


def test_what_ends_halfway_leaves_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    with pytest.raises(KeyboardInterrupt), tree.create(b"d/a"):
        raise KeyboardInterrupt
    assert everything(tmp_path) == {"d"}


@pytest.mark.parametrize(
    ("path", "target", "content"),
    [
        (b"/lib/x.so.1", b"/usr/lib/x.so.1.2", "../usr/lib/x.so.1.2"),
        (b"/lib/x.so.1", b"/lib/x.so.1.2", "x.so.1.2"),
        (b"/x", b"/a/b", "a/b"),
        (b"/a/b/c/x", b"/a/d", "../../d"),
    ],
)
def test_links_are_relative_and_lead_to_the_file(path: bytes, target: bytes, content: str, tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    put(tree, target)
    tree.link(path, target)
    tree.link(path, target)
    there = tmp_path / os.fsdecode(path.lstrip(b"/"))
    assert (str(there.readlink()), there.read_bytes()) == (content, b"content")
    with pytest.raises(OutputExists):
        tree.link(path, b"/elsewhere")


def test_names_of_a_path() -> None:
    assert names_of(b"/usr//lib/./x") == [b"usr", b"lib", b"x"]
