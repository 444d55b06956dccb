"""A process's mappings: what the core records about each, and where its pages come from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vmcore2core.addresses import UserAddr
from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.kernel import fs, mm
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.vmas import Vmas
from vmcore2core.memory.region import Backing, Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import counted
from vmcore2core.process.dump_filter import DumpFilter, Extent, MappedFile, vma_dump_extent, vma_p_flags
from vmcore2core.process.filebacking import CachedLookups, FileBacking
from vmcore2core.process.filelinks import FileLinks
from vmcore2core.process.model import Vma
from vmcore2core.process.special import special_backing

ELFMAG = b"\x7fELF"
S_IXUGO = 0o111
LOFF_MAX = (1 << 63) - 1
S_DAX = 1 << 13  # include/linux/fs.h, since Linux 4.2


class _FileFacts(NamedTuple):
    """A mapped ``struct file`` and what it says; the fields have the same names in ``Vma`` and ``Region``."""

    path: bytes | None = None
    proc_path: bytes | None = None
    mapped: MappedFile | None = None
    device: int | None = None
    inode: int | None = None
    on_disk: bool = False
    file: StructView | None = None


_NO_FILE = _FileFacts()


class Mappings:
    """The mappings of one process.

    Args:
        kernel: the dumped kernel.
        owner: its ``struct mm_struct``.
        leader: its ``struct task_struct``, for the root directory.
        mounts: of the machine.
        cache: the page cache.
        dump_filter: which memory belongs in the core.
        links: checks of all files.

    Attributes:
        vmas: in address order; ``Vma.absent`` is not filled in.
        regions: of the same mappings.
        table: ``struct vm_area_struct`` of each.
        warnings: sentences about broken structures.
    """

    def __init__(
        self,
        kernel: Kernel,
        owner: StructView,
        leader: StructView,
        mounts: fs.Mounts,
        cache: CachedLookups,
        dump_filter: DumpFilter,
        links: FileLinks,
    ) -> None:
        self.kernel, self.mm = kernel, owner
        self.warnings: list[str] = []
        self.vmas: list[Vma] = []
        self.regions: list[Region] = []
        self._mounts, self._cache, self._filter, self._links = mounts, cache, dump_filter, links
        self._root = fs.task_root(leader)
        self._is_chroot = self._in_chroot()
        self._files: dict[int, _FileFacts] = {}
        self._extents: dict[tuple[object, ...], Extent] = {}
        self._if_elf: set[int] = set()
        self.table = self._table = Vmas(owner)
        word = kernel.arch.pointer_size
        self._pgoff, self._anon_vma, self._ops = (
            self._table.find_uint(name, word) for name in ("vm_pgoff", "anon_vma", "vm_ops")
        )
        self._linked, self._may_be_named = links.linked(self._table), self._table.may_be_named()
        self._read()

    def _read(self) -> None:
        rows: list[int] = []
        problems: list[CorruptStructure] = []
        try:
            for row in self._table.checked(problems):
                self._add(row)
                rows.append(row)
        except (CorruptStructure, MemoryFault) as error:
            self.warnings.append(f"mappings may be missing{self._being_changed()}: {error}")
        self.warnings += [f"mappings may be missing or wrong{self._being_changed()}: {problem}" for problem in problems]
        self.table = self._table.only(rows)

    def _being_changed(self) -> str:
        """Return why the mappings may be inconsistent for a moment, or ""."""
        try:
            writer = mm.mmap_lock_writer(self.mm)
        except MemoryFault:
            return ""
        return f", as the task at {writer:#x} was changing them (it holds mmap_lock)" if writer else ""

    def _add(self, row: int) -> None:
        table = self._table
        if not table.whole[row]:
            _check_readable(table.view(row))
        start, end = UserAddr(int(table.start[row])), UserAddr(int(table.end[row]))
        flags, address = int(table.flags[row]), int(table.file[row])
        told = self._checked_file(row, address, start) if address else _NO_FILE
        pgoff = None if self._pgoff is None else int(self._pgoff[row])
        if address and pgoff is not None and pgoff * mm.PAGE_SIZE_MIN + end - start > LOFF_MAX:
            said = f"{pgoff:#x} pages, beyond the end of any file"
            self.warnings.append(str(table.view(row).corrupt("vm_pgoff", said)))
        anon_vma = None if self._anon_vma is None else bool(self._anon_vma[row])
        extent = self._extent(flags, address, told.mapped, anon_vma, at_start=pgoff == 0)
        if extent is Extent.FIRST_PAGE_IF_ELF:
            self._if_elf.add(start)
        backing: Backing | None = None
        on_disk = False
        if address and pgoff is not None:
            backing = FileBacking(self._cache, told.file or self.kernel.view("file", address), self.warnings)
            # do_fault() maps the file's page where a private mapping has an empty entry: a page that was changed is
            # anonymous, and leaves a swap entry when it is evicted (mm/memory.c, mm/rmap.c: try_to_unmap_one()).
            on_disk = not flags & mm.VM_SHARED and told.on_disk
        elif not address and self._may_be_named[row]:
            backing = special_backing(table.view(row), self._cache)
            if backing is not None and not flags & (mm.VM_IO | mm.VM_PFNMAP):
                extent = Extent.WHOLE  # always_dump_vma() in fs/coredump.c
        # A special mapping ([vvar], [uprobes]) has operations but no file: its pages are not zero-filled, either.
        special = self._ops is not None and bool(self._ops[row])
        region = Region(
            start,
            end,
            zero_fill=not address and not special,
            pgoff=pgoff or 0,
            backing=backing,
            on_disk=on_disk,
            pristine=bool(address) and anon_vma is False and not flags & mm.VM_SHARED,
        )
        vma = Vma(
            start=start,
            end=end,
            p_flags=vma_p_flags(flags),
            vm_flags=flags,
            pgoff=pgoff if address else None,
            path=told.path,
            proc_path=told.proc_path,
            name=mm.vma_name(self.mm, table.view(row)) if not address and self._may_be_named[row] else "",
            device=told.device,
            inode=told.inode,
            dumped=extent is not Extent.NOTHING,
            first_page_only=extent in (Extent.FIRST_PAGE, Extent.FIRST_PAGE_IF_ELF),
        )
        self.vmas.append(vma)
        self.regions.append(region)

    def _extent(
        self, flags: int, address: int, mapped: MappedFile | None, anon_vma: bool | None, *, at_start: bool
    ) -> Extent:
        """Return how much of a mapping belongs in the core; equal mappings share one answer."""
        alike = flags, address, anon_vma, at_start
        if alike not in self._extents:
            self._extents[alike] = vma_dump_extent(
                flags, self._filter, file=mapped, anon_vma=anon_vma, at_start=at_start
            )
        return self._extents[alike]

    def _checked_file(self, row: int, address: int, start: int) -> _FileFacts:
        """Check the links of a mapping, and of its file if it is new, and return what the file says.

        Args:
            row: of the mapping.
            address: of its ``struct file``.
            start: of the mapping, for messages.
        """
        known = self._files.get(address)
        if known is not None and self._linked[row]:
            return known
        file = self.kernel.view("file", address)
        told = self._file_facts(file, start)
        found = self._links.problems(self._table.view(row), file, linked=bool(self._linked[row]))
        self.warnings += [sentence for sentence in found if sentence not in self.warnings]
        return told

    def _file_facts(self, file: StructView, start: int) -> _FileFacts:
        """Return what a mapped file says; it is read once for each file, unless its path cannot be read.

        Args:
            start: of the mapping, for messages.
        """
        if file.address not in self._files:
            path = self._path(file, start)
            told = _FileFacts(
                path,
                self._path(file, start, outside=True) if self._is_chroot else path,
                _mapped_file(file),
                *fs.device_and_inode(file),
                FileBacking(self._cache, file, self.warnings).on_disk(),
                file,
            )
            if told.path is None or told.proc_path is None:
                return told
            self._files[file.address] = told
        return self._files[file.address]

    def _in_chroot(self) -> bool:
        try:
            return fs.is_chroot(self.kernel, self._root, self._mounts)
        except (CorruptStructure, MemoryFault):
            return False

    def _path(self, file: StructView, start: int, *, outside: bool = False) -> bytes | None:
        """Return the path of a mapped file.

        Args:
            start: of the mapping, for messages.
            outside: return the path outside a chroot, not as the process sees it.
        """
        try:
            path = fs.file_user_path(file)
            return fs.d_path(self.kernel, path, self._mounts, None if outside else self._root)
        except (CorruptStructure, LayoutUnknown, MemoryFault) as error:
            sentence = f"the path of the file mapped at {start:#x} cannot be read: {error}"
            self.warnings += [sentence] if sentence not in self.warnings else []
            return None

    def view_at(self, start: int) -> StructView:
        """Return the ``struct vm_area_struct`` of the mapping that starts at an address."""
        return self.table.view(int(np.searchsorted(self.table.start, np.uint64(start))))

    def leave_out_beyond(self, end: int) -> None:
        """Leave out mappings at addresses that a core of this class cannot express, with a warning.

        Args:
            end: the first such address.
        """
        kept = [i for i, vma in enumerate(self.vmas) if vma.end <= end]
        if len(kept) == len(self.vmas):
            return
        lost = next(i for i, vma in enumerate(self.vmas) if vma.end > end)
        said = f"{self.vmas[lost].end:#x}, expected {end:#x} at most as the process's machine has"
        self.warnings.append(
            f"left out is {counted(len(self.vmas) - len(kept), 'mapping')}: "
            f"{self.table.view(lost).corrupt('vm_end', said)}"
        )
        self.vmas, self.regions = [self.vmas[i] for i in kept], [self.regions[i] for i in kept]
        self.table = self.table.only(kept)

    def look_for_elf_headers(self, memory: UserMemory) -> None:
        """Decide for which mappings the first page belongs in the core because it is an ELF header."""
        for i, vma in enumerate(self.vmas):
            if vma.start in self._if_elf:
                # A missing page may be an ELF header: count it as missing, as the kernel would have written it.
                self.vmas[i] = vma._replace(dumped=memory.read(vma.start, len(ELFMAG)) in (ELFMAG, None))

    def gate(self, elf_class: int) -> Vma | None:
        """Return the mapping that belongs to no mm (x86: vsyscall; ARM: vectors)."""
        arch = self.kernel.arch
        address = None if arch.gate is None else arch.gate.vma(self.kernel)
        if arch.gate is None or address is None or elf_class != 8 * arch.pointer_size:
            return None
        view = self.kernel.view("vm_area_struct", address)
        try:
            flags = view.ulong("vm_flags")
            start, end = UserAddr(mm.vma_start(view)), UserAddr(mm.vma_end(view))
        except MemoryFault:
            return None
        page_size = self.kernel.memory.kernel_map.spec.page_size
        if (start | end) % page_size or not max(arch.user_end, self.vmas[-1].end if self.vmas else 0) <= start < end:
            return None
        return Vma(start, end, vma_p_flags(flags), vm_flags=flags, name=arch.gate.name, dumped=arch.gate.readable)


def _mapped_file(file: StructView) -> MappedFile:
    """Return what the dump filter needs to know about a ``struct file``."""
    try:
        inode = file.follow("f_inode", "inode") if file.has("f_inode") else None
        if inode is None:
            return MappedFile()
        links, mode, flags = (
            inode.find_uint(name, size) for name, size in (("i_nlink", 4), ("i_mode", 2), ("i_flags", 4))
        )
    except MemoryFault:
        return MappedFile()
    return MappedFile(
        linked=None if links is None else bool(links),
        executable=None if mode is None else bool(mode & S_IXUGO),
        dax=None if flags is None else bool(flags & S_DAX),
    )


def _check_readable(view: StructView) -> None:
    """Check that the needed members of a ``struct vm_area_struct`` can be read.

    Raises:
        MemoryFault: they cannot.
    """
    for name in ("vm_flags", "vm_file", "vm_pgoff", "anon_vma", "vm_ops"):
        view.find_uint(name, view.kernel.arch.pointer_size)
