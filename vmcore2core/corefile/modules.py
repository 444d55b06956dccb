"""The programs and libraries that a process runs code of, as a minidump lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vmcore2core.elf.build_id import build_id
from vmcore2core.elf.headers import Read, part
from vmcore2core.process.linkmap import program_path
from vmcore2core.process.model import ProcessSnapshot, Vma
from vmcore2core.process.sysroot import DELETED

PF_X = 1
VDSO_NAME = b"linux-gate.so"
"""The vDSO's name in breakpad and on symbol servers."""


@dataclass(frozen=True, slots=True)
class Module:
    """One file, mapped.

    Attributes:
        path: as the process sees it.
        start: address of its first mapping.
        end: of its last one.
        build_id: its build ID, or None if it has none or it is not in memory.
    """

    path: bytes
    start: int
    end: int
    build_id: bytes | None = None


def modules_of(snapshot: ProcessSnapshot, read: Read) -> list[Module]:
    """Return the files that a process runs code of, the program first, then by address.

    Args:
        snapshot: the process.
        read: its memory by address.
    """
    program = program_path(snapshot)
    found = [_identified(module, snapshot, read) for module in _mapped(snapshot)]
    return sorted(found, key=lambda module: (module.path != (program or b"").removesuffix(DELETED), module.start))


def _mapped(snapshot: ProcessSnapshot) -> Iterator[Module]:
    """Yield each loading of a file: its successive mappings with ascending file offsets."""
    loading: list[Vma] = []
    for vma in (*snapshot.vmas, None):
        follows = (
            vma is not None
            and loading
            and (vma.path, vma.name) == (loading[0].path, loading[0].name)
            and (vma.pgoff or 0) >= max(loading[-1].pgoff or 0, 1)
        )
        if not follows:
            if any(one.p_flags & PF_X for one in loading):
                name = VDSO_NAME if loading[0].path is None else loading[0].path.removesuffix(DELETED)
                yield Module(name, loading[0].start, loading[-1].end)
            loading = []
        if vma is not None and (vma.path is not None or vma.name == "[vdso]"):
            loading.append(vma)


def _identified(module: Module, snapshot: ProcessSnapshot, read: Read) -> Module:
    """Return a module with its build ID, found by the ELF headers at its start."""
    own = part(read, module.start, module.end - module.start)
    return replace(module, build_id=build_id(own, snapshot.elf_class, snapshot.byte_order))
