#!/usr/bin/env python3
"""Makes the dump that ``bench.py`` measures with: 5 GB, one process of 1.2 GB, 150 of a quarter MB.

usage: make_dump.py [--work FOLDER] [--package NAME] FOLDER

Writes FOLDER/vmcore.elf and vmcore.zlib as QEMU does, and vmcore.lzo, vmcore.snappy and vmcore.zstd of a part of it, in
kdump format, as Debian's makedumpfile knows none of these codecs. NAME is a kernel package of Debian 12: the one whose
debug package is at hand, as peers need that. Needed: what fixtures/README.md names; makedumpfile, which takes QEMU's
file out of its flattened form; 10 GB of disk.
"""

from __future__ import annotations

import argparse
import stat
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "fixtures" / "lab"))

from debian import Archive
from guest import AMD64, MODULES, Initramfs, kernel_of
from machine import Machine
from pack_kdump import compressor, pack

CODECS = ("lzo", "snappy", "zstd")
PART = [(0x100_0000, 0x1000_0000)]
OPTIONS = ["-m", "5120", "-cpu", "max,la57=off", "-device", "vmcoreinfo"]


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
    elf, flattened, init = (options.folder / name for name in ("vmcore.elf", "flattened", "init"))
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Werror", "-o", init, HERE / "init.c"], check=True)
    root = Initramfs()
    root.add("init", stat.S_IFREG | 0o755, init.read_bytes())
    for name, content in kernel.modules.items():
        root.add(name, stat.S_IFREG | 0o644, content)
    root.write(options.folder / "initramfs")
    with Machine(AMD64, options.folder, kernel.image, options.folder / "initramfs", OPTIONS) as machine:
        machine.wait_ready()
        machine.execute("stop")
        machine.dump(elf, "elf")
        machine.dump(flattened, "kdump-zlib")
    with flattened.open("rb") as source:
        subprocess.run(["makedumpfile", "-R", options.folder / "vmcore.zlib"], stdin=source, check=True)
    flattened.unlink()
    for codec in CODECS:
        pack(elf, options.folder / f"vmcore.{codec}", codec, PART, [], kernel.release)


if __name__ == "__main__":
    main()
