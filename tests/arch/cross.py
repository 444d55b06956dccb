"""Constants from another machine's C compiler."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from elftools.elf.elffile import ELFFile

from tests.needs import need


def cross_numbers(compiler: str, folder: Path, expressions: list[str], *includes: str) -> list[int]:
    """Return constant C expressions as a cross compiler computes them."""
    found = need(compiler)
    lines = ["#include <stddef.h>", *(f"#include <{name}>" for name in includes)]
    lines.append(f"unsigned long numbers[] = {{{', '.join(expressions)}}};")
    (folder / "numbers.c").write_text("\n".join(lines))
    subprocess.run([found, "-c", "-o", "numbers.o", "numbers.c"], cwd=folder, check=True, timeout=60)
    with (folder / "numbers.o").open("rb") as f:
        elf = ELFFile(f)
        section = elf.get_section_by_name(".data")
        assert section is not None
        return list(struct.unpack(f"{'<' if elf.little_endian else '>'}{len(expressions)}Q", section.data()))
