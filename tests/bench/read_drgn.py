"""Reads every page of RAM of a dump with drgn, which reads kdump-compressed files by libkdumpfile; argument: the dump.

Run by an interpreter that has drgn. The ranges are those of make_dump.py's machine.
"""

from __future__ import annotations

import contextlib
import sys

import drgn

SIZE = 1 << 20
RAM = ((0, 0xA_0000), (0x10_0000, 0xC000_0000), (0x1_0000_0000, 0x1_8000_0000))

program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
program.set_core_dump(sys.argv[1])
for start, end in RAM:
    for address in range(start, end, SIZE):
        with contextlib.suppress(drgn.FaultError):
            program.read(address, min(SIZE, end - address), physical=True)
