"""Small vmlinux files by the C compiler: DWARF as it really is, symbols at kernel addresses, any build ID."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.needs import need

START = 0xFFFF_FFFF_8100_0000
BUILD_ID = "0123456789abcdef0123456789abcdef01234567"
RELEASE = "7.2.13-test"
BANNER = 'const char linux_banner[] = "Linux version {release} (cc) #1 SMP\\n";\n'


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a tool of the compiler; the test is skipped where it is not installed."""
    result = subprocess.run(
        [need(str(command[0])), *map(str, command[1:])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def build(
    folder: Path,
    units: Mapping[str, str],
    *flags: str,
    symbols: Mapping[str, int] | None = None,
    build_id: str | None = BUILD_ID,
    release: str = RELEASE,
    name: str = "vmlinux",
) -> Path:
    """Compile and link a vmlinux.

    Args:
        folder: where; units are compiled there, so that their names are relative, as the kernel's are.
        units: file name -> C text.
        flags: for the compiler: "-gdwarf-4", "-gz=zlib".
        symbols: name -> address at or above ``START``, within the next 256 MiB.
        build_id: hexadecimal, or None for a file without.
        release: in linux_banner.
    """
    units = {**units, "init/version.c": BANNER.format(release=release)}
    objects = []
    for unit, text in units.items():
        source = folder / unit
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text)
        objects.append(f"{unit}.o")
        run("gcc", "-O0", "-ffreestanding", "-fno-pic", *flags, "-c", unit, "-o", f"{unit}.o", cwd=folder)
    lines = ['.section .kernel,"aw",@nobits', "start: .skip 0x10000000"]
    for symbol, address in (symbols or {}).items():
        lines += [f".globl {symbol}", f".set {symbol}, start + {address - START:#x}"]
    (folder / "symbols.s").write_text("\n".join([*lines, '.section .note.GNU-stack,"",@progbits', ""]))
    run("gcc", "-c", "symbols.s", "-o", "symbols.o", cwd=folder)
    link = ["-nostdlib", "-static", "-no-pie", "-Wl,-e,0", f"-Wl,--section-start=.kernel={START:#x}"]
    link.append(f"-Wl,--build-id={'none' if build_id is None else '0x' + build_id}")
    run("gcc", *flags, *link, *objects, "symbols.o", "-o", name, cwd=folder)
    return folder / name


def bytes_of(vmlinux: Path, symbol: str) -> bytes:
    """Return what a variable is initialised to, as pyelftools finds it."""
    with vmlinux.open("rb") as f:
        elf = ELFFile(f)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = table.get_symbol_by_name(symbol)
        assert found is not None
        (entry,) = found
        section = elf.get_section(entry["st_shndx"])
        at = entry["st_value"] - section["sh_addr"]
        data: bytes = section.data()[at : at + entry["st_size"]]
    return data


def structure(tag: str, size: int, members: Sequence[tuple[str, int, int]]) -> str:
    """Return the C text of a struct with members (path, offset, size) where they are wanted, though they overlap.

    "thread.fsbase" is in a struct ``thread``, which begins where the whole does unless it is a member itself.
    """
    return f"struct {tag} {{ {_overlapping(size, members)} }} a_{tag};\n"


def _overlapping(size: int, members: Sequence[tuple[str, int, int]]) -> str:
    fields = [f"char whole[{size}];"]
    places = {path: (at, n) for path, at, n in members}
    heads = dict.fromkeys(path.partition(".")[0] for path in places if "." in path)
    for i, (path, at, n) in enumerate(members):
        if "." not in path and path not in heads:
            fields.append(f"struct {{ char pad_{i}[{at}]; char {path}[{n}]; }};")
    for i, head in enumerate(heads):
        start, n = places.get(head, (0, 0))
        below = [(path.partition(".")[2], at - start, n) for path, at, n in members if path.startswith(f"{head}.")]
        fields.append(f"struct {{ char before_{i}[{start}]; struct {{ {_overlapping(n, below)} }} {head}; }};")
    return f"union {{ {' '.join(fields)} }};"
