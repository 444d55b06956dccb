"""QEMU's migration stream up to the end of memory: where each page is.

Sections have no length, so every section before the end of memory is read: memory's, and those that are saved in turns
with it (s390's storage attributes, pseries' hash page table). Only headers are read; numpy finds runs of pages and of
zero pages.

References: see ``formats.qemu_migration``; QEMU's docs/devel/migration/main.rst, mapped-ram.rst.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers.bitmap import Bitmap
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.ram_blocks import ZERO, MappedBlock, RamBlock, SentBlock
from vmcore2core.errors import FormatError
from vmcore2core.formats import qemu_migration as fmt
from vmcore2core.interfaces import ByteOrder

BLOCKS_MAX = 1 << 10
RECORDS_MIN = 4
"""A stream has a record of at least 9 bytes for each page; a truncated stream may have a quarter of them."""
RUN = 1 << 12
"""How many records are tested at once for being a run."""
CONFIGURATION_MAX = 1 << 10
CAPABILITIES_MAX = 1 << 8
BITS_PER_LONG = 64
OFFSET_MAX = 1 << 62


class Reader:
    """Reads big-endian numbers and names in sequence.

    Attributes:
        at: offset of the next byte.
    """

    def __init__(self, file: DumpFile, at: int) -> None:
        self.file, self.at = file, at

    def take(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            EOFError: the file ends too early.
        """
        raw = self.file.read(self.at, size)
        if len(raw) < size:
            raise EOFError
        self.at += size
        return raw

    def skip(self, size: int) -> None:
        """Skip bytes; errors as of ``take``."""
        if self.at + size > self.file.size:
            raise EOFError
        self.at += size

    def number(self, size: int) -> int:
        """Return the next number, which has ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def name(self) -> bytes:
        """Return the next name, of at most 255 bytes."""
        return self.take(self.number(1))


class MigrationStream(Reader):
    """The stream, from section to section.

    Args:
        file: of the stream.
        start: where in it the stream begins.
        host_order: of the host's bitmaps.
        early_size: given name and instance, returns the size of a device's state that comes before memory.

    Attributes:
        blocks: by name.
        machine: QEMU's name of the machine's type; b"" if the stream does not tell.
        complete: the section of memory is complete; it ends at ``at``.
        cut_off: the file ends before that.
    """

    def __init__(
        self, file: DumpFile, start: int, host_order: ByteOrder, early_size: Callable[[bytes, int], int | None]
    ) -> None:
        super().__init__(file, start)
        self.blocks: dict[bytes, RamBlock] = {}
        self.machine = b""
        self.complete = self.cut_off = False
        self._host_order, self._early_size = host_order, early_size
        self._capabilities: set[bytes] = set()
        self._page_sizes = 0
        self._sections: dict[int, bytes] = {}
        self._block: U64Array | None = None
        magic, version = self.take(4), self.number(4)
        if (magic, version) != (fmt.QEMU_VM_FILE_MAGIC, fmt.QEMU_VM_FILE_VERSION):
            raise FormatError(f"migration stream {magic.hex()} version {version}", start, "QEVM version 3")
        try:
            while not self.complete:
                self._section()
        except EOFError:
            self.cut_off = True

    def _section(self) -> None:
        at, kind = self.at, self.number(1)
        if kind == fmt.QEMU_VM_CONFIGURATION:
            self._configuration(at)
        elif kind == fmt.QEMU_VM_COMMAND:
            self._command()
        elif kind in (fmt.QEMU_VM_SECTION_START, fmt.QEMU_VM_SECTION_FULL):
            number, name = self.number(4), self.name()
            instance = self.number(4)
            self.number(4)  # version
            if kind == fmt.QEMU_VM_SECTION_FULL:
                self._early(name, instance, at)
            else:
                self._sections[number] = name
                self._live(name, at)
        elif kind in (fmt.QEMU_VM_SECTION_PART, fmt.QEMU_VM_SECTION_END):
            number = self.number(4)
            if number not in self._sections:
                known = ", ".join(map(str, self._sections)) or "none"
                raise FormatError(f"section {number} of a migration stream", at, f"one that has begun: {known}")
            name = self._sections[number]
            self._live(name, at)
            self.complete = kind == fmt.QEMU_VM_SECTION_END and name == fmt.RAM_SECTION
        elif kind == fmt.QEMU_VM_SECTION_FOOTER:
            self.number(4)
        else:
            raise FormatError(f"section type {kind:#x} of a migration stream", at, "memory's sections")

    def _configuration(self, at: int) -> None:
        size = self.number(4)
        if size > CONFIGURATION_MAX:
            raise FormatError(f"a machine's name of {size:#x} bytes", at, f"at most {CONFIGURATION_MAX}")
        self.machine = self.take(size)
        while self.file.read(self.at, 1) == bytes([fmt.QEMU_VM_SUBSECTION]):
            self._subsection()

    def _subsection(self) -> None:
        """Read a subsection of the configuration; none has a length."""
        at = self.at
        self.number(1)
        name = self.name()
        self.number(4)  # version
        if name == fmt.TARGET_PAGE_BITS:
            bits = self.number(4)
            if bits != fmt.TARGET_PAGE_SHIFT:
                raise FormatError(f"{name.decode()} {bits}", at, f"{fmt.TARGET_PAGE_SHIFT}: pages of 4 KiB")
        elif name == fmt.CAPABILITIES:
            count = self.number(4)
            if count > CAPABILITIES_MAX:
                raise FormatError(f"{count} capabilities of a migration stream", at, f"at most {CAPABILITIES_MAX}")
            self._capabilities = {self.name() for _ in range(count)}
        elif name == fmt.UUID:
            self.take(fmt.UUID_SIZE)
        else:
            known = ", ".join(known.decode() for known in (fmt.TARGET_PAGE_BITS, fmt.CAPABILITIES, fmt.UUID))
            raise FormatError(f"subsection {name.decode('latin-1')!r} of a migration stream", at, known)

    def _command(self) -> None:
        command, size = self.number(2), self.number(2)
        argument = self.take(size)
        if command == fmt.MIG_CMD_POSTCOPY_ADVISE and size == fmt.POSTCOPY_ADVISE_SIZE:
            self._page_sizes = int.from_bytes(argument[:8], "big")

    def _early(self, name: bytes, instance: int, at: int) -> None:
        """Skip a device's state that is saved before memory, if the description at the end has its size."""
        size = self._early_size(name, instance)
        if size is None:
            what = f"the state of {name.decode('latin-1')!r} before memory's"
            raise FormatError(what, at, "its description at the end of the stream")
        self.skip(size)

    def _live(self, name: bytes, at: int) -> None:
        """Read a section of a device that is saved in turns with memory."""
        if name == fmt.RAM_SECTION:
            self._pages()
        elif name == fmt.STATTR_SECTION:
            self._storage_attributes()
        elif name == fmt.HTAB_SECTION:
            self._hash_page_table()
        else:
            what = f"the state of {name.decode('latin-1')!r} before memory's"
            raise FormatError(what, at, "memory first: other devices that are saved in turns with it cannot be skipped")

    def _storage_attributes(self) -> None:
        while True:
            at, flags = self.at, self.number(8) & fmt.RAM_FLAGS_MASK
            if flags in (fmt.STATTR_FLAG_EOS, fmt.STATTR_FLAG_DONE):
                return
            if flags != fmt.STATTR_FLAG_MORE:
                raise FormatError(f"storage attributes with flags {flags:#x}", at, "their end, or more of them")
            self.skip(self.number(8))

    def _hash_page_table(self) -> None:
        if self.number(4):  # its size, or HTAB_NONE
            return
        while True:
            index, valid, invalid = self.number(4), self.number(2), self.number(2)
            if not (index or valid or invalid):
                return
            self.skip(valid * fmt.HASH_PTE_SIZE_64)

    def _pages(self) -> None:
        """Read a section's records up to the one that ends it."""
        while True:
            at, word = self.at, self.number(8)
            flags, offset = word & fmt.RAM_FLAGS_MASK, word & ~fmt.RAM_FLAGS_MASK
            if flags == fmt.RAM_SAVE_FLAG_EOS:
                return
            if flags == fmt.RAM_SAVE_FLAG_MEM_SIZE:
                self._declare_blocks(offset)
            elif flags & ~fmt.RAM_SAVE_FLAG_CONTINUE == fmt.RAM_SAVE_FLAG_PAGE:
                self._select(flags, at)
                self.skip(fmt.TARGET_PAGE_SIZE)
                self._place(offset, self.at - fmt.TARGET_PAGE_SIZE, at)
                self._run(fmt.RAM_SAVE_FLAG_PAGE, fmt.PAGE_RECORD)
            elif flags & ~fmt.RAM_SAVE_FLAG_CONTINUE == fmt.RAM_SAVE_FLAG_ZERO:
                self._select(flags, at)
                if self.number(1):
                    raise FormatError("a page filled with a byte that is not 0", at, "a page of zeros")
                self._place(offset, ZERO, at)
                self._run(fmt.RAM_SAVE_FLAG_ZERO, fmt.ZERO_RECORD)
            elif flags != fmt.RAM_SAVE_FLAG_MULTIFD_FLUSH:
                what = fmt.REFUSED.get(flags & ~fmt.RAM_SAVE_FLAG_CONTINUE)
                named = f" ({what})" if what else ""
                raise FormatError(f"RAM record with flags {flags:#x}{named}", at, "pages as they are")

    def _declare_blocks(self, total: int) -> None:
        while total:
            at, name, size = self.at, self.name(), self.number(8)
            if not 0 < size <= total or size % fmt.TARGET_PAGE_SIZE or len(self.blocks) == BLOCKS_MAX:
                raise FormatError(f"a RAM block of {size:#x} bytes", at, f"whole pages, at most {total:#x} bytes")
            if self._has_page_size():
                self.number(8)
            if fmt.IGNORE_SHARED in self._capabilities:
                self.number(8)  # an address by the block's own reckoning
            mapped = fmt.MAPPED_RAM in self._capabilities
            self.blocks[name] = self._mapped_block(name, size) if mapped else RamBlock(name, size)
            total -= size

    def _has_page_size(self) -> bool:
        """Tell whether a block's page size follows: with postcopy-ram, if it is not the host's smallest.

        No name and no record begins with such a number.
        """
        if not self._page_sizes & self._page_sizes - 1:
            return False
        follows = int.from_bytes(self.file.read(self.at, 8), "big")
        return follows.bit_count() == 1 and bool(follows & self._page_sizes)

    def _mapped_block(self, name: bytes, size: int) -> RamBlock:
        """Read mapped-ram's header of a block, and skip its pages."""
        at, version, page_size = self.at, self.number(4), self.number(8)
        if (version, page_size) != (fmt.MAPPED_RAM_HDR_VERSION, fmt.TARGET_PAGE_SIZE):
            what = f"mapped-ram version {version} with pages of {page_size:#x} bytes"
            raise FormatError(what, at, f"version {fmt.MAPPED_RAM_HDR_VERSION} and {fmt.TARGET_PAGE_SIZE:#x}")
        bitmap_offset, pages_offset = self.number(8), self.number(8)
        if not pages_offset:
            return RamBlock(name, size)
        bitmap_size = -(-size // fmt.TARGET_PAGE_SIZE // BITS_PER_LONG) * 8
        if not self.at <= bitmap_offset <= pages_offset - bitmap_size or pages_offset + size > OFFSET_MAX:
            what = f"mapped-ram's bitmap at {bitmap_offset:#x}, pages at {pages_offset:#x}"
            raise FormatError(what, at, f"{bitmap_size:#x} bytes of bitmap from {self.at:#x} on, then pages")
        if bitmap_offset + bitmap_size > self.file.size:
            raise EOFError
        decoded = _swapped if self._host_order == "big" else None
        bitmap = Bitmap(self.file, bitmap_offset, bitmap_size, "mapped-ram's bitmap", decoded)
        self.at = pages_offset + size
        # QEMU writes the bitmap at the end; and before 11.0, none of what x-ignore-shared leaves out.
        if not bitmap.any():
            return RamBlock(name, size)
        return MappedBlock(name, size, bitmap, pages_offset, self.file.size)

    def _select(self, flags: int, at: int) -> None:
        """Select a page's block: the block of the previous page, or the named one."""
        if not flags & fmt.RAM_SAVE_FLAG_CONTINUE:
            name = self.name()
            block = self.blocks.get(name)
            if block is None:
                raise FormatError(f"a page of RAM block {name.decode('latin-1')!r}", at, "one that was declared")
            self._block = self._sent(block, at).pages
        if self._block is None:
            raise FormatError("a page of the same RAM block", at, "a block's name first")

    def _sent(self, block: RamBlock, at: int) -> SentBlock:
        """Return the block, with space for the places of its pages."""
        if isinstance(block, SentBlock):
            return block
        room = self.file.size * RECORDS_MIN // fmt.ZERO_RECORD * fmt.TARGET_PAGE_SIZE
        total = block.size + sum(other.size for other in self.blocks.values() if isinstance(other, SentBlock))
        if isinstance(block, MappedBlock) or total > room:
            what = f"{total:#x} bytes of memory in {self.file.size:#x} of file"
            raise FormatError(what, at, f"at most {room:#x}, and no page of mapped-ram by itself")
        sent = self.blocks[block.name] = SentBlock(block.name, block.size)
        return sent

    def _place(self, offset: int, place: int, at: int) -> None:
        assert self._block is not None  # noqa: S101 - for mypy
        index = offset // fmt.TARGET_PAGE_SIZE
        if index >= len(self._block):
            raise FormatError(f"a page at {offset:#x} of a RAM block", at, f"below {len(self._block) * 4096:#x}")
        self._block[index] = place

    def _run(self, flag: int, record: int) -> None:
        """Read the run of records of one kind in the same block."""
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


def _swapped(raw: U8Array) -> U8Array:
    """Return words of 64 bits in the other byte order."""
    return raw.reshape(-1, 8)[:, ::-1].reshape(-1)
