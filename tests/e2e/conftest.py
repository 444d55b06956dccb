"""The bundled guests, each converted once, when a test first needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, GUESTS, Guest, bundled, convert_all, unpacked_sysroot


@pytest.fixture(scope="session")
def sysroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guests' programs and libraries, unpacked."""
    return unpacked_sysroot(tmp_path_factory.mktemp("sysroot"))


@pytest.fixture(scope="session", params=GUESTS)
def guest(request: pytest.FixtureRequest, sysroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Each of the bundled dumps."""
    return _converted(request.param, sysroot, tmp_path_factory)


@pytest.fixture(scope="session")
def states(sysroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """The bundled dump in which lab-states ran."""
    (name,) = (name for name in GUESTS if (FIXTURES / name / "truth/lab-filter.tasks").exists())
    return _converted(name, sysroot, tmp_path_factory)


def _converted(name: str, sysroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    cores = tmp_path_factory.mktemp("cores")
    dump = bundled(name, tmp_path_factory.mktemp("dump"))
    return Guest(FIXTURES / name, dump, cores, sysroot, convert_all(dump, "-o", cores))
