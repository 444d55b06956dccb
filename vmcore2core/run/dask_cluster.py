"""An existing Dask cluster, named by ``--executor dask:tcp://host:port``.

References: distributed's documentation, "API": Client, Client.get_executor(), Client.nthreads(); "Resilience":
KilledWorker, distributed.scheduler.allowed-failures (2026.8).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmcore2core.errors import UsageError, WorkersError
from vmcore2core.run.pool import Cluster

SCHEME = "dask:"
CONNECT_S = 10
PACKAGES = "pip install distributed"


def scheduler_address(text: str) -> str:
    """Return the cluster that ``--executor`` names.

    Raises:
        UsageError: the name is unknown.
    """
    address = text.removeprefix(SCHEME)
    if address == text or "://" not in address:
        raise UsageError(f"--executor {text}: expected {SCHEME}tcp://HOST:PORT, the address of a Dask scheduler")
    return address


@contextmanager
def dask_cluster(address: str, release: Callable[[], None]) -> Iterator[Cluster]:
    """Connect to a scheduler.

    Args:
        address: Dask's address of it: tcp://host:port.
        release: each worker calls this at the end.

    Raises:
        UsageError: Dask is not installed.
        WorkersError: no scheduler answers there.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UsageError(f"--executor dask: needs a package that is not installed ({error}): {PACKAGES}") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the jobs' own errors say what is lost
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except Exception as error:  # each protocol raises its own exceptions
        raise WorkersError(f"no Dask scheduler answers at {address}: {' '.join(str(error).split())}") from error
    try:
        yield Cluster(client.get_executor(pure=False), lambda: sum(client.nthreads().values()), (KilledWorker,))
        with contextlib.suppress(Exception):
            client.run(release, wait=False)
    finally:
        client.close(timeout=CONNECT_S)
