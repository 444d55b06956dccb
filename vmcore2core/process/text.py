"""Program text that belongs in a core though coredump_filter excludes it: text of files that are not available whole.

Debuggers read text from the files. If only a part of a file's text is in memory, and the user did not give the file, we
write the pages that the process has mapped in, so that debuggers can disassemble what its threads run. The page cache
may have more of the text, but debuggers need no more for frames: symbols and call frame information are in the files
beside the core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcore2core.addresses import UserAddr
from vmcore2core.interfaces import ByteOrder
from vmcore2core.kernel.mm import VM_DONTDUMP, VM_EXEC, VM_IO, VM_PFNMAP, VM_SHARED
from vmcore2core.memory.pages import LAST_KNOWN, UserPageState
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import StateRun, UserMemory
from vmcore2core.printable import text
from vmcore2core.process.model import Vma
from vmcore2core.process.sysroot import Sysroot

NAMES_SHOWN = 8


def with_torn_text(
    vmas: Sequence[Vma], memory: UserMemory, sysroots: Sequence[Sysroot], elf_class: int, order: ByteOrder
) -> tuple[list[Vma], str | None]:
    """Return the mappings, with those of incomplete text marked to be written, and a sentence that names their files.

    ``text_left_out`` tells which of their pages are not written.

    Args:
        vmas: of a process, with what its filter asks for.
        memory: of the process.
        sysroots: of the machine's files.
        elf_class, order: of the process.
    """
    regions = {region.start: region for region in memory.regions}
    result, names = list(vmas), dict[bytes, None]()
    for i, vma in enumerate(vmas):
        region = regions.get(vma.start)
        if region is None or vma.path is None or not _is_text(vma, region) or not _is_torn(vma, region, memory):
            continue
        if not any(sysroot.has(vma.path, vmas, memory, elf_class, order) for sysroot in sysroots):
            result[i] = vma._replace(dumped=True, first_page_only=False, beyond_filter=True)
            names[vma.path] = None
    if not names:
        return result, None
    shown = ", ".join(map(text, list(names)[:NAMES_SHOWN])) + (" ..." if len(names) > NAMES_SHOWN else "")
    whole = "of files of which neither memory nor a sysroot has all of it"
    return result, f"text that is mapped in is written, too, {whole}: {shown}"


def text_left_out(vma: Vma, region: Region, memory: UserMemory) -> Iterator[StateRun]:
    """Yield the pages of text beyond the filter that are not written: those that the process has not mapped in.

    A file's first page is written even if only the page cache has it: its ELF header identifies the file.
    """
    header = vma.start + memory.spec.page_size if vma.pgoff == 0 else vma.start
    for run in memory.survey(mapped_in(region)).unknown:
        if run.start < header:
            yield from memory.survey(region._replace(end=UserAddr(header))).unknown
        if run.end > header:
            yield run._replace(start=UserAddr(max(run.start, header)))


def _is_text(vma: Vma, region: Region) -> bool:
    """Tell whether a mapping is text of a file that the filter excludes."""
    left_out = not vma.dumped or vma.first_page_only
    never = vma.vm_flags & (VM_DONTDUMP | VM_IO | VM_PFNMAP | VM_SHARED)
    return left_out and region.backing is not None and bool(vma.vm_flags & VM_EXEC) and not never


def _is_torn(vma: Vma, region: Region, memory: UserMemory) -> bool:
    """Tell whether some of its pages are mapped in, and some are known nowhere."""
    counts = memory.survey(region).counts
    known = sum(n for state, n in counts.items() if state <= LAST_KNOWN)
    first = not vma.first_page_only or memory.read(vma.start, 1) is not None
    torn = first and 0 < known < (vma.end - vma.start) // memory.spec.page_size
    return torn and memory.survey(mapped_in(region)).counts[UserPageState.PRESENT] > 0


def mapped_in(region: Region) -> Region:
    """Return a region with only the pages that its page tables map."""
    return region._replace(backing=None, original=None)
