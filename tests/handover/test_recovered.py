"""Programs and libraries from the page cache are byte for byte the originals; incomplete ones go to another folder.

Tests handover/same_build.py, handover/written.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import GUESTS, bundled, unpacked_sysroot
from tests.e2e.test_sysroot import PAGE, without_pages
from tests.process.scene import Scene
from vmcore2core.addresses import KernelAddr
from vmcore2core.choose import Choice, choose
from vmcore2core.errors import LayoutUnknown
from vmcore2core.handover.mapped import Finder, page_cache
from vmcore2core.handover.recovered import RecoveredFiles, Recovery
from vmcore2core.handover.same_build import SameBuilds
from vmcore2core.kernel import dcache
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.filepages import FilePages
from vmcore2core.process.linkmap import LinkMap, link_map
from vmcore2core.process.snapshot import Captured
from vmcore2core.session import Session

DYNAMIC = ("bin/lab-dynamic", "lib/libc.so.6", "lib/libvictim.so", "lib64/ld-linux-x86-64.so.2")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_sysroot(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module", params=GUESTS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session([bundled(request.param, tmp_path_factory.mktemp("dump"))]) as opened:
        yield opened


def leaders(session: Session, *comms: str) -> list[StructView]:
    """Return the leaders of processes by name."""
    return [one.leader for one in choose(session.processes, Choice(comm=comms))[0]]


def recover(session: Session, folder: Path, comm: str, *, force: bool = False) -> RecoveredFiles:
    leader = leaders(session, comm)[0]
    return Recovery(session.processes, folder, force=force).add(Finder(session.processes).find(leader))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_files_of_a_process_are_the_originals(session: Session, originals: Path, tmp_path: Path) -> None:
    found = recover(session, tmp_path / "sysroot", "lab-dynamic")
    assert files_in(tmp_path / "sysroot") == {name: (originals / name).read_bytes() for name in DYNAMIC}
    assert [path.name for path in tmp_path.iterdir()] == ["sysroot"]
    assert (found.program, found.libraries, found.sentences) == (b"/bin/lab-dynamic", (b"/lib", b"/lib64"), ())
    assert all(file.build_id and file.build_id == file.build_id_in_process for file in found.files)


def test_a_static_program_is_all_of_its_files(session: Session, originals: Path, tmp_path: Path) -> None:
    found = recover(session, tmp_path / "sysroot", "lab-static")
    assert files_in(tmp_path / "sysroot") == {"bin/lab-static": (originals / "bin/lab-static").read_bytes()}
    assert (found.program, found.libraries) == (b"/bin/lab-static", ())


def test_names_in_directories_are_found_without_any_open_file(session: Session) -> None:
    leader = leaders(session, "lab-dynamic")[0]
    inode = next(v.inode for v in session.processes.capture(leader).snapshot.vmas if v.path == b"/bin/lab-dynamic")
    fs_struct = leader.follow("fs", "fs_struct")
    root = fs_struct.embedded("root", "path").follow("dentry", "dentry") if fs_struct else None
    assert root is not None
    found = dcache.lookup(root, b"bin/lab-dynamic")
    assert found is not None
    assert found.ulong("i_ino") == inode
    for path in (b"bin/nothing", b"nothing/there", b"bin/lab-dynamic/below"):
        assert dcache.lookup(root, path) is None


def test_a_second_run_changes_nothing(session: Session, tmp_path: Path) -> None:
    for _ in range(2):
        assert recover(session, tmp_path / "sysroot", "lab-dynamic").sentences == ()
    (tmp_path / "sysroot/lib/libvictim.so").write_bytes(b"somebody's own")
    sentences = recover(session, tmp_path / "sysroot", "lab-dynamic").sentences
    assert len(sentences) == 1
    assert "libvictim.so exists already; --force replaces it" in sentences[0]
    assert recover(session, tmp_path / "sysroot", "lab-dynamic", force=True).sentences == ()


def test_another_file_at_the_same_path_goes_to_a_folder_of_its_own(session: Session, tmp_path: Path) -> None:
    recovery = Recovery(session.processes, tmp_path / "sysroot")
    first = recovery.place({b"/bin/a": 1, b"/lib/b": 2})
    first.names |= {b"/bin/a": 1, b"/lib/b": 2}
    assert recovery.place({b"/bin/other": 9, b"/lib/b": 2}) is first
    second = recovery.place({b"/lib/b": 3})
    assert [place.whole.folder.name for place in (first, second)] == ["sysroot", "sysroot.2"]
    assert second.incomplete.folder.name == "sysroot.2.incomplete"


def test_a_file_that_lacks_pages_is_kept_apart_with_a_list(originals: Path, tmp_path: Path) -> None:
    dump = bundled("debian-7.2-amd64", tmp_path)
    program = (originals / "bin/lab-static").read_bytes()
    unwanted = {program[at : at + PAGE] for at in range(PAGE * 8, PAGE * 100, PAGE)}
    without_pages(dump, tmp_path / "poor", unwanted)
    with Session([tmp_path / "poor"]) as session:
        found = recover(session, tmp_path / "out/sysroot", "lab-static")
    assert found.program is None
    assert len(found.sentences) == 1
    assert not (tmp_path / "out/sysroot").exists()
    incomplete = tmp_path / "out/sysroot.incomplete/bin"
    assert {path.name for path in incomplete.iterdir()} == {"lab-static", "lab-static.missing"}
    lines = (incomplete / "lab-static.missing").read_text().split()
    missing = [tuple(int(end, 16) for end in line.split("-")) for line in lines]
    gone = {page for start, end in missing for page in range(start, end, PAGE)}
    assert set(range(PAGE * 8, PAGE * 100, PAGE)) <= gone
    assert found.files[0].missing_pages == len(gone)
    ours = (incomplete / "lab-static").read_bytes()
    # Behind what the file had are sections of what is known of it, to which its header leads.
    assert ours[:40] + ours[48:58] == program[:40] + program[48:58]
    for at in range(0, len(program), PAGE):
        here, page = ours[max(at, 64) : min(at + PAGE, len(program))], program[max(at, 64) : at + PAGE]
        assert here == (bytes(len(page)) if at in gone else page)


@pytest.mark.parametrize("unknown", ["address_space.host", "inode.i_size"])
def test_without_files_sizes_that_is_said_once(unknown: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutUnknown, match=unknown):
        Recovery(Scene(without=[unknown]).processes(), tmp_path)


@pytest.mark.corpus
def test_files_of_the_corpus_are_the_guests_own(corpus: Path, debian_72: Path, tmp_path: Path) -> None:
    with Session([debian_72]) as session:
        for comm in ("victim-dyn", "victim-static", "victim-32"):
            found = recover(session, tmp_path / comm, comm)
            assert found.sentences == ()
            assert found.program is not None
            program = (tmp_path / comm / os.fsdecode(found.program).lstrip("/")).read_bytes()
            assert program == (corpus / "debian-7.2-amd64/bin" / comm).read_bytes()


def renamed(session: Session, monkeypatch: pytest.MonkeyPatch, names: dict[bytes, bytes]) -> None:
    """Let files of every process have other paths, as a hostile dump could say."""
    capture = session.processes.capture

    def hostile(*args: Any, **more: Any) -> Captured:
        found = capture(*args, **more)
        vmas = tuple(v._replace(path=names.get(v.path or b"", v.path)) for v in found.snapshot.vmas)
        return Captured(found.snapshot._replace(vmas=vmas), found.memory)

    monkeypatch.setattr(session.processes, "capture", hostile)


@pytest.mark.parametrize(
    "path", [b"/../../evil", b"/lib/../../../evil", b"/lib/" + b"e" * 300, b"/lib/libc.so.6/below", b"/" + b"d/" * 400]
)
def test_a_hostile_path_costs_that_file_alone(
    session: Session, path: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed(session, monkeypatch, {b"/lib/libvictim.so": path})
    found = recover(session, tmp_path / "a/sysroot", "lab-dynamic")
    assert set(files_in(tmp_path)) == {f"a/sysroot/{name}" for name in DYNAMIC if name != "lib/libvictim.so"}
    assert len(found.sentences) == 1
    assert "is not recovered" in found.sentences[0]


def test_a_file_that_was_deleted_is_at_the_path_it_had(
    session: Session, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed(session, monkeypatch, {b"/lib/libvictim.so": b"/lib/libvictim.so (deleted)"})
    assert recover(session, tmp_path / "sysroot", "lab-dynamic").sentences == ()
    assert files_in(tmp_path / "sysroot") == {name: (originals / name).read_bytes() for name in DYNAMIC}


def test_names_that_the_dynamic_linker_has_become_links(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"/lib64/x86/libvictim.so.1", b"/opt/../lib/libvictim.so", b"relative.so", b"/lib/libc.so.6/x", b"/a\nb"]

    def aliased(*args: Any) -> LinkMap:
        objects = link_map(*args).objects
        victim = next(loaded for loaded in objects if loaded.l_name.endswith(b"libvictim.so"))
        return LinkMap(tuple(victim._replace(l_name=name) for name in names))

    monkeypatch.setattr("vmcore2core.handover.mapped.link_map", aliased)
    found = recover(session, tmp_path / "sysroot", "lab-dynamic")
    links = {str(p.relative_to(tmp_path)): str(p.readlink()) for p in tmp_path.rglob("*") if p.is_symlink()}
    assert links == {
        "sysroot/lib64/x86/libvictim.so.1": "../../lib/libvictim.so",
        "sysroot/a\\x0ab": "lib/libvictim.so",
    }
    assert len(found.sentences) == 1
    assert "libc.so.6 is not used: it is a link or a file, expected a directory" in found.sentences[0]


def test_pages_that_a_file_lacks_come_from_another_with_its_build_id(session: Session, originals: Path) -> None:
    """As of a container's libc and the machine's: here the same file stands for both."""
    mapped = Finder(session.processes).find(leaders(session, "lab-dynamic")[0])
    libc = mapped.files[b"/lib/libc.so.6"]
    same = SameBuilds()
    same.learn(mapped)
    view = session.kernel.view("address_space", KernelAddr(libc.mapping))
    pages = FilePages(page_cache(session.processes), view, session.processes.swap.space)
    pages.known[[3, 4, 9]] = False
    assert pages.read(3 * PAGE, PAGE) is None
    assert same.others(libc.build_id, libc.mapping) == ()  # not from itself
    assert same.others(None, 0) == same.others(bytes(20), 0) == ()
    assert same.others(libc.build_id, 0) == ((libc.mapping, b"/lib/libc.so.6"),)
    assert pages.take(FilePages(page_cache(session.processes), view, session.processes.swap.space)) == 3
    assert pages.read(0, pages.size) == (originals / "lib/libc.so.6").read_bytes()


def test_a_file_of_another_size_is_not_the_same(session: Session) -> None:
    mapped = Finder(session.processes).find(leaders(session, "lab-dynamic")[0])
    one, other = (
        FilePages(
            page_cache(session.processes),
            session.kernel.view("address_space", KernelAddr(mapped.files[path].mapping)),
            None,
        )
        for path in (b"/lib/libc.so.6", b"/bin/lab-dynamic")
    )
    one.known[0] = False
    assert one.take(other) == 0
    assert not one.known[0]
