"""The corpus and its dumps, unpacked once a run, and the tests that are not measured."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import coverage
import pytest
import zstandard
from hypothesis import HealthCheck, settings

from tests.layout.asking import refuse_what_is_not_listed
from tests.needs import promised

# Commands that tests run keep layouts there, and nothing in the home of whoever runs the tests.
_cache = tempfile.TemporaryDirectory(prefix="vmcore2core-cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name

# How long an example takes is the machine's business.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

refuse_what_is_not_listed()

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


def unpack(source: Path, target: Path) -> Path:
    """Unpack a .zst file with holes where it has zeros, so that a guest's memory takes little room."""
    with source.open("rb") as packed, target.open("wb") as plain:
        for chunk in zstandard.ZstdDecompressor(max_window_size=1 << 27).read_to_iter(packed, write_size=1 << 20):
            if chunk.count(0) == len(chunk):
                plain.seek(len(chunk), 1)
            else:
                plain.write(chunk)
        plain.truncate()
    return target


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real dumps."""
    if not CORPUS.is_dir():
        pytest.skip("../shared/corpus is not there")
    return CORPUS


@pytest.fixture(scope="session")
def debian_72(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ELF dump of debian-7.2-amd64, unpacked."""
    return unpack(corpus / "debian-7.2-amd64" / "vmcore.elf.zst", tmp_path_factory.mktemp("dumps") / "debian-7.2.elf")


def pytest_report_header() -> str | None:
    """Say what is not run at all."""
    return None if CORPUS.is_dir() else "no ../shared/corpus: tests marked corpus are deselected"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fuzzing comes first: a minute each at the end would be one worker's, while the others have nothing to do.

    The corpus is something that not everybody has, so its tests are not skipped but deselected without it.
    """
    if not CORPUS.is_dir():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("corpus")])
        items[:] = [item for item in items if not item.get_closest_marker("corpus")]
    items.sort(key=lambda item: "tests/fuzz/" not in item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that repeats what others reach, times, or interrupts is not measured, nor are processes that it starts.

    Its fixtures are: what they convert once a run is most of what is reached at all. Dumps of the corpus, which not
    everybody has, add nothing, so that coverage is the same everywhere.
    """
    measured = coverage.Coverage.current()
    if measured is None or not (item.get_closest_marker("no_cover") or item.get_closest_marker("corpus")):
        return (yield)
    measured.stop()
    environment = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    try:
        return (yield)
    finally:
        if environment is not None:
            os.environ["COVERAGE_PROCESS_CONFIG"] = environment
        measured.start()


def _reasons(config: pytest.Config) -> Counter[str]:
    """Return why tests were skipped, each with how many."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    return Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI no test may be skipped for want of what tests/run.sh installs."""
    if os.environ.get("CI") == "true" and any(promised(reason) for reason in _reasons(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Count what this machine lacks."""
    for reason, count in _reasons(config).most_common():
        broken = " (a failure in CI)" if promised(reason) else ""
        terminalreporter.write_line(f"{count} skipped: {reason}{broken}")
