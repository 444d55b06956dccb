"""The processes of a dump as the unwinder sees them: mappings, memory, and the images in it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vmcore2core.elf.build_id import build_id
from vmcore2core.elf.headers import ElfHeaders, parse_headers, part
from vmcore2core.errors import CorruptStructure
from vmcore2core.formats.elf import ELFMAG, PF_W, PF_X, PT_LOAD
from vmcore2core.interfaces import ByteOrder
from vmcore2core.memory.region import Backing
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import text
from vmcore2core.process.binaries import MappedImage, biases
from vmcore2core.process.model import ProcessSnapshot, Vma
from vmcore2core.unwind.cursor import Read
from vmcore2core.unwind.image import Image
from vmcore2core.unwind.image_files import ImageSource
from vmcore2core.unwind.originals import Files, Original
from vmcore2core.unwind.reading import EitherRead, Mapped, PagedRead, file_read

NEIGHBOURS = 64
"""Number of neighbouring mappings on each side to search for a file whose text was replaced by other memory."""

FileKey = tuple[bytes, int | None, int | None]


@dataclass(frozen=True)
class Place:
    """Where an address is.

    Attributes:
        vma: its mapping.
        file_offset: its offset in the mapped file, or None.
        image: the ELF image there, or None if there is no image or its headers are not known.
    """

    vma: Vma
    file_offset: int | None
    image: Image | None

    @property
    def name(self) -> bytes | None:
        """The file that the image was loaded from, else the mapping's name: a path, or "[vdso]" and the like."""
        original = self.image.source.original if self.image is not None else None
        if original is not None:
            return original.image.path
        return self.vma.path if self.vma.path is not None else self.vma.name.encode() or None


class UserSpace:
    """A ``Space`` of one captured process.

    Args:
        snapshot: the process.
        memory: its memory.
        given: where to search for the files of its images.
    """

    def __init__(self, snapshot: ProcessSnapshot, memory: UserMemory, given: Files | None = None) -> None:
        self.snapshot, self.memory, self._given = snapshot, memory, given or Files()
        self.order: ByteOrder = snapshot.byte_order
        self._read = PagedRead(memory.read, memory.spec.page_size)
        self._starts = [vma.start for vma in snapshot.vmas]
        self._backings = {region.start: region.backing for region in memory.regions}
        self._files: dict[FileKey, _File] = {}
        self._images: dict[tuple[FileKey, int], Image] = {}
        self._of_vma: dict[int, Image | None] = {}

    @property
    def read(self) -> Read:
        """Reads the process's memory."""
        return self._read

    def original(self, vma: Vma) -> Original | None:
        """Return the file behind a mapping of code, or None if it maps no file."""
        image = self.image(vma.start)
        if image is not None:
            return image.source.original
        file = self._file(vma)
        return None if file is None else file.original

    def instructions(self, address: int, size: int) -> bytes | None:
        """Return code from memory, else from the mapped file, or None if neither has it."""
        found = self._read(address, size)
        if found is None and (image := self.image(address)) is not None:
            found = image.read(address, size)
        return found

    def vma(self, address: int) -> Vma | None:
        """Return the mapping that holds an address."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self.snapshot.vmas[at].end:
            return None
        return self.snapshot.vmas[at]

    def named(self, address: int) -> str:
        """Return a name for an address: FILE:variable+offset, else its mapping and the offset in it."""
        image = self.image_of_data(address)
        variable = None if image is None else image.variable(address)
        vma = self.vma(address)
        if image is not None and variable is not None:
            home = next((one for one in self.snapshot.vmas if self.image(one.start) is image), None)
            file = text(home.path or b"?") if home is not None else "?"
            return f"{file}:{text(variable.name)}+{address - variable.value:#x}"
        if vma is None:
            return "not mapped"
        if vma.path is not None and vma.pgoff is not None:
            offset = vma.pgoff * self.snapshot.page_size + address - vma.start
            return f"{text(vma.path)}+{offset:#x}"
        return f"{vma.name or 'anonymous memory at ' + hex(vma.start)}+{address - vma.start:#x}"

    def executable(self, address: int) -> bool:
        """Tell whether an address lies in an executable mapping."""
        vma = self.vma(address)
        return vma is not None and bool(vma.p_flags & PF_X)

    def generated(self, address: int) -> bool:
        """Tell whether an address lies in code that the program generated (JIT)."""
        vma = self.vma(address)
        return vma is not None and bool(vma.p_flags & PF_X) and vma.path is None and self.image(address) is None

    def same_mapping(self, first: int, second: int) -> bool:
        """Tell whether two addresses lie in one mapping."""
        vma = self.vma(first)
        return vma is not None and vma is self.vma(second)

    def image(self, address: int) -> Image | None:
        """Return the ELF image that has the code at an address, or None."""
        vma = self.vma(address)
        if vma is None or not vma.p_flags & PF_X:
            return None
        if vma.start not in self._of_vma:
            found = self._image_of_file(vma) if vma.path is not None else self._image_in_memory(vma)
            self._of_vma[vma.start] = found or self._image_around(vma)
        return self._of_vma[vma.start]

    def image_of_data(self, address: int) -> Image | None:
        """Return the image whose code or data segments contain an address, or None."""
        for vma in self.snapshot.vmas:
            image = self.image(vma.start)
            if image is None:
                continue
            for segment in image.headers.segments:
                if segment.p_type == PT_LOAD and 0 <= address - image.bias - segment.p_vaddr < segment.p_memsz:
                    return image
        return None

    def place(self, address: int) -> Place | None:
        """Return where an address is, or None if nothing is mapped there."""
        vma = self.vma(address)
        if vma is None:
            return None
        offset = None
        if vma.path is not None and vma.pgoff is not None:
            offset = vma.pgoff * self.snapshot.page_size + address - vma.start
        return Place(vma, offset, self.image(address))

    def _image_of_file(self, vma: Vma) -> Image | None:
        file = self._file(vma)
        if file is None or vma.pgoff is None or file.headers is None:
            return None
        offset = vma.pgoff * self.snapshot.page_size
        segment = file.headers.holding(offset, self.snapshot.page_size)
        if segment is None:
            return None
        return self._kept(file, vma.start - offset + segment.p_offset - segment.p_vaddr)

    def _image_around(self, vma: Vma) -> Image | None:
        """Return the image whose code was here before other memory was mapped over it, or None.

        libhugetlbfs and some programs move their text to huge pages in this way. The file's other mappings stay where
        they were.
        """
        vmas, at = self.snapshot.vmas, bisect_right(self._starts, vma.start) - 1
        near = vmas[max(at - NEIGHBOURS, 0) : at][::-1] + vmas[at + 1 : at + 1 + NEIGHBOURS]
        for other in near:
            file = self._file(other) if other.path != vma.path else None
            if file is None or file.headers is None:
                continue
            for bias in biases(file.headers, other, self.snapshot.page_size):
                if any(
                    segment.p_type == PT_LOAD
                    and segment.p_flags & PF_X
                    and segment.p_vaddr + bias < vma.end
                    and vma.start < segment.p_vaddr + bias + segment.p_memsz
                    for segment in file.headers.segments
                ):
                    return self._kept(file, bias)
        return None

    def _image_in_memory(self, vma: Vma) -> Image | None:
        """Return the image in a mapping without a file: the vDSO."""
        page = self.snapshot.page_size
        headers = self._headers(PagedRead(part(self._read, vma.start, vma.end - vma.start), page))
        segment = headers.holding(0, page) if headers is not None else None
        if headers is None or segment is None:
            return None
        return Image(headers, vma.start + segment.p_offset - segment.p_vaddr, self._source(None, None))

    def _kept(self, file: _File, bias: int) -> Image | None:
        """Return a file's image at a bias; all mappings of that loading share it."""
        key = file.key, bias
        if key not in self._images and file.headers is not None:
            self._images[key] = Image(file.headers, bias, self._source(file.read, file.original))
        return self._images.get(key)

    def _source(self, file: PagedRead | None, original: Original | None) -> ImageSource:
        snapshot = self.snapshot
        return ImageSource(self._read, file, original, snapshot.elf_class, self.order, snapshot.page_size)

    def _headers(self, read: PagedRead) -> ElfHeaders | None:
        try:
            return parse_headers(read, self.snapshot.elf_class, self.order)
        except CorruptStructure:
            return None  # then it is no image that could help

    def _file(self, vma: Vma) -> _File | None:
        """Return the file behind a mapping, or None."""
        if vma.path is None or vma.pgoff is None:
            return None
        key = vma.path, vma.device, vma.inode
        if key not in self._files:
            vmas = [v for v in self.snapshot.vmas if (v.path, v.device, v.inode) == key and v.pgoff is not None]
            self._files[key] = self._opened(key, tuple(vmas))
        return self._files[key]

    def _opened(self, key: FileKey, vmas: tuple[Vma, ...]) -> _File:
        snapshot, backing = self.snapshot, self._backing(vmas)
        read = self._cached(vmas, backing)
        found = build_id(read, snapshot.elf_class, self.order)
        size: int | None = getattr(backing, "file_size", None)
        if found is not None and size and self._given.copies is not None:
            others = partial(self._given.copies.read, found, size, snapshot.elf_class, self.order)
            read = EitherRead(read, others, snapshot.page_size)
        image = MappedImage(key[0], found, size, vmas, snapshot.elf_class, self.order, snapshot.page_size)
        original = Original(image, self._given)
        headers = self._headers(read)
        if headers is None and read(0, len(ELFMAG)) in (None, ELFMAG) and any(vma.p_flags & PF_X for vma in vmas):
            headers = self._headers(original.read)
        return _File(key, read, headers, original)

    def _backing(self, vmas: Sequence[Vma]) -> Backing | None:
        return next((b for vma in vmas if (b := self._backings.get(vma.start)) is not None), None)

    def _cached(self, vmas: Sequence[Vma], backing: Backing | None) -> PagedRead:
        """Return a reader of the bytes of a mapped file that are in memory."""
        page = self.snapshot.page_size
        mapped = [
            Mapped(vma.start, vma.end, vma.pgoff * page)
            for vma in vmas
            if vma.pgoff is not None and not vma.p_flags & PF_W
        ]
        if backing is None:
            return PagedRead(lambda _offset, _size: None, page)
        return file_read(self.memory, backing, mapped, self._read)


@dataclass(frozen=True)
class _File:
    """A mapped file: its bytes in memory, its headers if known, and the file itself."""

    key: FileKey
    read: PagedRead
    headers: ElfHeaders | None
    original: Original
