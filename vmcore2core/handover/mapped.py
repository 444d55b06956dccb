"""Which files of a process belong beside its core, as plain data, found in the process itself.

These are the ELF files that it has mapped, by the paths that it sees, with its dynamic linker's other names for them,
and the os-release file that identifies its system.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from stat import S_ISREG

from vmcore2core.elf.build_id import build_id
from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.interfaces import ByteOrder
from vmcore2core.kernel import dcache, mm
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.dump_filter import EVERYTHING
from vmcore2core.process.filepages import FilePages
from vmcore2core.process.linkmap import link_map, program_path, vma_at
from vmcore2core.process.model import Vma
from vmcore2core.process.snapshot import Captured, Processes
from vmcore2core.process.sysroot import DELETED, mapped

OS_RELEASE = (b"/etc/os-release", b"/usr/lib/os-release")
ELFMAG = b"\x7fELF"
BROKEN = (CorruptStructure, MemoryFault, LayoutUnknown)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MappedFile:
    """One file.

    Attributes:
        mapping: kernel virtual address of its ``struct address_space``.
        build_id: the build ID in the process's memory, or None if it is not there.
    """

    mapping: int
    build_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class MappedFiles:
    """The files of one process.

    Attributes:
        elf_class, byte_order: ELF class and byte order of its programs.
        files: each file by its path, as the process sees it.
        paths: the same path by the mapping's name, which may end in " (deleted)".
        links: path of a file by each other name that the dynamic linker has for it.
        program: path of the process's program, or None if unknown.
        sentences: say what could not be looked up.
    """

    elf_class: int
    byte_order: ByteOrder
    files: dict[bytes, MappedFile]
    paths: dict[bytes, bytes]
    links: dict[bytes, bytes]
    program: bytes | None
    sentences: tuple[str, ...]


class Finder:
    """Finds the files of processes, and remembers how each file begins.

    Args:
        processes: the dump's processes.

    Raises:
        LayoutUnknown, MemoryFault: the page cache cannot be searched, or files' sizes are not known.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes, self.cache = processes, page_cache(processes)
        self._magic: dict[int, bytes | None] = {}

    def find(self, leader: StructView, captured: Captured | None = None) -> MappedFiles:
        """Return the files of a process.

        Args:
            leader: the thread group's leader.
            captured: the process, if the caller has captured it already.

        Raises:
            TaskError, MemoryFault, LayoutError, CorruptStructure: the process cannot be converted.
        """
        captured = captured or self.processes.capture(leader, dump_filter=EVERYTHING, with_absent=False)
        return _OfProcess(self, captured, leader).run()

    def magic(self, mapping: StructView) -> bytes | None:
        """Return the first bytes of a file, or None if they are not known.

        Raises:
            CorruptStructure, MemoryFault, LayoutUnknown: its inode or its page cache is broken.
        """
        if mapping.address not in self._magic:
            first = FilePages(self.cache, mapping, self.processes.swap.space, first_only=True)
            unknown = first.size and not first.known[0]
            self._magic[mapping.address] = None if unknown else first.read(0, len(ELFMAG)) or b""
        return self._magic[mapping.address]


def page_cache(processes: Processes) -> PageCache:
    """Return the page cache.

    Raises:
        LayoutUnknown, MemoryFault: it cannot be searched, or files' sizes are not known.
    """
    for struct, member in (("address_space", "host"), ("inode", "i_size")):
        processes.kernel.layout.member(struct, member)  # without its size, a file is never known to be complete
    return PageCache(processes.kernel)


class _OfProcess:
    """Finds the files of one process; the attributes are the steps' shared state."""

    def __init__(self, finder: Finder, captured: Captured, leader: StructView) -> None:
        self.finder, self.leader = finder, leader
        self.snapshot, self.memory = captured.snapshot, captured.memory
        self.files: dict[bytes, int] = {}
        self.path_of: dict[bytes, bytes] = {}
        self.sentences: list[str] = []

    def run(self) -> MappedFiles:
        self._choose()
        first = self._first_mappings()
        return MappedFiles(
            elf_class=self.snapshot.elf_class,
            byte_order=self.snapshot.byte_order,
            files={path: self._file(mapping, first.get(path)) for path, mapping in self.files.items()},
            paths=self.path_of,
            links=self._links(),
            program=self.path_of.get(program_path(self.snapshot) or b""),
            sentences=tuple(self.sentences),
        )

    def _choose(self) -> None:
        """Find the ELF files that the process has mapped, and its os-release file."""
        paths = {int(vma.start): vma.path for vma in self.snapshot.vmas}
        chosen: set[int] = set()
        for view in self._vmas():
            try:
                path = paths.get(mm.vma_start(view))
                file = view.follow("vm_file", "file")
                mapping = None if file is None else file.follow("f_mapping", "address_space")
                if mapping is None or path is None or mapping.address in chosen:
                    continue
                if self._is_image(mapping, executed=bool(view.ulong("vm_flags") & mm.VM_EXEC)):
                    chosen.add(mapping.address)
                    short = path.removesuffix(DELETED)
                    self.path_of[path] = path if short in self.files else short
                    self.files[self.path_of[path]] = int(mapping.address)
            except BROKEN as error:
                self.sentences.append(f"the file mapped at {mm.vma_start(view):#x} is not recovered: {error}")
        self._choose_os_release()

    def _vmas(self) -> Iterator[StructView]:
        try:
            yield from mm.for_each_vma(self.finder.processes.mm_of(self.leader))
        except BROKEN as error:
            self.sentences.append(f"files may be missing: {error}")

    def _is_image(self, mapping: StructView, *, executed: bool) -> bool:
        """Tell whether a file begins with the ELF magic; if its start is not known, whether it is executed."""
        magic = self.finder.magic(mapping)
        return executed if magic is None else magic == ELFMAG

    def _choose_os_release(self) -> None:
        """Find /etc/os-release, or the file that it links to, in the process's root directory."""
        try:
            fs_struct = self.leader.follow("fs", "fs_struct")
            root = None if fs_struct is None else fs_struct.embedded("root", "path").follow("dentry", "dentry")
            for path in OS_RELEASE:
                inode = None if root is None else dcache.lookup(root, path[1:])
                mapping = None if inode is None else inode.follow("i_mapping", "address_space")
                # A symbolic link's inode has its target's name there, not pages of a file.
                if mapping is not None and inode is not None and S_ISREG(inode.uint("i_mode", size=2)):
                    self.files[path] = int(mapping.address)
        except BROKEN as error:
            log.info("os-release of PID %d is not looked for: %s", self.snapshot.tgid, error)

    def _first_mappings(self) -> dict[bytes, Vma]:
        """Return where each file is mapped from its beginning, by path."""
        first: dict[bytes, Vma] = {}
        for vma in self.snapshot.vmas:
            path = self.path_of.get(vma.path or b"")
            if vma.pgoff == 0 and path is not None:
                first.setdefault(path, vma)
        return first

    def _file(self, mapping: int, first: Vma | None) -> MappedFile:
        if first is None:
            return MappedFile(mapping)
        snapshot, read = self.snapshot, mapped(first, self.snapshot.vmas, self.memory)
        return MappedFile(mapping, build_id(read, snapshot.elf_class, snapshot.byte_order))

    def _links(self) -> dict[bytes, bytes]:
        """Return the dynamic linker's names for the files that differ from the mappings' names."""
        links = {}
        for loaded in link_map(self.snapshot, self.memory.read).objects:
            vma = vma_at(self.snapshot, loaded.l_ld)
            path = None if vma is None else self.path_of.get(vma.path or b"")
            name = loaded.l_name
            # gdb finds a name with ".." by its last component, in the script's solib-search-path.
            if path is not None and name.startswith(b"/") and name not in self.files and b".." not in name.split(b"/"):
                links[name] = path
        return links
