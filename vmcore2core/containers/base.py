"""What every dump format gives: page frames by number, and the notes that came with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

import numpy as np

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import DumpError
from vmcore2core.interfaces import ByteOrder


class PageState(IntEnum):
    """What the dump has of one page frame; the values go into uint8 arrays."""

    MISSING = 0
    """Not in the dump: no RAM at that address, or the file does not describe it."""
    PRESENT = 1
    """The bytes are in the dump."""
    ZERO = 2
    """Left out because every byte of it was zero (makedumpfile -d 1): reads as zeros."""
    EXCLUDED = 3
    """RAM that was filtered out (makedumpfile -d 2..16): the bytes are unknown."""
    TRUNCATED = 4
    """The file says that it has the page, but ends before it."""
    DAMAGED = 5
    """The page's compressed form does not decode."""


class Note(NamedTuple):
    """One ELF note of the dump, in file order: ``name`` without its NUL, ``n_type``, descriptor bytes."""

    name: str
    n_type: int
    desc: bytes


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
    this order, and raises ``FormatError`` with one clear sentence; whoever called it closes the files then.

    Attributes:
        paths: the file or files, as given.
        page_size: bytes of a page frame as this container counts them.
        e_machine: ELF machine number (EM_X86_64 = 62), or None where the file does not tell.
        byte_order: as the container's own headers are; the kernel's may differ (QEMU on ppc64le), or None.
        notes: all ELF notes, in file order; VMCOREINFO and the CPUs' NT_PRSTATUS are among them.
        dump_level: makedumpfile's -d bits as recorded in the file, or None.
        compressed: name of the page codec where all pages use one ("zlib"), or None.
        warnings: sentences about what is odd with the file (truncated, incomplete): they lead to exit status 3.
        files: all that is read of it.
        placed_by: what tells where memory lies, in a sentence's words, where the file itself does not; or None.
        takes_map: whether ``memory_map`` may be given as well, for a file whose memory lies elsewhere.
        zero_excluded: whether pages that were left out read as zeros, as somebody knows who made the file; None where
            the format itself tells zero pages from others.
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
        """The VMCOREINFO note's text, or None where the dump came without one."""
        return next((n.desc for n in self.notes if n.name == "VMCOREINFO"), None)

    @abstractmethod
    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return the physical address ranges that the dump describes, ascending and disjoint."""

    def dumped_ranges(self) -> tuple[AddressRange, ...]:
        """Return ranges outside of which the file has no page, ascending and disjoint: where to search.

        They are no larger than the file makes believable, whatever memory it says the machine has.
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

    @abstractmethod
    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Read page frames into ``out``.

        Args:
            pfns: uint64[n], any values, in any order, repeats allowed.
            out: uint8[n, page_size], C-contiguous; row i gets page ``pfns[i]``; rows whose state is neither
                ``PRESENT`` nor ``ZERO`` become zeros and must not be used.

        Returns:
            uint8[n], the ``PageState`` of each row. Never raises for what a page's bytes are.
        """

    def read_page(self, pfn: int) -> tuple[bytes, PageState]:
        """Read one page frame: kernel structures lie one here, one there, and numpy's overhead is 20 reads of a page.

        Args:
            pfn: below ``1 << 64``.

        Returns:
            The bytes that ``read_pages`` gives, zeros where they must not be used, and the state.
        """
        out = np.zeros((1, self.page_size), np.uint8)
        state = self.read_pages(np.array([pfn], np.uint64), out)[0]
        return out.tobytes(), PageState(int(state))

    def check_unchanged(self) -> None:
        """Check that nobody has written to the files since they were opened.

        Raises:
            DumpError: somebody has, so that what was read of them is of two dumps.
        """
        for file in self.files:
            sentence = file.changed()
            if sentence is not None:
                raise DumpError(sentence)

    def close(self) -> None:  # noqa: B027 - most containers have nothing to do but this hook
        """Release the file."""

    def __enter__(self) -> DumpContainer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
