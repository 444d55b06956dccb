"""Dumps by URL: the same core from few bytes of the file, and a sentence if that is impossible."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.builders.kdump import build_kdump
from tests.builders.present import present_runs
from tests.builders.sample_files import elf, kdump
from tests.builders.samples import PAGES
from tests.builders.web import Server, serving
from tests.containers.contract import check_contract, read
from tests.e2e.guests import FIXTURES, convert
from vmcore2core.containers import open_container, remote
from vmcore2core.containers.remote import Url, located
from vmcore2core.errors import DumpError, ServerFailed
from vmcore2core.session import OpenOptions, Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


def test_a_url_is_told_from_a_path() -> None:
    for text in ("https://a//b/c", "s3://bucket/key", "ssh://h/path", "http://[::1]:80/x"):
        assert isinstance(located(text), Url)
        assert str(located(text)) == text
    for text in ("a/b", "/var/crash/vmcore", "c:/x", "-"):
        assert located(text) == Path(text)
        assert not isinstance(located(text), Url)


@pytest.mark.parametrize(
    ("text", "shown", "name"),
    [
        ("https://user:pw@host/dir/vmcore?X-Amz-Signature=abcdef", "https://host/dir/vmcore", "vmcore"),
        ("https://token@host:8443/vmcore#part", "https://host:8443/vmcore", "vmcore"),
        ("https://a@b@host/vmcore?x=//y&z=user@host", "https://host/vmcore", "vmcore"),
        ("https://host/vm/core?/../x", "https://host/vm/core", "core"),
        ("https://host?secret", "https://host", "host"),
    ],
)
def test_of_a_url_only_scheme_host_and_path_are_shown(text: str, shown: str, name: str) -> None:
    url = located(text)
    assert isinstance(url, Url)
    assert (str(url), f"{url}", os.fspath(url), url.name, url.text) == (shown, shown, shown, name, text)
    assert url.parent.name != name
    assert "abcdef" not in repr(url)


SECRETS = ("hunter22", "S1GNATURE", "S1%47", "alice")


def private(server: Server, path: str = "/vmcore") -> str:
    return server.url.replace("http://", "http://alice:hunter22@").replace(
        "/vmcore", f"{path}?X-Amz-Signature=S1GNATURE&t=S1%47NATURE"
    )


def assert_public(*texts: str | bytes) -> None:
    for text in texts:
        for secret in SECRETS:
            assert secret not in (text if isinstance(text, str) else text.decode("latin-1"))


def test_no_password_or_signature_of_a_url_stands_anywhere(tmp_path: Path, server: Server) -> None:
    server.content = DUMP.read_bytes()
    result = convert(private(server), "--all", "-o", tmp_path / "out", "--json", "-vv", "--debug")
    assert result.returncode == 0
    assert_public(result.stdout, result.stderr)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"index.json", "index.html"} < {path.name for path in files}
    assert_public(*(path.read_bytes() for path in files))
    assert json.loads(result.stdout)["dump"]["paths"] == [server.url]
    resumed = convert(private(server), "--all", "-o", tmp_path / "out", "--resume")
    assert resumed.returncode == 0
    assert_public(resumed.stdout, resumed.stderr)


@pytest.mark.parametrize("path", ["/vmcorn", "/vmcore"])
def test_no_error_shows_a_password_or_signature(path: str, tmp_path: Path, server: Server) -> None:
    """404; and a server that ends each connection at once."""
    server.content, server.minds = b"x" * 100, False
    url = private(server, path)
    url = url if path == "/vmcorn" else re.sub(r":\d+/", ":9/", url)
    for word in (url, "nonsense" + url):
        result = convert(word, "--pid", "1", "-o", tmp_path / "core", "-vv", "--debug")
        assert result.returncode == 1
        assert "127.0.0.1" in result.stderr
        assert_public(result.stdout, result.stderr)


@pytest.mark.parametrize("minds", [True, False])
def test_a_file_that_is_replaced_meanwhile_is_an_error(tmp_path: Path, server: Server, *, minds: bool) -> None:
    """Each answer says another version; a server that does not heed If-Match is found out before the core is there."""
    server.content, server.tags, server.minds = DUMP.read_bytes(), True, minds
    result = convert(server.url, "--pid", "1", "-o", tmp_path / "core")
    assert (result.returncode, result.stdout) == (1, "")
    assert "/vmcore has changed while it was read: its server has another version of it now" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_core_is_the_same_and_few_bytes_are_sent(tmp_path: Path, server: Server) -> None:
    """Of a dump with 64 MiB of memory that no kernel structure leads to, none of that is fetched."""
    with open_container([DUMP]) as container:
        notes = b"".join(note(n.name.encode(), n.n_type, n.desc) for n in container.notes)
        loads = [Load(*run) for run in present_runs(container)]
    memory = sum(len(load.data) for load in loads)
    server.content = build_elf_vmcore([Load(1 << 32, random.Random(1).randbytes(64 << 20)), *loads], notes)
    assert convert(DUMP, "--pid", "1", "-o", tmp_path / "local").returncode == 0
    result = convert(server.url, "--pid", "1", "-o", tmp_path / "remote")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "remote").read_bytes() == (tmp_path / "local").read_bytes()
    assert server.sent < memory * 0.6
    assert server.sent < len(server.content) * 0.25


@pytest.mark.parametrize("content", [kdump("zlib"), elf()], ids=["kdump", "ELF"])
def test_contract(server: Server, content: bytes) -> None:
    server.content = content
    with open_container([Url(server.url)]) as container:
        assert str(container.paths[0]) == server.url
        check_contract(container, {pfn: page for pfn, page in PAGES.items() if page.strip(b"\0")})


def test_a_page_of_a_large_dump_takes_few_requests(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its table of descriptors nor its pages are fetched as a whole."""
    monkeypatch.setattr(remote, "BLOCK", 16 << 10)
    rng = np.random.default_rng(3)
    pages = {pfn: rng.bytes(4096) for pfn in range(4096)}
    server.content = build_kdump(pages, codec="raw")
    with open_container([Url(server.url)]) as container:
        assert read(container, 5, 4000)[1] == [pages[5], pages[4000]]
        once = server.sent
        assert read(container, 5, 4000)[1] == [pages[5], pages[4000]]
    assert server.sent == once
    assert server.sent < len(server.content) // 50


def test_a_worker_that_finds_another_version_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = bytes(range(256)) * 1024
    file = remote.RemoteFile(Url(server.url), cache=False)
    server.content = bytes(len(server.content))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert "has changed while it was read" in str(file.changed())
    with pytest.raises(DumpError, match="has changed while it was read"):
        file.read(0, 10)
    file.close()


def test_the_cache_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 4096)
    monkeypatch.setattr("vmcore2core.containers.blockfile.CACHE_BYTES", 3 * 4096)
    server.content = bytes(range(256)) * 1024
    file = remote.RemoteFile(Url(server.url))
    assert file.read(100, 200_000) == server.content[100:200_100]
    assert len(file._cache) == 3
    file.close()


def test_a_compressed_file_is_unpacked_once(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server calls its version stands for the content, which is not fetched to know it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server.content = gzip.compress(kdump("raw"))
    for _ in range(2):
        with open_container([Url(server.url)]) as container:
            assert read(container, 1)[1] == [PAGES[1]]
        # The last byte shows that parts are given; the second time, the cache has the first block.
        assert server.sent == len(server.content) + 1
    server.content = gzip.compress(kdump("zlib"))
    with open_container([Url(server.url)]) as container:
        assert container.compressed == "zlib"


def test_a_file_that_is_not_there(server: Server) -> None:
    with pytest.raises(DumpError, match=r"/vmcorn cannot be read: there is no such file"):
        open_container([Url(server.url.replace("vmcore", "vmcorn"))])


@pytest.mark.parametrize(
    ("tells_size", "words"), [(True, "does not give parts of a file"), (False, "does not say how large it is")]
)
def test_a_server_without_ranges(server: Server, *, tells_size: bool, words: str) -> None:
    server.content, server.ranges, server.tells_size = kdump("raw") * 20, False, tells_size
    with (
        pytest.raises(DumpError, match=words),
        open_container([Url(server.url)]) as container,
    ):
        read(container, 40)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(DumpError, match=r"http://127.0.0.1:9/vmcore cannot be read: ") as caught:
        open_container([Url("http://127.0.0.1:9/vmcore")])
    assert "Connect call failed" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("gives", [3, 6, 9, 12])
def test_a_server_that_fails_ends_the_search_for_a_layout(server: Server, gives: int) -> None:
    """What failed is all that is said, not what could not be found therefore."""
    server.content, server.gives = DUMP.read_bytes(), gives
    with pytest.raises(ServerFailed) as caught:
        Session([Url(server.url)], OpenOptions(cache=False))
    assert re.fullmatch(r"http://[0-9.:]+/vmcore cannot be read: .{1,80}", str(caught.value))


def test_a_redirect_without_end(server: Server) -> None:
    url = server.url.replace("vmcore", "around")
    told = f"{url} cannot be read: its server redirects from one URL to another without end"
    with pytest.raises(ServerFailed, match=re.escape(told)):
        open_container([Url(url)])


def test_a_protocol_that_nobody_knows() -> None:
    with pytest.raises(DumpError, match="nonsense://x cannot be read: Protocol not known: nonsense"):
        open_container([Url("nonsense://x")])


def test_a_file_that_shrinks_is_noticed(server: Server) -> None:
    server.content = kdump("raw") * 20
    with open_container([Url(server.url)]) as container:
        server.content = server.content[:1000]
        file = remote._WholeRemoteFile(Url(server.url))
        file.size = 5000
        with pytest.raises(DumpError):
            file.read(0, 5000)
        file.close()
        assert container.warnings == []


@pytest.mark.parametrize("package", ["fsspec.core", "aiohttp"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "http", raising=False)
    with pytest.raises(DumpError, match=r"needs a Python package .*: pip install fsspec, and .* aiohttp"):
        open_container([Url("http://127.0.0.1:9/vmcore")])


def test_fsspecs_other_file_systems_read() -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/dumps/vmcore", kdump("lzo"))
    try:
        with open_container([Url("memory://dumps/vmcore")]) as container:
            assert read(container, 1, 3)[1] == [PAGES[1], PAGES[3]]
        with pytest.raises(DumpError, match="memory://dumps"):
            open_container([Url("memory://dumps")])
    finally:
        system.rm("/dumps", recursive=True)
