"""QEMU's migration to a file: migrate file:, virsh save, virsh managedsave.

On opening, only the headers of the stream are read, to find the last copy of each page.

References: see ``formats.qemu_migration``; QEMU's docs/devel/migration/main.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import ContainerDoc, DumpContainer, PageState
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.containers.migration_stream import MigrationStream
from vmcore2core.containers.qemu_cpus import saved_cpu_notes
from vmcore2core.containers.ram_blocks import NOT_SEEN, ZERO, RamBlock
from vmcore2core.containers.saved_machine import main_blocks, main_memory, mapped_memory
from vmcore2core.containers.segmented import read_present
from vmcore2core.containers.vmstate import DeviceStates
from vmcore2core.errors import FormatError
from vmcore2core.formats import qemu_migration as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override


class QemuMigrationContainer(DumpContainer):
    """A saved virtual machine.

    Args:
        files: one file.
        memory_map: see ``raw.parse_map``, with offsets in main memory; None for the map of the machine's type.
    """

    DOC = ContainerDoc(
        name="QEMU migration",
        summary="QEMU's migrate to a file, with mapped-ram too; virsh save and managedsave, sparse or not compressed",
        references=("QEMU migration/ram.c and migration/savevm.c", "libvirt src/qemu/qemu_saveimage.h"),
        limitations=(
            "no registers of running tasks of MIPS and 32-bit kernels; no FPU's of x86-64, riscv64 and arm64 with SVE",
            (
                "of the machines pc, q35, virt (arm64, riscv64), s390-ccw-virtio and pseries, tried with QEMU 7.2, "
                "10.0, 11.1; of microvm, malta and loongson3-virt by their memory's description, and not tried"
            ),
            "no hotplugged memory",
            "no xbzrle, compress or RDMA; what x-ignore-shared leaves out is in the backend's own file",
            "mapped-ram of a big-endian host behind libvirt's header alone",
        ),
    )
    page_size = fmt.TARGET_PAGE_SIZE
    placed_by = "the machine's type"
    takes_map = True

    def __init__(self, files: Sequence[DumpFile], memory_map: str | None = None) -> None:
        self._file = only_file(files, "a saved virtual machine")
        self.paths = (self._file.path,)
        self.e_machine = None
        self.byte_order = None
        self.warnings = [] if self._file.cut_off is None else [self._file.cut_off]
        start, host_order = _start(self._file)
        devices = DeviceStates(self._file, start)
        try:
            stream = MigrationStream(self._file, start, host_order, devices.size)
        except EOFError:
            raise FormatError("the header of a migration stream is cut off", self._file.size, "8 bytes") from None
        if not stream.blocks:
            raise FormatError("a migration stream that ends before memory", stream.at, "its RAM blocks")
        self._blocks: tuple[RamBlock, ...] = main_blocks(stream.blocks)
        self._unsent = PageState.TRUNCATED if stream.cut_off else PageState.EXCLUDED
        if memory_map is None:
            cmos = devices.fields(fmt.RTC, 0, stream.at).get("cmos_data")
            self._pieces = main_memory(self._blocks, stream.machine, cmos)
        else:
            self._pieces = mapped_memory(self._blocks, memory_map)
            self.placed_by = "--map"
        self._warn_of_missing(stream)
        self.notes = saved_cpu_notes(devices, stream.at)

    def _warn_of_missing(self, stream: MigrationStream) -> None:
        """Warn if the file is truncated; a page that a complete stream leaves out was free (free-page-hint).

        Raises:
            FormatError: the file has no page of the machine's memory.
        """
        pages, missing = sum(block.nr_pages for block in self._blocks), sum(block.missing() for block in self._blocks)
        if stream.complete and missing == pages:
            what = f"no page of RAM block {self._blocks[0].name.decode('latin-1')!r}"
            expected = "memory in the stream: x-ignore-shared leaves it in the backend's file, which --map reads"
            raise FormatError(what, stream.at, expected)
        if stream.cut_off:
            self.warnings.append(
                f"the file is cut off: it ends at {self._file.size:#x}, before {missing} of {pages} pages"
            )

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with a migration stream, or with libvirt's header."""
        head = f.read(len(fmt.LIBVIRT_MAGIC))
        return head.startswith(fmt.QEMU_VM_FILE_MAGIC) or head in (fmt.LIBVIRT_MAGIC, fmt.LIBVIRT_PARTIAL_MAGIC)

    @override
    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return where the machine's memory is."""
        return tuple(AddressRange(start, start + size) for start, _, size in self._pieces)

    def _places(self, pfns: U64Array) -> tuple[U64Array, U8Array]:
        """Return the place of each page frame in the file, and its ``PageState``."""
        places = np.full(len(pfns), NOT_SEEN, np.uint64)
        states = np.full(len(pfns), PageState.MISSING, np.uint8)
        for start, offset, size in self._pieces:
            first, count = start // self.page_size, size // self.page_size
            inside = np.flatnonzero((pfns >= np.uint64(first)) & (pfns < np.uint64(first + count)))
            places[inside] = self._of_blocks(pfns[inside] - np.uint64(first) + np.uint64(offset // self.page_size))
            states[inside] = PageState.PRESENT
        states[(states == PageState.PRESENT) & (places == NOT_SEEN)] = self._unsent
        states[places == ZERO] = PageState.ZERO
        return places, states

    def _of_blocks(self, index: U64Array) -> U64Array:
        """Return the places of pages of main memory, whose blocks are concatenated."""
        if len(self._blocks) == 1:
            return self._blocks[0].places(index)
        places, first = np.full(len(index), NOT_SEEN, np.uint64), 0
        for block in self._blocks:
            inside = np.flatnonzero((index >= np.uint64(first)) & (index < np.uint64(first + block.nr_pages)))
            places[inside] = block.places(index[inside] - np.uint64(first))
            first += block.nr_pages
        return places

    @override
    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame; memory behind the end of the file is ``TRUNCATED``."""
        return self._places(pfns)[1]

    @override
    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Copy page frames from the file into ``out``."""
        places, states = self._places(pfns)
        return read_present(self._file, places, states, out)

    @override
    def close(self) -> None:
        """Release the file."""
        self._blocks = ()
        self._file.close()


def _start(file: DumpFile) -> tuple[int, ByteOrder]:
    """Return where the stream begins, and the host's byte order if it is known.

    The stream follows libvirt's header and the machine's XML, if the file has them.

    Raises:
        FormatError: libvirt has compressed the stream, or has not finished it.
    """
    raw = file.read(0, fmt.libvirt_save_header.itemsize)
    if not raw.startswith((fmt.LIBVIRT_MAGIC, fmt.LIBVIRT_PARTIAL_MAGIC)):
        return 0, "little"
    if len(raw) < fmt.libvirt_save_header.itemsize:
        raise FormatError("libvirt's header is cut off", file.size, f"{fmt.LIBVIRT_HEADER_SIZE} bytes")
    header, order = np.frombuffer(raw, fmt.libvirt_save_header), "little"
    if int(header["version"][0]) >= 1 << 16:
        header, order = header.view(fmt.libvirt_save_header.newbyteorder()), "big"
    compressed, size = int(header["compressed"][0]), int(header["data_len"][0])
    if compressed not in (0, fmt.LIBVIRT_SPARSE):
        codec = fmt.LIBVIRT_COMPRESSED.get(compressed, f"codec {compressed}")
        raise FormatError(
            f"libvirt has compressed the machine's memory with {codec}", 28, "save_image_format raw or sparse"
        )
    return fmt.LIBVIRT_HEADER_SIZE + size, "big" if order == "big" else "little"


CONTAINER = QemuMigrationContainer
