"""README's ten common uses, as they are there, on the dump that it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


README = (ROOT / "README.md").read_text()


@pytest.mark.no_cover
def test_the_common_uses_run_in_a_shell(tmp_path: Path) -> None:
    uses = README.partition("## Ten common uses\n")[2].partition("```sh\n")[2].partition("```")[0]
    assert len(uses.splitlines()) == 10
    (copy,) = re.findall(r"`(cp fixtures/\S+ \.)`", README)
    script = f"set -euo pipefail\n{copy.replace('fixtures/', f'{ROOT}/fixtures/')}\n{uses}"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "LC_ALL": "C",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("**/*core*") if path.is_file()}
    assert {"app.core", "cores/core.init.1", "some/core.lab-static.86", "vendor.core"} <= written
    assert "core.lab-dynamic.92" in written, "from the pipe, in the working directory"
    below = README.partition("\ncores/\n")[2].partition("```")[0]
    shown = {f"cores/{line.split()[0]}" for line in below.splitlines() if line.strip() != "..."}
    assert len(shown) == 8
    assert all((tmp_path / name).exists() for name in shown)
