"""What every dump format provides: page frames by number, and the notes of the dump."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

import numpy as np

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.elf.notes import Note
from vmcore2core.errors import DumpError
from vmcore2core.interfaces import ByteOrder


class PageState(IntEnum):
    """What the dump has of one page frame; the values go into uint8 arrays."""

    MISSING = 0
    """Not in the dump: no RAM at that address, or the file does not describe it."""
    PRESENT = 1
    """Its bytes are in the dump."""
    ZERO = 2
    """Left out because every byte of it was zero (makedumpfile -d 1): reads as zeros."""
    EXCLUDED = 3
    """RAM that was filtered out (makedumpfile -d 2..16): the bytes are unknown."""
    TRUNCATED = 4
    """According to the file it has the page, but the file ends before it."""
    DAMAGED = 5
    """The page's compressed form does not decode."""


class ContainerDoc(NamedTuple):
    """What the generated support table and ``info`` say about a format."""

    name: str
    summary: str
    references: tuple[str, ...]
    limitations: tuple[str, ...] = ()


class DumpContainer(ABC):
    """An open dump file.

    A subclass is one file ``containers/NAME.py`` ending in ``CONTAINER = NameContainer``. Its constructor takes the
    open files (``Sequence[DumpFile]``, at least one, which ``close`` closes), reads header, magic, version, ranges in
    this order, and raises ``FormatError`` with one clear sentence; then the caller closes the files.

    Attributes:
        paths: the file or files, as given.
        page_size: bytes of a page frame as this container counts them.
        e_machine: ELF machine number (EM_X86_64 = 62), or None if the file does not tell.
        byte_order: of the container's own headers, or None; the kernel's may differ (QEMU on ppc64le).
        notes: all ELF notes, in file order; VMCOREINFO and the CPUs' NT_PRSTATUS are among them.
        dump_level: makedumpfile's -d bits as recorded in the file, or None.
        compressed: name of the page codec ("zlib") if all pages use one, or None.
        warnings: sentences on defects of the file (truncated, incomplete); they lead to exit status 3.
        files: all files of the dump that are read.
        placed_by: what tells where memory lies if the file does not, as words for a sentence; or None.
        takes_map: whether the user may give a ``memory_map`` that replaces the file's own.
        zero_excluded: whether pages that were left out read as zeros because the user said so; None if the format
            itself tells zero pages from others.
    """

    DOC: ClassVar[ContainerDoc]

    paths: tuple[Path, ...]
    page_size: int
    e_machine: int | None
    byte_order: ByteOrder | None
    notes: tuple[Note, ...]
    dump_level: int | None = None
    compressed: str | None = None
    warnings: list[str]
    files: tuple[DumpFile, ...] = ()
    placed_by: str | None = None
    takes_map: ClassVar[bool] = False
    zero_excluded: bool | None = None

    @classmethod
    @abstractmethod
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file, positioned at 0, is of this format; never raise on foreign bytes."""

    @property
    def vmcoreinfo(self) -> bytes | None:
        """The VMCOREINFO note's text, or None if the dump has none."""
        return next((n.desc for n in self.notes if n.name == "VMCOREINFO"), None)

    @abstractmethod
    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return the physical address ranges that the dump describes, ascending and disjoint."""

    def dumped_ranges(self) -> tuple[AddressRange, ...]:
        """Return the ranges to search: outside of them the file has no page. They ascend and are disjoint.

        Their size is limited by what the file can hold, not by the memory that it claims the machine has.
        """
        return self.memory_ranges()

    @abstractmethod
    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame without reading its bytes.

        Args:
            pfns: uint64[n], any values, in any order.

        Returns:
            uint8[n]. A present page may later still turn out ``DAMAGED`` or ``TRUNCATED``.
        """

    def not_zero(self, pfns: U64Array) -> int:
        """Return how many of some page frames are certain to be something else than zeros, without reading them.

        Args:
            pfns: uint64[n], each once.
        """
        return 0

    @abstractmethod
    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Read page frames into ``out``.

        Args:
            pfns: uint64[n], any values, in any order, repeats allowed.
            out: uint8[n, page_size], C-contiguous; row i gets page ``pfns[i]``; rows whose state is neither
                ``PRESENT`` nor ``ZERO`` become zeros and must not be used.

        Returns:
            uint8[n], the ``PageState`` of each row. A page's bytes never raise an error.
        """

    def read_page(self, pfn: int) -> tuple[bytes, PageState]:
        """Read one page frame: kernel structures are scattered, and a call of numpy costs as much as 20 reads.

        Args:
            pfn: below ``1 << 64``.

        Returns:
            The bytes that ``read_pages`` gives (zeros if they must not be used), and the state.
        """
        out = np.zeros((1, self.page_size), np.uint8)
        state = self.read_pages(np.array([pfn], np.uint64), out)[0]
        return out.tobytes(), PageState(int(state))

    def check_unchanged(self) -> None:
        """Check that the files were not written to since they were opened.

        Raises:
            DumpError: they were, so the bytes that were read come from two dumps.
        """
        for file in self.files:
            sentence = file.changed()
            if sentence is not None:
                raise DumpError(sentence)

    def close(self) -> None:  # noqa: B027 - most containers have nothing to do here
        """Release the file."""

    def __enter__(self) -> DumpContainer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
