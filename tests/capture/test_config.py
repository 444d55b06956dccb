"""The contents that capture.toml may have, and the message for each mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmcore2core.capture.config import Config, Limits, Wanted, read_config
from vmcore2core.choose import Choice
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import UsageError
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.redact import Redaction

EVERYTHING = """\
directory = "/srv/crash"
compress = "none"
redact = ["no-env", "/dev/shm/*"]
filter = "0x33"

[limits]
seconds = 45
core = "2 GiB"
total = "3GiB"
keep_free = "500 MiB"
memory = "96 MiB"

[[process]]
comm = ["postgres", "redis*"]
uid = [109]

[[process]]
cgroup = ["/system.slice/*"]
state = ["D"]
stacks_only = true
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "capture.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, EVERYTHING)) == Config(
        directory=Path("/srv/crash"),
        wanted=(
            Wanted(Choice(comm=("postgres", "redis*"), uid=(109,))),
            Wanted(Choice(cgroup=("/system.slice/*",), state=("D",)), stacks_only=True),
        ),
        limits=Limits(45, 2 << 30, 3 << 30, 500 << 20, 0, 96 << 20),
        core=CoreOptions(DumpFilter(0x33), Redaction(environment=True, patterns=("/dev/shm/*",))),
        words={"filter": "0x33", "redact": ["/dev/shm/*", "no-env"], "compress": None},
    )


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    found = read_config(written(tmp_path, '[[process]]\ncomm = ["*"]\n'))
    assert found == Config(
        directory=Path("/var/crash"),
        wanted=(Wanted(Choice(comm=("*",))),),
        limits=Limits(60, None, None, 0, 10, 64 << 20),
        core=CoreOptions(compression="zstd"),
        words={"filter": None, "redact": [], "compress": "zstd"},
    )
    assert found.limits.free_at_least(1000) == 100


def test_without_a_file_nothing_is_wanted(tmp_path: Path) -> None:
    assert read_config(tmp_path / "capture.toml") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no [[process]] says which processes are wanted"),
        ("[[process]]\n", "[[process]] number 1 has no condition"),
        ('[[process]]\nexclude = ["sshd"]\n', "[[process]] number 1 has no condition"),
        ('[[process]]\ncomm = "postgres"\n', "comm in [[process]] number 1 is 'postgres', expected a list of texts"),
        ("[[process]]\ncomm = []\n", "comm in [[process]] number 1 is [], expected a list of texts"),
        ('[[process]]\nuid = ["root"]\n', "uid in [[process]] number 1 is ['root'], expected a list of numbers"),
        ("[[process]]\nuid = [true]\n", "expected a list of numbers"),
        ("[[process]]\nname = 1\n", "name in [[process]] number 1 is not known, expected one of cgroup, comm,"),
        ('[[process]]\ncomm = ["a"]\nstacks_only = 1\n', "stacks_only in [[process]] number 1 is 1, expected true"),
        ('process = ["a"]\n', "[[process]] number 1 is no table"),
        ("limit = 1\n", "limit is not known, expected one of compress, directory,"),
        (
            '[limits]\nseconds = 0\n[[process]]\ncomm = ["a"]\n',
            "seconds in [limits] is 0, expected a number from 1 to 3600",
        ),
        (
            '[limits]\ncore = "2 GB"\n[[process]]\ncomm = ["a"]\n',
            "core in [limits] is '2 GB', expected an amount such as",
        ),
        ('[limits]\nkeep_free = "120 %"\n[[process]]\ncomm = ["a"]\n', "keep_free in [limits] is '120 %'"),
        ('[limits]\nwidth = 1\n[[process]]\ncomm = ["a"]\n', "width in [limits] is not known"),
        ('directory = "cores"\n[[process]]\ncomm = ["a"]\n', 'directory is "cores", expected an absolute path'),
        ('compress = "xz"\n[[process]]\ncomm = ["a"]\n', 'compress is "xz", expected "zstd" or "none"'),
        ('redact = ["no-evn"]\n[[process]]\ncomm = ["a"]\n', "no-evn"),
        ('filter = "0x400"\n[[process]]\ncomm = ["a"]\n', "filter is '0x400', expected a text such as"),
        ('filter = 51\n[[process]]\ncomm = ["a"]\n', "filter is 51, expected a text"),
        ("[[process\n", "is not TOML"),
        (b"\xff", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("#" * (1 << 20) + "\n", "is larger than 0x100000 bytes"),
    ],
)
def test_each_fault_is_one_sentence_with_the_file(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value).partition("is not TOML")[0]


def test_a_directory_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "capture.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_config(tmp_path / "capture.toml")
