"""Keys in ``--vmcoreinfo`` override the dump's.

Tests commands/tasks/layout.py, tasks/layout.py.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.guests import FIXTURES
from vmcore2core.session import OpenOptions, Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


def test_a_supplied_key_goes_before_the_dumps(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("SIZE(nodemask_t)=4711\n")
    with Session([DUMP]) as session:
        assert session.boot.vmcoreinfo.size("nodemask_t") == 128
        assert session.boot.layout.find_size("nodemask_t") == 128
    with Session([DUMP], OpenOptions(vmcoreinfo=tmp_path / "keys")) as session:
        assert session.boot.layout.find_size("nodemask_t") == 4711
        assert "--vmcoreinfo" in session.boot.layout.provenance().values()
