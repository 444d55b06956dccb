"""The processes of a dump as the unwinder sees them: mappings, memory, and the images in it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from vmcore2core.errors import CorruptStructure
from vmcore2core.formats.elf import PF_W, PF_X
from vmcore2core.interfaces import ByteOrder
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.elf import ElfHeaders, parse_headers
from vmcore2core.process.model import ProcessSnapshot, Vma
from vmcore2core.unwind.cursor import Read
from vmcore2core.unwind.image import Image, ImageSource
from vmcore2core.unwind.reading import Mapped, PagedRead, file_read, user_read

FileKey = tuple[bytes, int | None, int | None]


@dataclass(frozen=True)
class Place:
    """Where an address is.

    Attributes:
        vma: its mapping.
        file_offset: in the mapped file, or None.
        image: the ELF image there, or None where there is none, or its headers are not known.
    """

    vma: Vma
    file_offset: int | None
    image: Image | None


class UserSpace:
    """A ``Space`` of one captured process.

    Args:
        snapshot: the process.
        memory: its memory.
    """

    def __init__(self, snapshot: ProcessSnapshot, memory: UserMemory) -> None:
        self.snapshot, self.memory = snapshot, memory
        self.order: ByteOrder = snapshot.byte_order
        self._read = user_read(memory)
        self._starts = [vma.start for vma in snapshot.vmas]
        self._backings = {region.start: region.backing for region in memory.regions}
        self._files: dict[FileKey, tuple[PagedRead, ElfHeaders | None]] = {}
        self._images: dict[tuple[FileKey | int, int], Image] = {}
        self._of_vma: dict[int, Image | None] = {}

    @property
    def read(self) -> Read:
        """See ``Space.read``."""
        return self._read

    def vma(self, address: int) -> Vma | None:
        """Return the mapping that holds an address."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self.snapshot.vmas[at].end:
            return None
        return self.snapshot.vmas[at]

    def executable(self, address: int) -> bool:
        """See ``Space.executable``."""
        vma = self.vma(address)
        return vma is not None and bool(vma.p_flags & PF_X)

    def same_mapping(self, first: int, second: int) -> bool:
        """See ``Space.same_mapping``."""
        vma = self.vma(first)
        return vma is not None and vma is self.vma(second)

    def image(self, address: int) -> Image | None:
        """See ``Space.image``."""
        vma = self.vma(address)
        if vma is None or not vma.p_flags & PF_X:
            return None
        if vma.start not in self._of_vma:
            self._of_vma[vma.start] = self._image_of_file(vma) if vma.path is not None else self._image_in_memory(vma)
        return self._of_vma[vma.start]

    def place(self, address: int) -> Place | None:
        """Return where an address is, or None where nothing is mapped."""
        vma = self.vma(address)
        if vma is None:
            return None
        offset = None
        if vma.path is not None and vma.pgoff is not None:
            offset = vma.pgoff * self.snapshot.page_size + address - vma.start
        return Place(vma, offset, self.image(address))

    def _image_of_file(self, vma: Vma) -> Image | None:
        page = self.snapshot.page_size
        if vma.path is None or vma.pgoff is None:
            return None
        key = vma.path, vma.device, vma.inode
        if key not in self._files:
            read = self._file(key)
            self._files[key] = read, self._headers(read)
        read, headers = self._files[key]
        offset = vma.pgoff * page
        segment = headers.holding(offset, page) if headers is not None else None
        if headers is None or segment is None:
            return None
        bias = vma.start - offset + segment.p_offset - segment.p_vaddr
        return self._kept(key, bias, headers, read)

    def _image_in_memory(self, vma: Vma) -> Image | None:
        """Return the image that begins with a mapping of no file: the vDSO."""
        page = self.snapshot.page_size

        def read(offset: int, size: int) -> bytes | None:
            return self._read(vma.start + offset, size) if offset + size <= vma.end - vma.start else None

        headers = self._headers(PagedRead(read, page))
        segment = headers.holding(0, page) if headers is not None else None
        if headers is None or segment is None:
            return None
        return self._kept(vma.start, vma.start + segment.p_offset - segment.p_vaddr, headers, None)

    def _kept(self, key: FileKey | int, bias: int, headers: ElfHeaders, file: PagedRead | None) -> Image:
        """Return an image; the mappings of one loaded file share it."""
        if (key, bias) not in self._images:
            snapshot = self.snapshot
            source = ImageSource(self._read, file, snapshot.elf_class, self.order, snapshot.page_size)
            self._images[key, bias] = Image(headers, bias, source)
        return self._images[key, bias]

    def _headers(self, read: PagedRead) -> ElfHeaders | None:
        try:
            return parse_headers(read, self.snapshot.elf_class, self.order)
        except CorruptStructure:
            return None  # then it is no image that could help

    def _file(self, key: FileKey) -> PagedRead:
        """Return how to read a mapped file."""
        page = self.snapshot.page_size
        vmas = [vma for vma in self.snapshot.vmas if (vma.path, vma.device, vma.inode) == key and vma.pgoff is not None]
        mapped = [
            Mapped(vma.start, vma.end, vma.pgoff * page)
            for vma in vmas
            if vma.pgoff is not None and not vma.p_flags & PF_W
        ]
        backing = next((b for vma in vmas if (b := self._backings.get(vma.start)) is not None), None)
        if backing is None:
            return PagedRead(lambda _offset, _size: None, page)
        return file_read(self.memory, backing, mapped, self._read)
