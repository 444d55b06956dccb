"""Secrets are blanked wherever they are written, across the borders of pages and pieces, and nothing else is."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from tests.corefile.snapshots import PAGE, snapshot, vma
from tests.e2e.cores import Core
from tests.e2e.guests import bundled, convert
from vmcore2core.convert import failure
from vmcore2core.corefile.notes import notes_of
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import OutputError, UsageError
from vmcore2core.handover.scripts import write_scripts
from vmcore2core.handover.tree import Tree
from vmcore2core.process.redact import Redaction
from vmcore2core.process.secrets import FORMS, OVERLAP, Search, Secrets, parse_secrets

PEM = (
    b"-----BEGIN RSA PRIVATE KEY-----\n"
    + b"MIIEowIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy\n" * 20
    + b"-----END RSA PRIVATE KEY-----"
)
EXAMPLES: dict[str, tuple[bytes, bytes]] = {
    "private key": (PEM, PEM[4:-20]),
    "JSON web token": (b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",) * 2,
    "AWS access key": (b"AKIAIOSFODNN7EXAMPLE",) * 2,
    "AWS secret key": (
        b"aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ),
    "GitHub token": (b"ghp_" + b"a1B2" * 9,) * 2,
    "GitHub fine-grained token": (b"github_pat_11AAAAAAA0abcdefghijkl_mnop",) * 2,
    "GitLab token": (b"glpat-abcdefghij0123456789",) * 2,
    "Slack token": (b"xoxb-1234567890-abcdefghij",) * 2,
    "Google API key": (b"AIza" + b"SyA" * 11 + b"xy",) * 2,
    "Google access token": (b"ya29.a0AfH6SMBabcdefghijklmnop",) * 2,
    "Stripe key": (b"sk_live_4eC39HqLyjWDarjtT1zdp7dc",) * 2,
    "npm token": (b"npm_" + b"aB3" * 12,) * 2,
    "Azure storage key": (b"AccountKey=" + b"Eby8" * 20 + b"==", b"Eby8" * 20 + b"=="),
    "HTTP credentials": (b"Authorization: Bearer abc.def-123456", b"abc.def-123456"),
    "URL with a password": (b"postgres://app:hunter2@db/x", b"hunter2"),
    "variable": (b"DB_PASSWORD=correct-horse", b"correct-horse"),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_known_form_is_found_and_no_more_than_it(form: str) -> None:
    around, secret = EXAMPLES[form]
    data = b"some text \0" + around + b"\0 and more text"
    assert re.search(FORMS[form].expression, data)
    secrets = parse_secrets(["secrets"])
    assert secrets is not None
    start = data.index(secret)
    ((low, high),) = [span for span in secrets.spans(data) if span[0] <= start < span[1]]
    assert low == start
    assert high >= start + len(secret)
    assert data[high:].endswith(b" and more text")


@pytest.mark.parametrize(
    "text",
    [b"PASSWORD=\0", b"-----BEGIN CERTIFICATE-----\nMIIB", b"http://host:80/x@y", b"eyJ is how it begins", b"AKIA"],
)
def test_what_is_no_secret_stays(text: bytes) -> None:
    secrets = parse_secrets(["secrets"])
    assert secrets is not None
    assert secrets.spans(text) == []


@pytest.mark.parametrize("size", [1, 100, PAGE, 3 * PAGE, 1 << 20])
def test_what_lies_across_borders_is_found(size: int) -> None:
    data = bytes(PAGE - 9) + PEM + bytes(5 * PAGE) + b"AKIAIOSFODNN7EXAMPLE" + bytes(100)
    data = data if size > 100 else data[PAGE - 200 : PAGE + 1200]
    secrets = parse_secrets(["secrets"])
    assert secrets is not None
    search = Search(secrets)
    for at in range(0, len(data), size):
        search.add(0x7000 + at, data[at : at + size])
    found = Secrets().spans(b"") + sorted(set(search.found))
    expected = [(0x7000 + low, 0x7000 + high) for low, high in secrets.spans(data)]
    from vmcore2core.process.secrets import merged

    assert merged(found) == expected


def test_pieces_that_do_not_follow_each_other_are_not_joined() -> None:
    search = Search(Secrets(literals=(b"secret",)))
    search.add(0x1000, b"x" * 10 + b"sec")
    search.add(0x3000, b"ret" + b"x" * 10)
    assert search.found == []
    search.add(0x3000 + 13, b"sec")
    search.add(0x3000 + 16, b"ret")
    assert search.found == [(0x300D, 0x3013)]
    assert max(len(around) for around, _ in EXAMPLES.values()) <= OVERLAP


def test_a_file_has_a_secret_a_line_and_what_is_no_file_is_an_expression(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"hunter2222\r\n\ncorrect horse\n")
    secrets = parse_secrets([f"secret:{path}", "secret:tok-[0-9]+"])
    assert secrets is not None
    wide = "hunter2222".encode("utf-16-le")
    assert secrets.hidden(b"a hunter2222, correct horse, tok-12 b") == b"a **********, ************, ****** b".replace(
        b"************,", b"*************,"
    ).replace(b", ******* b", b", ****** b")
    assert secrets.hidden(wide) == b"*" * len(wide)


@pytest.mark.parametrize(
    "word", ["secret:/no/such/file", "secret:./no", "secret:(", "secret:", "secret:x*", "secret:(a)(b)"]
)
def test_what_is_neither_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--redact secret:"):
        parse_secrets([word])


def test_values_of_variables_are_looked_for_by_their_names() -> None:
    environ = (
        b"DB_PASSWORD=correct horse\0HOME=/home/somebody\0API_KEY=12345\0GPG_KEY_FILE=/home/x/y\0my_token=tok12345\0"
    )
    secrets = Secrets(known=True).with_environment(environ)
    assert secrets.literals == (b"correct horse", b"tok12345")  # 12345 is too short
    assert Secrets().with_environment(environ).literals == ()


def test_notes_have_no_secrets_and_keep_their_form() -> None:
    secrets = Secrets(literals=(b"hunter2222",), expressions=(re.compile(rb"-p(\\w+)".replace(rb"\\\\", rb"\\")),))
    process = snapshot(vma(0x1000, 0x2000, path=b"/srv/hunter2222/x", pgoff=0))
    process = process._replace(notices=("a hunter2222 b",))
    plain, hidden = notes_of(process, {"dump": "hunter2222"}), notes_of(process, {"dump": "hunter2222"}, secrets)
    assert [(note.name, note.n_type) for note in plain] == [(note.name, note.n_type) for note in hidden]
    assert any(b"hunter2222" in note.desc for note in plain)
    assert not any(b"hunter2222" in note.desc for note in hidden)
    own = json.loads(hidden[-1].desc)
    assert (own["dump"], own["notices"], own["secrets_blanked"]) == ("**********", ["a ********** b"], True)


def test_a_file_with_a_secret_is_not_written(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sysroot", secrets=Secrets(literals=(b"hunter2222",)))
    import os

    with pytest.raises(OutputError, match="it has a secret"), tree.create(b"/etc/x") as fd:
        os.pwrite(fd, b"x" * ((1 << 20) - 5) + b"hunter2222", 0)
    with pytest.raises(OutputError, match="it has a secret"), tree.create(b"/etc/hunter2222"):
        pass
    with tree.create(b"/etc/y") as fd:
        os.pwrite(fd, b"good", 0)
    assert [path.name for path in (tmp_path / "sysroot" / "etc").iterdir()] == ["y"]


def test_a_value_of_the_environment_is_nowhere_in_what_is_written(tmp_path: Path) -> None:
    """The bundled processes' variables are HOME and TERM; here they have one that says that it is a key."""
    dump = bundled("debian-5.10-amd64", tmp_path)
    before, after = b"HOME=/\0TERM=linux\0", b"MY_KEY=hunter2222\0"
    assert len(before) == len(after)
    content = dump.read_bytes()
    assert before in content
    dump.write_bytes(content.replace(before, after))
    plain = convert(dump, "--comm", "lab-static", "-o", tmp_path / "plain")
    assert plain.returncode == 0
    assert any(b"hunter2222" in path.read_bytes() for path in (tmp_path / "plain").iterdir())
    result = convert(dump, "--all", "-o", tmp_path / "out", "--redact", "secrets", "--json")
    assert (result.returncode, "hunter2222" in result.stdout) == (0, False)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [path.name for path in files if b"hunter2222" in path.read_bytes()]
    (core,) = (tmp_path / "out").glob("core.lab-static.*[0-9]")
    own = json.loads(Core(core).notes[-1][2])
    assert own["blanked"]
    assert any("; it is a net with holes" in notice for notice in own["notices"])
    verified = convert("verify", core, "--against", dump)
    assert verified.returncode == 0, verified.stderr


def test_an_expression_is_looked_for_everywhere_and_stands_nowhere(tmp_path: Path) -> None:
    """Victims are started as their programs' path: each has it as its argument, and in its memory."""
    dump = bundled("debian-5.10-amd64", tmp_path)
    result = convert(dump, "--all", "-o", tmp_path / "out", "--redact", r"secret:victim_rel[a-z]+", "--json", "-v")
    assert result.returncode == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path.name for path in files if b"victim_relay" in path.read_bytes()]
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["options"]["redact"] == ["secret:..."]
    assert b"victim_rel" not in (tmp_path / "out" / "index.html").read_bytes()
    resumed = convert(dump, "--all", "-o", tmp_path / "out", "--redact", r"secret:victim_rel[a-z]+", "--resume")
    assert resumed.returncode == 2


def test_a_script_that_would_name_a_secret_is_not_written(tmp_path: Path) -> None:
    core = tmp_path / "core.hunter2222.1"
    with pytest.raises(OutputError, match="gets no start scripts: they would have a secret"):
        write_scripts(core, None, secrets=Secrets(literals=(b"hunter2222",)))
    assert not list(tmp_path.iterdir())
    assert write_scripts(core, None, secrets=Secrets(literals=(b"another",)))


def test_a_traceback_has_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hunter2222"
    options = CoreOptions(redaction=Redaction(secrets=Secrets(literals=(secret.encode(),))))
    error = IndexError(secret)
    error.__cause__ = OSError(secret)
    sentence = failure(1, "init", error, options)
    assert "IndexError: **********; --debug" in sentence
    assert sentence in caplog.text
    assert secret not in caplog.text
