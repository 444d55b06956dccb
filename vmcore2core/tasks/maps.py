"""The mappings of a process as ``vmcore-tasks maps`` shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vmcore2core.kernel import mm
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pages import UserPageState
from vmcore2core.printable import text
from vmcore2core.process.model import Vma
from vmcore2core.session import Session


@dataclass(frozen=True, slots=True)
class MapRow:
    """One line of ``maps``; ``pages`` counts the mapping's pages by state."""

    start: int
    end: int
    permissions: str
    offset: int | None
    device: int | None
    inode: int | None
    name: str
    pages: dict[str, int]

    def line(self, word: int) -> str:
        """Return the line as show_map_vma() in fs/proc/task_mmu.c writes it; unknown fields are zero.

        Args:
            word: size of a kernel pointer in bytes.
        """
        head = (
            f"{self.start:08x}-{self.end:08x} {self.permissions} {self.offset or 0:08x} "
            f"{self.device_name()} {self.inode or 0} "
        )
        return head.ljust(25 + 6 * word) + self.name if self.name else head

    def device_name(self) -> str:
        """Return the file's device in the form of maps: MAJOR:MINOR, hexadecimal."""
        device = self.device or 0
        return f"{device >> 20:02x}:{device & 0xFFFFF:02x}"


def maps(session: Session, leader: StructView, *, pages: bool = False) -> list[MapRow]:
    """Return the mappings of a process as /proc/PID/maps lists them.

    Args:
        session: the dump.
        leader: the process.
        pages: count each mapping's pages by state.
    """
    captured = session.processes.capture(leader, with_absent=False)
    regions = {region.start: region for region in captured.memory.regions}
    rows = []
    for vma in captured.snapshot.vmas:
        counts: Counter[UserPageState] = Counter()
        if pages and vma.start in regions:
            counts = captured.memory.survey(regions[vma.start]).counts
        rows.append(map_row(vma, captured.snapshot.page_size, counts))
    return rows


def map_row(vma: Vma, page_size: int, counts: Mapping[UserPageState, int] = MappingProxyType({})) -> MapRow:
    """Return the line of a mapping.

    Args:
        vma: the mapping.
        page_size: bytes of a page.
        counts: its pages by state.
    """
    return MapRow(
        start=vma.start,
        end=vma.end,
        permissions=mm.vma_permissions(vma.vm_flags),
        offset=None if vma.pgoff is None else vma.pgoff * page_size,
        device=vma.device,
        inode=vma.inode,
        name=_map_name(vma.proc_path) if vma.proc_path is not None else vma.name,
        pages={state.name.lower(): n for state, n in counts.items() if n},
    )


def _map_name(path: bytes) -> str:
    """Return a path as maps prints it: seq_path() escapes newlines."""
    return text(path.replace(b"\n", b"\\012")) or ""
