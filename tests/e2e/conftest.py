"""The bundled guests, each converted once by whoever asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, GUESTS, Guest, bundled, convert, unpacked_sysroot


@pytest.fixture(scope="session")
def sysroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guests' programs and libraries, unpacked."""
    return unpacked_sysroot(tmp_path_factory.mktemp("sysroot"))


@pytest.fixture(scope="session", params=GUESTS)
def guest(request: pytest.FixtureRequest, sysroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Each of the bundled dumps."""
    cores = tmp_path_factory.mktemp("cores")
    dump = bundled(request.param, tmp_path_factory.mktemp("dump"))
    return Guest(FIXTURES / request.param, dump, cores, sysroot, convert(dump, "--all", "-o", cores))
