#!/usr/bin/env python3
"""Makes the dumps that ``bench.py`` measures with.

The first has 5 GB, one process of 1.2 GB, 150 of a quarter MB; the second 1,000 tasks, and processes of up to 64,000
mappings and 5,000 threads.

usage: make_dump.py [--work FOLDER] [--package NAME] FOLDER

Writes FOLDER/vmcore.elf, vmcore.zlib and many.elf as QEMU does, and vmcore.lzo, vmcore.snappy and vmcore.zstd of that
part of the first which has most of the large process's pages, in kdump format, as Debian's makedumpfile knows none of
these codecs. NAME is a kernel package of Debian 12: the one whose
debug package is at hand, as peers need that. Needed: what fixtures/README.md names; makedumpfile, which takes QEMU's
file out of its flattened form; 10 GB of disk.
"""

from __future__ import annotations

import argparse
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np

from vmcore2core.kernel.sched import task_comm
from vmcore2core.session import Session

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "fixtures" / "lab"))

from debian import Archive
from guest import AMD64, MODULES, Initramfs, Kernel, kernel_of
from machine import Machine
from pack_kdump import compressor, pack

CODECS = ("lzo", "snappy", "zstd")
PART_SIZE = 256 << 20
OPTIONS = ["-cpu", "max,la57=off", "-device", "vmcoreinfo"]


def large_part(elf: Path) -> list[tuple[int, int]]:
    """Returns the range of physical memory that has most of the large process's pages."""
    with Session([elf]) as session:
        leader = next(task for task in session.processes.leaders() if task_comm(task) == b"large")
        memory = session.processes.capture(leader, with_absent=False).memory
        frames = [pages.paddrs() for region in memory.regions for pages in memory.known(region)]
        start = int(np.bincount(np.concatenate(frames) // np.uint64(PART_SIZE)).argmax()) * PART_SIZE
    return [(start, start + PART_SIZE)]


def guest(folder: Path, kernel: Kernel, source: str, size: str) -> Machine:
    """Returns a machine of so much memory (-m) whose init is a program of this folder."""
    init = folder / "init"
    flags = ["-O2", "-static", "-pthread", "-D_GNU_SOURCE", "-Wall", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", init, HERE / source], check=True)
    root = Initramfs()
    root.add("init", stat.S_IFREG | 0o755, init.read_bytes())
    for name, content in kernel.modules.items():
        root.add(name, stat.S_IFREG | 0o644, content)
    root.write(folder / "initramfs")
    return Machine(AMD64, folder, kernel.image, folder / "initramfs", ["-m", size, *OPTIONS])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Makes the dump for bench.py.")
    parser.add_argument("--work", type=Path, default=Path("/tmp/vmcore2core-lab"), help="for packages")
    parser.add_argument("--package", default="", help="the kernel's package; default: the newest")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for codec in CODECS:
        compressor(codec)  # a package that is missing ends it here, not when the guest has run
    options.folder.mkdir(parents=True, exist_ok=True)
    archive = Archive("bookworm", options.work, AMD64.architecture)
    kernel = kernel_of(archive, options.package or archive.dependency(AMD64.kernel, "linux-image-"), MODULES)
    elf, flattened = options.folder / "vmcore.elf", options.folder / "flattened"
    with guest(options.folder, kernel, "many.c", "1536") as machine:
        machine.wait_ready()
        machine.execute("stop")
        machine.dump(options.folder / "many.elf", "elf")
    with guest(options.folder, kernel, "init.c", "5120") as machine:
        machine.wait_ready()
        machine.execute("stop")
        machine.dump(elf, "elf")
        machine.dump(flattened, "kdump-zlib")
    with flattened.open("rb") as source:
        subprocess.run(["makedumpfile", "-R", options.folder / "vmcore.zlib"], stdin=source, check=True)
    flattened.unlink()
    part = large_part(elf)
    for codec in CODECS:
        pack(elf, options.folder / f"vmcore.{codec}", codec, part, [], kernel.release)


if __name__ == "__main__":
    main()
