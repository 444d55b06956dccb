"""Where debug packages put a kernel's vmlinux. Not in ``vmlinux``, because importing its readers takes a while.

References: Debian's linux-image-*-dbg, Fedora's kernel-debuginfo and gdb's "Separate Debug Files".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vmcore2core.layout.vmcoreinfo import VmcoreInfo

_RELEASE = re.compile(r"[0-9][A-Za-z0-9._+~-]{0,63}")
_BUILD_ID = re.compile(r"(?:[0-9a-f]{2}){4,64}")


def usual_places(info: VmcoreInfo, root: Path = Path("/")) -> Iterator[Path]:
    """Yield where a vmlinux of this kernel may be, the likeliest place first; nothing without a build ID to check."""
    build_id, release = info.build_id or "", info.osrelease or ""
    if _BUILD_ID.fullmatch(build_id) is None:
        return
    if _RELEASE.fullmatch(release):  # the release comes from the dump, so it must not lead elsewhere
        yield root / "usr/lib/debug/boot" / f"vmlinux-{release}"
        yield root / "usr/lib/debug/lib/modules" / release / "vmlinux"
    yield root / "usr/lib/debug/.build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    if _RELEASE.fullmatch(release):
        yield root / "lib/modules" / release / "build/vmlinux"
        yield root / "boot" / f"vmlinux-{release}"
