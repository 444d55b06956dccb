"""What QEMU's migration to a file leaves: migrate file:, virsh save, virsh managedsave.

The stream is read once on opening, by its headers alone: where the last copy of each page is. Runs of pages and of zero
pages are told by numpy.

References: see ``formats.qemu_migration``; QEMU's docs/devel/migration/main.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import ContainerDoc, DumpContainer, PageState
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.errors import FormatError
from vmcore2core.formats import qemu_migration as fmt

BLOCKS_MAX = 1 << 10
RECORDS_MIN = 4
"""A stream has a record of each page, of 9 bytes at least; what is left of one that is cut off, a quarter of that."""
RUN = 1 << 12
"""Records that are told to be a run at once."""
CONFIGURATION_MAX = 1 << 10

NOT_SEEN, ZERO = 0, 1
"""Places of pages that are not in the file; no page begins so near its beginning."""


class _Stream:
    """The stream, from section to section.

    Attributes:
        blocks: name -> place of each page in the file, uint64[n], or ``NOT_SEEN`` or ``ZERO``.
        machine: QEMU's name of the machine's type, b"" where it is not told.
        complete: the RAM section came to its end.
        cut_off: the file ends before that.
    """

    def __init__(self, file: DumpFile, start: int) -> None:
        self.file, self.at = file, start
        self.blocks: dict[bytes, U64Array] = {}
        self.machine = b""
        self.complete = self.cut_off = False
        self._ram_section: int | None = None
        self._block: U64Array | None = None
        magic, version = self._take(4), self._number(4)
        if (magic, version) != (fmt.QEMU_VM_FILE_MAGIC, fmt.QEMU_VM_FILE_VERSION):
            raise FormatError(f"migration stream {magic.hex()} version {version}", start, "QEVM version 3")
        try:
            while not self.complete:
                self._section()
        except EOFError:
            self.cut_off = True

    def _take(self, size: int) -> bytes:
        raw = self.file.read(self.at, size)
        if len(raw) < size:
            raise EOFError
        self.at += size
        return raw

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _name(self) -> bytes:
        return self._take(self._number(1))

    def _section(self) -> None:
        at, kind = self.at, self._number(1)
        if kind == fmt.QEMU_VM_CONFIGURATION:
            size = self._number(4)
            if size > CONFIGURATION_MAX:
                raise FormatError(f"a machine's name of {size:#x} bytes", at, f"at most {CONFIGURATION_MAX}")
            self.machine = self._take(size)
        elif kind == fmt.QEMU_VM_SECTION_START:
            number, name = self._number(4), self._name()
            self._number(4)  # instance
            self._number(4)  # version
            if name != fmt.RAM_SECTION:
                what = f"the state of {name.decode('latin-1')!r} before memory's"
                raise FormatError(what, at, "memory first: what else moves while it is saved cannot be skipped")
            self._ram_section = number
            self._pages()
        elif kind in (fmt.QEMU_VM_SECTION_PART, fmt.QEMU_VM_SECTION_END):
            number = self._number(4)
            if number != self._ram_section:
                raise FormatError(f"section {number} of a migration stream", at, f"{self._ram_section}, memory's")
            self._pages()
            self.complete = kind == fmt.QEMU_VM_SECTION_END
        elif kind == fmt.QEMU_VM_SECTION_FOOTER:
            self._number(4)
        else:
            raise FormatError(f"section type {kind:#x} of a migration stream", at, "memory's sections")

    def _pages(self) -> None:
        """Read a section's records up to the one that says that there are no more."""
        while True:
            at, word = self.at, self._number(8)
            flags, offset = word & fmt.RAM_FLAGS_MASK, word & ~fmt.RAM_FLAGS_MASK
            if flags == fmt.RAM_SAVE_FLAG_EOS:
                return
            if flags == fmt.RAM_SAVE_FLAG_MEM_SIZE:
                self._declare_blocks(offset)
            elif flags & ~fmt.RAM_SAVE_FLAG_CONTINUE == fmt.RAM_SAVE_FLAG_PAGE:
                self._select(flags, at)
                place = self._skip_page()
                self._place(offset, place, at)
                self._run(fmt.RAM_SAVE_FLAG_PAGE, fmt.PAGE_RECORD)
            elif flags & ~fmt.RAM_SAVE_FLAG_CONTINUE == fmt.RAM_SAVE_FLAG_ZERO:
                self._select(flags, at)
                if self._number(1):
                    raise FormatError("a page filled with a byte that is not 0", at, "a page of zeros")
                self._place(offset, ZERO, at)
                self._run(fmt.RAM_SAVE_FLAG_ZERO, fmt.ZERO_RECORD)
            elif flags != fmt.RAM_SAVE_FLAG_MULTIFD_FLUSH:
                raise FormatError(
                    f"RAM record with flags {flags:#x}", at, "pages as they are: no compression, no xbzrle"
                )

    def _skip_page(self) -> int:
        """Pass over a page, and return where it is."""
        if self.at + fmt.TARGET_PAGE_SIZE > self.file.size:
            raise EOFError
        self.at += fmt.TARGET_PAGE_SIZE
        return self.at - fmt.TARGET_PAGE_SIZE

    def _declare_blocks(self, total: int) -> None:
        room = self.file.size * RECORDS_MIN // fmt.ZERO_RECORD * fmt.TARGET_PAGE_SIZE
        if total > room:
            raise FormatError(
                f"{total:#x} bytes of memory in {self.file.size:#x} of file", self.at, f"at most {room:#x}"
            )
        while total:
            at, name, size = self.at, self._name(), self._number(8)
            if not 0 < size <= total or size % fmt.TARGET_PAGE_SIZE or len(self.blocks) == BLOCKS_MAX:
                raise FormatError(f"a RAM block of {size:#x} bytes", at, f"whole pages, at most {total:#x} bytes")
            self.blocks[name] = np.zeros(size // fmt.TARGET_PAGE_SIZE, np.uint64)
            total -= size

    def _select(self, flags: int, at: int) -> None:
        if not flags & fmt.RAM_SAVE_FLAG_CONTINUE:
            name = self._name()
            self._block = self.blocks.get(name)
            if self._block is None:
                raise FormatError(f"a page of RAM block {name.decode('latin-1')!r}", at, "one that was declared")
        if self._block is None:
            raise FormatError("a page of the same RAM block", at, "a block's name first")

    def _place(self, offset: int, place: int, at: int) -> None:
        assert self._block is not None  # noqa: S101 - for mypy
        index = offset // fmt.TARGET_PAGE_SIZE
        if index >= len(self._block):
            raise FormatError(f"a page at {offset:#x} of a RAM block", at, f"below {len(self._block) * 4096:#x}")
        self._block[index] = place

    def _run(self, flag: int, record: int) -> None:
        """Take the records of one kind that follow in the same block, as far as they go."""
        block = self._block
        assert block is not None  # noqa: S101 - for mypy
        while (count := min(RUN, (self.file.size - self.at) // record)) > 0:
            raw = np.frombuffer(self.file.buffer(self.at, count * record), np.uint8).reshape(count, record)
            words = np.ascontiguousarray(raw[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
            index = words // np.uint64(fmt.TARGET_PAGE_SIZE)
            good = (words & np.uint64(fmt.RAM_FLAGS_MASK)) == (flag | fmt.RAM_SAVE_FLAG_CONTINUE)
            good &= index < len(block)
            if flag == fmt.RAM_SAVE_FLAG_ZERO:
                good &= raw[:, 8] == 0
            taken = count if good.all() else int(np.argmin(good))
            places = np.uint64(self.at + 8) + np.arange(taken, dtype=np.uint64) * np.uint64(record)
            block[index[:taken].astype(np.intp)] = places if flag == fmt.RAM_SAVE_FLAG_PAGE else np.uint64(ZERO)
            self.at += taken * record
            if taken < count:
                return


class QemuMigrationContainer(DumpContainer):
    """A saved virtual machine."""

    DOC = ContainerDoc(
        name="QEMU migration",
        summary="QEMU's migrate to a file, virsh save and managedsave without compression",
        references=("QEMU migration/ram.c and migration/savevm.c", "libvirt src/qemu/qemu_saveimage.h"),
        limitations=(
            "no registers of running tasks: the devices' state behind memory is not read",
            "memory in one block, of the machines pc, q35, virt (arm64, riscv64), s390-ccw-virtio and pseries",
            "no xbzrle, multifd, mapped-ram or postcopy; pages of 4 KiB",
        ),
    )
    page_size = fmt.TARGET_PAGE_SIZE

    def __init__(self, files: Sequence[DumpFile]) -> None:
        self._file = only_file(files, "a saved virtual machine")
        self.paths = (self._file.path,)
        self.e_machine = None
        self.byte_order = None
        self.notes = ()
        self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
        try:
            stream = _Stream(self._file, _start(self._file))
        except EOFError:
            raise FormatError("the header of a migration stream is cut off", self._file.size, "8 bytes") from None
        if not stream.blocks:
            raise FormatError("a migration stream that ends before memory", stream.at, "its RAM blocks")
        name, self._pages = max(stream.blocks.items(), key=lambda block: len(block[1]))
        self._pieces = main_memory(name, len(self._pages) * self.page_size, stream.machine)
        missing = int((self._pages == NOT_SEEN).sum())
        if stream.cut_off or missing:
            self.warnings.append(
                f"the file is cut off: it ends at {self._file.size:#x}, before {missing} of {len(self._pages)} pages"
            )

    @classmethod
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins as a migration stream, or with libvirt's header of one."""
        head = f.read(len(fmt.LIBVIRT_MAGIC))
        return head.startswith(fmt.QEMU_VM_FILE_MAGIC) or head in (fmt.LIBVIRT_MAGIC, fmt.LIBVIRT_PARTIAL_MAGIC)

    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return where the machine's memory is."""
        return tuple(AddressRange(start, start + size) for start, _, size in self._pieces)

    def _places(self, pfns: U64Array) -> U64Array:
        """Return the place of each page frame in the file; ``NOT_SEEN`` where there is no memory, too."""
        places = np.zeros(len(pfns), np.uint64)
        for start, offset, size in self._pieces:
            first, count = start // self.page_size, size // self.page_size
            inside = (pfns >= np.uint64(first)) & (pfns < np.uint64(first + count))
            index = (pfns[inside] - np.uint64(first)).astype(np.intp) + offset // self.page_size
            places[inside] = self._pages[index]
        return places

    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame; memory that the file ends before is ``TRUNCATED``."""
        return self._states(pfns, self._places(pfns))

    def _states(self, pfns: U64Array, places: U64Array) -> U8Array:
        states = np.full(len(pfns), PageState.PRESENT, np.uint8)
        states[places == ZERO] = PageState.ZERO
        ram = np.zeros(len(pfns), np.bool_)
        for start, _, size in self._pieces:
            ram |= (pfns >= np.uint64(start // self.page_size)) & (pfns < np.uint64((start + size) // self.page_size))
        states[places == NOT_SEEN] = PageState.TRUNCATED
        states[~ram] = PageState.MISSING
        return states

    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Copy page frames from the file into ``out``."""
        places = self._places(pfns)
        states = self._states(pfns, places)
        present = states == PageState.PRESENT
        out[~present] = 0
        rows = np.flatnonzero(present).astype(np.uint64)
        bad = self._file.gather(places[present], rows, out)
        out[bad] = 0
        states[bad] = PageState.DAMAGED
        return states

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _start(file: DumpFile) -> int:
    """Return where the stream begins: behind libvirt's header and the machine's XML, where there is one.

    Raises:
        FormatError: libvirt has compressed it, or was not done.
    """
    raw = file.read(0, fmt.libvirt_save_header.itemsize)
    if not raw.startswith((fmt.LIBVIRT_MAGIC, fmt.LIBVIRT_PARTIAL_MAGIC)):
        return 0
    if len(raw) < fmt.libvirt_save_header.itemsize:
        raise FormatError("libvirt's header is cut off", file.size, f"{fmt.LIBVIRT_HEADER_SIZE} bytes")
    header = np.frombuffer(raw, fmt.libvirt_save_header)
    if int(header["version"][0]) >= 1 << 16:
        header = header.view(fmt.libvirt_save_header.newbyteorder())
    compressed, size = int(header["compressed"][0]), int(header["data_len"][0])
    if compressed:
        codec = fmt.LIBVIRT_COMPRESSED.get(compressed, f"codec {compressed}")
        raise FormatError(f"libvirt has compressed the machine's memory with {codec}", 28, "save_image_format raw")
    return fmt.LIBVIRT_HEADER_SIZE + size


def main_memory(name: bytes, size: int, machine: bytes) -> tuple[tuple[int, int, int], ...]:
    """Return (physical address, offset in the block, bytes) of a machine's main memory.

    Raises:
        FormatError: where this machine has it is not known.
    """
    if name not in fmt.RAM_BASES:
        known = ", ".join(base.decode() for base in fmt.RAM_BASES)
        raise FormatError(f"the largest RAM block is {name.decode('latin-1')!r}", 0, f"one of {known}")
    base = fmt.RAM_BASES[name]
    if name != fmt.PC_RAM:
        return ((base, 0, size),)
    most, low = (fmt.Q35_LOW_MAX, fmt.Q35_LOW) if b"q35" in machine else (fmt.I440FX_LOW_MAX, fmt.I440FX_LOW)
    if size < most:
        return ((0, 0, size),)
    if b"q35" not in machine and b"i440fx" not in machine:
        what = f"a machine of type {machine.decode('latin-1')!r} with {size:#x} bytes of memory"
        raise FormatError(what, 0, "pc-i440fx or pc-q35, whose hole below 4 GiB is known")
    return ((0, 0, low), (fmt.FOUR_GIB, low, size - low))


CONTAINER = QemuMigrationContainer
