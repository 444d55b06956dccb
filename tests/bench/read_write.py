"""Copies a file as plainly as Python can, by preadv(2) and pwrite(2) of 1 MiB; arguments: the file, and its copy."""

from __future__ import annotations

import os
import sys

SIZE = 1 << 20

source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o600)
buffer, at = bytearray(SIZE), 0
while count := os.preadv(source, [buffer], at):
    os.pwrite(target, memoryview(buffer)[:count], at)
    at += count
os.fsync(target)
