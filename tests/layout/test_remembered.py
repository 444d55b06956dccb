"""The layout that earlier runs kept saves work and changes no answer; if it does not fit, it is not used."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.builders.web import Server, serving
from tests.e2e.guests import FIXTURES, convert
from vmcore2core.containers import remote
from vmcore2core.containers.diskdump_part import DiskDumpPart
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.remote import Url
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.layout import remembered
from vmcore2core.layout.btf import Btf
from vmcore2core.layout.kallsyms_names import SymbolNames
from vmcore2core.session import OpenOptions, Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the layout is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmcore2core" / "layout"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts pages decoded, BTF indexed, and symbol tables opened."""
    counts: Counter[str] = Counter()

    def count(owner: object, name: str, what: Callable[[tuple[Any, ...]], int]) -> None:
        plain = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            counts[name] += what(arguments)
            return plain(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(DiskDumpPart, "_decode", lambda arguments: len(arguments[1]))
    count(SymbolNames, "__init__", lambda _: 1)
    count(Btf, "type_of", lambda _: 1)
    return counts


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.content = DUMP.read_bytes()
        yield state


def core(dump: Path, output: Path, *, remember: bool = True) -> bytes:
    """Convert the victim."""
    with Session([dump], OpenOptions(remember=remember)) as session:
        session.extract(session.processes.find(86), output, CoreOptions(force=True))
    return output.read_bytes()


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what is kept, and the hash with it."""
    content = json.loads(path.read_bytes().partition(b"\n")[2])
    change(content)
    text = json.dumps(content).encode()
    digest = hashlib.blake2b(text, digest_size=20, person=remembered._PERSON).hexdigest()
    path.write_bytes(digest.encode() + b"\n" + text)


def test_the_second_run_reads_neither_symbols_nor_types_and_gives_the_same(
    folder: Path, tmp_path: Path, work: Counter[str]
) -> None:
    plain = core(DUMP, tmp_path / "core", remember=False)
    assert not folder.exists()
    assert core(DUMP, tmp_path / "core") == plain
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["btf", "dump"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    work.clear()
    assert core(DUMP, tmp_path / "core") == plain
    assert work["__init__"] == work["type_of"] == 0
    assert work["_decode"] < 3000  # some 1800 of the process; kallsyms and BTF are 1400 more


@pytest.mark.usefixtures("folder")
def test_answers_and_who_gave_them_are_the_same() -> None:
    def everything() -> tuple[object, dict[str, str]]:
        with Session([DUMP], OpenOptions(remember=True)) as session:
            layout = session.boot.layout
            members = [layout.find_member("task_struct", name) for name in ("mm", "thread_pid", "no_such", "jobctl")]
            numbers = layout.find_symbol("init_task"), layout.find_symbol("no_such"), layout.find_size("file")
            return (members, numbers, layout.find_constant("PG_locked"), layout.source_names), layout.provenance()

    first, asked = everything()
    second, again = everything()
    assert second == first
    # Where BTF is has not to be asked any more.
    assert {item for item, _ in asked.items() - again.items()} == {"SYMBOL(__start_BTF)", "SYMBOL(__stop_BTF)"}
    assert again.items() <= asked.items()


@pytest.mark.usefixtures("folder")
def test_the_types_of_one_kernel_serve_another_dump_of_it(tmp_path: Path, work: Counter[str]) -> None:
    plain = core(DUMP, tmp_path / "core")
    other = Path(shutil.copy(DUMP, tmp_path / "vmcore"))
    work.clear()
    assert core(other, tmp_path / "core") == plain
    assert work["__init__"] == 1
    assert work["type_of"] == 0


@pytest.mark.usefixtures("folder")
def test_a_file_that_was_written_to_is_another_dump(tmp_path: Path, work: Counter[str]) -> None:
    dump = Path(shutil.copy(DUMP, tmp_path / "vmcore"))
    core(dump, tmp_path / "core")
    work.clear()
    os.utime(dump)
    core(dump, tmp_path / "core")
    assert work["__init__"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"\xff" * 100,
        b"[" * 100_000,
        pytest.param(None, id="one byte"),
    ],
)
def test_a_damaged_file_is_not_used(damage: bytes | None, folder: Path, tmp_path: Path, work: Counter[str]) -> None:
    plain = core(DUMP, tmp_path / "core")
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content) if damage is None else damage)
    work.clear()
    assert core(DUMP, tmp_path / "core") == plain
    assert work["__init__"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.clear(),
        lambda content: content["btf"].pop("members"),
        lambda content: content["btf"].update(members=[1]),
        lambda content: content["btf"].update(name=7),
        lambda content: content["btf"]["members"].update({"task_struct.comm": {"offset": "x", "source": "y"}}),
        lambda content: content["btf"]["members"].update({"task_struct.comm": {"elsewhere": 1}}),
        lambda content: content["kallsyms"]["numbers"].update({"SYMBOL(init_task)": 1 << 70}),
        lambda content: content["kallsyms"]["numbers"].update({"SYMBOL(init_task)": "7"}),
        # Of the right form, and wrong: the checks that any layout goes through notice it.
        lambda content: content["btf"]["members"].update({"task_struct.comm": {"offset": 8, "source": "y"}}),
        lambda content: content["btf"]["members"].update({"task_struct.tasks": None}),
        lambda content: content["kallsyms"]["numbers"].update({"SYMBOL(init_task)": 0xFFFF_8880_0000_1000}),
    ],
)
def test_what_does_not_fit_is_asked_again(
    change: Callable[[dict[str, Any]], None], folder: Path, tmp_path: Path
) -> None:
    plain = core(DUMP, tmp_path / "core")
    (path,) = folder.glob("dump-*")
    good = path.read_bytes()
    rewrite(path, change)
    assert core(DUMP, tmp_path / "core") == plain
    assert json.loads(path.read_bytes().partition(b"\n")[2]) == json.loads(good.partition(b"\n")[2])


def test_without_a_place_for_it_the_dump_is_asked_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Counter[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        work.clear()
        core(DUMP, tmp_path / "core")
        assert work["__init__"] == 1


def test_what_was_given_with_the_dump_is_not_kept(folder: Path, tmp_path: Path) -> None:
    info = tmp_path / "info"
    info.write_text("OFFSET(task_struct.comm)=1\n")
    with Session([DUMP], OpenOptions(vmcoreinfo=info, remember=True)):
        pass
    assert not folder.exists()


def test_what_is_below_proc_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(DumpFile(DUMP)) as file:
        assert remembered._identity([file], "") is not None
        monkeypatch.setattr(Path, "resolve", lambda path: Path("/proc") / path.name)
        assert remembered._identity([file], "") is None


def test_a_dump_by_url_is_remembered_by_its_version(
    folder: Path, tmp_path: Path, work: Counter[str], server: Server
) -> None:
    first = core(Url(server.url), tmp_path / "core")
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["btf", "dump"]
    requests = server.gets
    work.clear()
    assert core(Url(f"{server.url}?X-Amz-Signature=another"), tmp_path / "core") == first
    assert (server.gets, work["__init__"], work["type_of"]) == (requests, 0, 0)


def who_says_where_comm_is(url: str) -> str:
    with Session([Url(url)], OpenOptions(remember=True)) as session:
        assert session.boot.layout.find_symbol("init_task")
        member = session.boot.layout.find_member("task_struct", "comm")
        assert member is not None
        return member.source


def plant(folder: Path) -> None:
    """Change what no check of a layout can notice."""
    (path,) = folder.glob("dump-*")
    rewrite(path, lambda content: content["btf"]["members"]["task_struct.comm"].update(source="the old dump"))


@pytest.mark.parametrize("versions", [None, {"Last-Modified": formatdate(1_700_000_000)}], ids=["ETag", "time"])
def test_another_dump_at_the_same_url_gets_nothing_of_the_old_one(
    versions: dict[str, str] | None, folder: Path, server: Server, work: Counter[str]
) -> None:
    server.versions, server.minds = versions, versions is None
    assert who_says_where_comm_is(server.url) == "BTF in the dump"
    plant(folder)
    assert who_says_where_comm_is(server.url) == "the old dump"
    content = bytearray(server.content)
    content[12 + 5 * 65 + 60] ^= 1  # in the padding of utsname.domainname
    server.content = bytes(content)
    if versions is not None:
        server.versions = {"Last-Modified": formatdate(1_700_000_001)}
    work.clear()
    assert who_says_where_comm_is(server.url) == "BTF in the dump"
    assert work["__init__"] == 1
    assert len(list(folder.glob("dump-*"))) == 2


@pytest.mark.parametrize("versions", [{"ETag": 'W/"a"'}, {"Last-Modified": formatdate(4e9)}], ids=["weak", "new"])
def test_without_a_certain_version_only_the_types_are_remembered(
    versions: dict[str, str], folder: Path, server: Server, work: Counter[str]
) -> None:
    server.versions, server.minds = versions, False
    who_says_where_comm_is(server.url)
    work.clear()
    who_says_where_comm_is(server.url)
    assert (work["__init__"], work["type_of"]) == (1, 0)
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["btf"]


def test_what_is_unpacked_is_remembered_by_the_version_of_the_compressed_file(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.versions, server.minds = {"Last-Modified": formatdate(1_700_000_000)}, False

    def opened(content: bytes) -> tuple[bytes, str | None]:
        server.content = gzip.compress(content)
        with contextlib.closing(open_dump_file(Url(server.url))) as file:
            return file.read(0, file.size), file.strong_identity()

    with monkeypatch.context() as young:
        young.setattr(remote, "CERTAIN_AFTER", 1 << 40)
        assert opened(b"first") == (b"first", None)
    # Written within the same second, and as long: only now does the time tell one from the other.
    text, identity = opened(b"other")
    assert text == b"other"
    assert identity is not None
    assert opened(b"other") == (b"other", identity)


def test_the_oldest_go(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "FILES_MAX", 3)
    for at in range(4):
        core(Path(shutil.copy(DUMP, tmp_path / f"vmcore{at}")), tmp_path / "core")
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 3
    assert any(name.startswith("dump-") for name in names)


def test_what_workers_were_told_is_kept_as_well(folder: Path, tmp_path: Path) -> None:
    kept = []
    for jobs in ("1", "2"):
        assert convert(DUMP, "--all", "-o", tmp_path / jobs, "--jobs", jobs).returncode == 0
        kept.append({path.name: json.loads(path.read_bytes().partition(b"\n")[2]) for path in folder.iterdir()})
        shutil.rmtree(folder)
    assert kept[0] == kept[1]
    assert all("fs_struct.root" in content["btf"]["members"] for name, content in kept[1].items() if "btf-" in name)
