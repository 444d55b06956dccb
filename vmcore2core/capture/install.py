"""The units and hooks by which kdump's own services run the capture; other packages' files stay unchanged.

Debian, Ubuntu: the capture kernel boots the machine's root file system with ``systemd.unit=kdump-tools-dump.service``;
it pulls in our unit, which runs before it. RHEL, Fedora (kdump-utils): the capture kernel boots an initramfs, whose
kdump.sh runs ``/etc/kdump/pre.d`` before it dumps; the root file system, which has Python, is at /sysroot.

References: kdump-tools 1.10.7, kdump-config and kdump-tools-dump.service; kdump-utils, dracut/99kdumpbase/kdump.sh:
do_kdump_pre(), dump_fs().
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from vmcore2core.capture.config import Config
from vmcore2core.errors import OutputError, UsageError

MADE_BY = "# Made by: vmcore2core capture --install"
GRACE_SECONDS = 10
"""Time from SIGTERM, or from the end of the capture's own time, to SIGKILL."""
CAPTURE_UNIT = "vmcore2core-capture.service"
JOURNAL_UNIT = "vmcore2core-journal.service"


@dataclass(frozen=True, slots=True)
class Installed:
    """One file, or one link, that ``--install`` makes.

    Attributes:
        path: its path.
        text: a file's text; None for a link.
        target: a link's target; None for a file.
        mode: the file's mode.
    """

    path: Path
    text: str | None = None
    target: str | None = None
    mode: int = 0o644

    def is_ours(self) -> bool:
        """Tell whether ``--install`` made the file or link at this path."""
        if self.target is not None:
            return self.path.is_symlink() and str(self.path.readlink()) == self.target
        try:
            return not self.path.is_symlink() and MADE_BY in self.path.read_text(errors="replace")
        except OSError:
            return False


def files(config: Config, config_path: Path, root: Path = Path("/")) -> list[Installed]:
    """Return the files and links that this machine needs.

    Args:
        config: the site's configuration, for the units' limits.
        config_path: its file.
        root: root of the machine's file system.

    Raises:
        UsageError: neither kdump-tools nor kdump-utils is installed.
    """
    units = root / "etc/systemd/system"
    found = [
        Installed(units / JOURNAL_UNIT, journal_unit(config)),
        Installed(units / "multi-user.target.wants" / JOURNAL_UNIT, target=f"../{JOURNAL_UNIT}"),
    ]
    debian = any(
        (root / folder / "kdump-tools-dump.service").exists()
        for folder in ("usr/lib/systemd/system", "lib/systemd/system")
    )
    if debian:
        found += [
            Installed(units / CAPTURE_UNIT, capture_unit(config, config_path)),
            Installed(units / "kdump-tools-dump.service.wants" / CAPTURE_UNIT, target=f"../{CAPTURE_UNIT}"),
        ]
    elif any((root / folder / "kdumpctl").exists() for folder in ("usr/bin", "usr/sbin")):
        found.append(Installed(root / "etc/kdump/pre.d/vmcore2core.sh", pre_script(config, config_path), mode=0o755))
    else:
        raise UsageError("neither kdump-tools nor kdump-utils is installed: nothing would run the capture")
    return found


def _python() -> str:
    return shlex.quote(sys.executable)


def capture_unit(config: Config, config_path: Path) -> str:
    """Return the unit that runs only in Debian's capture kernel."""
    limits = config.limits
    return f"""{MADE_BY}
[Unit]
Description=Cores of processes out of the crashed kernel's memory
Documentation=man:vmcore2core-capture(1)
ConditionPathExists=/proc/vmcore
ConditionPathExists={config_path}
Before=kdump-tools-dump.service

[Service]
Type=oneshot
ExecStart={_python()} -m vmcore2core.capture {shlex.quote(str(config_path))}
Environment=XDG_CACHE_HOME=/var/cache
# 3: cores are left out or hold stacks alone, as index.json says.
SuccessExitStatus=3
TimeoutStartSec={limits.seconds + GRACE_SECONDS}
TimeoutStopSec={GRACE_SECONDS}
MemoryMax={limits.memory}
MemorySwapMax=0
OOMScoreAdjust=1000
StandardOutput=journal+console
"""


def journal_unit(config: Config) -> str:
    """Return the unit that adds new cores to the journal after the reboot."""
    return f"""{MADE_BY}
[Unit]
Description=Journal entries for cores taken from a crashed kernel
Documentation=man:vmcore2core-journal(1)
ConditionPathExists=!/proc/vmcore
ConditionPathExistsGlob={config.directory}/*/cores/index.json
After=local-fs.target systemd-journald.service

[Service]
Type=oneshot
ExecStart={_python()} -m vmcore2core journal --new {shlex.quote(str(config.directory))}
"""


def pre_script(config: Config, config_path: Path) -> str:
    """Return the script that kdump-utils' initramfs runs before it dumps."""
    return f"""#!/bin/sh
{MADE_BY}
# kdump.sh runs this in the capture kernel's initramfs. The machine's root file system has Python: it is mounted at
# /sysroot where kdump dumps to it. Whatever happens here, the dump comes next.
root=/sysroot
[ -e "$root{config_path}" ] || exit 0
mount -o remount,rw "$root" || exit 0
for folder in proc sys dev; do
    mount --bind "/$folder" "$root/$folder"
done
timeout -k {GRACE_SECONDS} {config.limits.seconds + GRACE_SECONDS} chroot "$root" \\
    env XDG_CACHE_HOME=/var/cache {_python()} -m vmcore2core.capture {shlex.quote(str(config_path))}
for folder in dev sys proc; do
    umount "$root/$folder"
done
exit 0
"""


def advice(made: list[Installed]) -> list[str]:
    """Return the steps that the administrator still has to do."""
    if any(one.path.name == "vmcore2core.sh" for one in made):
        return [
            "echo 'extra_bins /usr/sbin/chroot /usr/bin/timeout' >> /etc/kdump.conf",
            "kdumpctl rebuild && kdumpctl restart",
        ]
    return ["systemctl daemon-reload"]


def write(one: Installed) -> None:
    """Make a file or link; do not replace one that another program made.

    Raises:
        OutputError: the path is taken, or the system refuses.
    """
    path = one.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            if not one.is_ours():
                raise OutputError(f"{path} is there already, and vmcore2core did not make it")
            path.unlink()
        if one.target is not None:
            path.symlink_to(one.target)
        else:
            assert one.text is not None  # noqa: S101 - for mypy
            path.write_text(one.text)
            path.chmod(one.mode)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def remove(one: Installed) -> bool:
    """Remove a file or link that ``--install`` made; return whether there was one.

    Raises:
        OutputError: the system refuses.
    """
    if not one.is_ours():
        return False
    try:
        one.path.unlink()
    except OSError as error:
        raise OutputError(f"{one.path} cannot be removed: {error.strerror}") from error
    return True
