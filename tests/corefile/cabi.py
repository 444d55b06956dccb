"""Offsets from the C compiler, the oracle for every structure."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from elftools.elf.elffile import ELFFile

from tests.needs import need

Field = tuple[int, int]
"""Offset and size in bytes."""


def compile_numbers(expressions: Sequence[str], *includes: str, bits: int = 64) -> list[int]:
    """Return constant C expressions as ``cc`` computes them for x86-64 or i386."""
    need("cc")
    with TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["#include <stddef.h>", *(f"#include <{include}>" for include in includes)]
        lines.append(f"unsigned long long numbers[] = {{{', '.join(expressions)}}};")
        (folder / "numbers.c").write_text("\n".join(lines))
        # glibc's headers are the same for both classes, but for a list of stubs that need not be installed.
        (folder / "gnu").mkdir()
        (folder / "gnu" / "stubs-32.h").touch()
        command = ["cc", f"-m{bits}", "-c", "-o", str(folder / "numbers.o"), str(folder / "numbers.c")]
        if bits == 32:
            multiarch = _output(["cc", "-print-multiarch"]).strip()
            command += ["-I", str(folder), "-isystem", f"/usr/include/{multiarch}"]
        _output(command)
        with (folder / "numbers.o").open("rb") as f:
            section = ELFFile(f).get_section_by_name(".data")
            assert section is not None
            data = section.data()
    return list(struct.unpack(f"<{len(expressions)}Q", data))


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@cache
def fields(tag: str, members: tuple[str, ...], include: str, bits: int) -> tuple[dict[str, Field], int]:
    """Return where the members of ``struct tag`` are, and the size of the whole."""
    expressions = [f"sizeof(struct {tag})"]
    for member in members:
        expressions += [f"offsetof(struct {tag}, {member})", f"sizeof(((struct {tag} *)0)->{member})"]
    size, *numbers = compile_numbers(expressions, include, bits=bits)
    return dict(zip(members, zip(numbers[::2], numbers[1::2], strict=True), strict=True)), size
