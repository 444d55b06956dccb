"""The index is written whole, and used only if it fits the dump, the options and the files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vmcore2core.containers.remote import located
from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.errors import OutputError
from vmcore2core.handover.index import INDEX_NAME, Index, entry_text
from vmcore2core.run.index_entries import dump_file

HEAD: dict[str, Any] = {"dump": {"files": [{"name": "vmcore", "size": 5}]}, "kernel": {}, "options": {"filter": None}}


def entry(folder: Path, pid: int, content: bytes = b"core") -> dict[str, Any]:
    path = folder / f"core.app.{pid}"
    path.write_bytes(content)
    status = path.stat()
    core = {"file": path.name, "file_size": status.st_size, "mtime_ns": status.st_mtime_ns, "complete": True}
    return {"pid": pid, "comm": "app", "threads": [], "core": {**core, "missing": 0, "pages": 1}}


def written(folder: Path, *pids: int) -> Index:
    index = Index(folder, HEAD)
    for pid in pids:
        index.add(entry_text(entry(folder, pid)))
    index.write(finished=True)
    return index


def resumed(folder: Path) -> Index:
    index = Index(folder, HEAD)
    assert index.resume()
    return index


def test_without_an_index_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    part = tmp_path / ".index.json.0123456789abcdef.part"
    part.touch()  # a run was killed before it had an index
    assert not Index(tmp_path, HEAD).resume()
    assert not part.exists()


def test_an_index_is_json_with_processes_by_pid(tmp_path: Path) -> None:
    written(tmp_path, 30, 4)
    found = json.loads((tmp_path / INDEX_NAME).read_text())
    assert (found["format"], found["version"], found["options"]) == ("vmcore2core-index", 1, {"filter": None})
    assert [process["pid"] for process in found["processes"]] == [4, 30]
    assert found["finished"] >= found["started"]
    assert (tmp_path / INDEX_NAME).stat().st_mode & 0o777 == 0o600


def test_an_index_without_processes_is_json(tmp_path: Path) -> None:
    written(tmp_path)
    assert json.loads((tmp_path / INDEX_NAME).read_text())["processes"] == []


def test_what_is_finished_is_kept(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    index = resumed(tmp_path)
    assert index.kept(1, "app") is not None
    assert index.kept(3, "app") is None
    assert index.kept(1, "another") is None


def test_cores_that_were_changed_or_are_gone_are_not_kept(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3)
    (tmp_path / "core.app.1").write_bytes(b"CORE")  # of the same size
    (tmp_path / "core.app.2").unlink()
    index = resumed(tmp_path)
    assert [index.kept(pid, "app") is not None for pid in (1, 2, 3)] == [False, False, True]


def test_a_name_that_leads_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "cores").mkdir()
    outside = entry(tmp_path, 1)
    outside["core"]["file"] = "../core.app.1"
    index = Index(tmp_path / "cores", HEAD)
    index.add(entry_text(outside))
    assert resumed(tmp_path / "cores").kept(1, "app") is None


def test_what_a_killed_run_had_begun_is_removed_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path)
    begun = [".core.app.7.0123456789abcdef.part", ".index.json.0123456789abcdef.part"]
    others = [".profile", "core.app.8", ".core.part", "notes.0123456789abcdef.part"]
    below = tmp_path / "sysroot.2" / "lib"
    below.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sysroot.3").symlink_to("elsewhere")
    begun += ["sysroot.2/lib/.0123456789abcdef.part"]
    others += ["sysroot.2/lib/libc.so.6", "elsewhere/.0123456789abcdef.part"]
    for name in begun + others:
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "core.app.9"):  # another process's, which is not done
        resumed(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        INDEX_NAME,
        "core.app.9",
        *others,
    }


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("dump", {"files": []}, "is of another dump"),
        ("options", {"filter": "0x1ff"}, "is of other options"),
        ("tool", "vmcore2core 0.0.0", "is of another version"),
    ],
)
def test_an_index_of_something_else_is_refused(tmp_path: Path, part: str, value: object, words: str) -> None:
    written(tmp_path, 1)
    path = tmp_path / INDEX_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), part: value}))
    with pytest.raises(OutputError, match=words):
        resumed(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON"),
        ("[1]", "is no index"),
        ('{"format": "vmcore2core-index", "version": 2}', "is no index of version 1"),
        ('{"format": "vmcore2core-index", "version": 1, "processes": 5}', "without the fields that --resume"),
        (
            '{"format": "vmcore2core-index", "version": 1, "processes": [{"pid": 1}]}',
            "without the fields that --resume",
        ),
        ("\xff", "is not JSON"),
    ],
)
def test_a_file_that_is_no_index_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / INDEX_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(OutputError, match=words):
        resumed(tmp_path)


def test_a_dump_that_came_through_a_pipe_may_be_another(tmp_path: Path) -> None:
    head = {**HEAD, "dump": {"files": [dump_file(Path("standard input"))]}}
    index = Index(tmp_path, head)
    index.add(entry_text(entry(tmp_path, 4)))
    index.write(finished=True)
    with pytest.raises(OutputError, match="cannot resume: the dump was read from a pipe"):
        Index(tmp_path, head).resume()


def test_a_dump_by_url_is_known_by_its_servers_word(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(b"dump")
    described = [dump_file(located(f"file://{tmp_path}/vmcore"))]
    (tmp_path / "vmcore").write_bytes(b"dumb")
    os.utime(tmp_path / "vmcore", (1, 1))
    described.append(dump_file(located(f"file://{tmp_path}/vmcore")))
    assert [(file["name"], file["size"], file["mtime_ns"]) for file in described] == [("vmcore", 4, None)] * 2
    assert described[0] != described[1]


def test_a_link_to_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).symlink_to("/dev/zero")
    with pytest.raises(OutputError, match=r"index\.json is not used: it is a link"):
        Index(tmp_path, HEAD).resume()


def test_a_fifo_in_the_place_of_the_index_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / INDEX_NAME)
    with pytest.raises(OutputError, match="expected a regular file"):
        Index(tmp_path, HEAD).resume()


def test_an_index_that_is_too_large_is_not_taken_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1)
    monkeypatch.setattr("vmcore2core.handover.index.INDEX_MAX", 64)
    with pytest.raises(OutputError, match="is larger than 0x40 bytes"):
        Index(tmp_path, HEAD).resume()


def test_an_index_that_is_nested_too_deep_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text("[" * 200_000)
    with pytest.raises(OutputError, match=r"nested too deep|is not JSON"):
        Index(tmp_path, HEAD).resume()
