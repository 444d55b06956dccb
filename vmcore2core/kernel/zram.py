"""zram: a block device whose blocks are compressed in memory.

References: drivers/block/zram/zram_drv.{c,h}: zram_read_page(), read_from_zspool(), struct zram_table_entry (Linux 4.18
to 7.2).
"""

from __future__ import annotations

from collections import OrderedDict

from vmcore2core.errors import CodecError, CorruptStructure, LayoutUnknown
from vmcore2core.formats import swap as fmt
from vmcore2core.kernel.bounds import bit_number, struct_size
from vmcore2core.kernel.btf_modules import with_module_types
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.zcomp import Decompress, decompressor
from vmcore2core.kernel.zsmalloc import ZsPool
from vmcore2core.memory.pages import UserPageState

DISK_PREFIX = b"zram"
NAME_MAX = 128  # CRYPTO_MAX_ALG_NAME
ENTRIES_AT_ONCE = 256
ENTRY_MAX = 1 << 10
CACHED_BLOCKS = 1024


class Zram:
    """``kernel.swap.Store`` of one zram device.

    Args:
        kernel: the kernel.
        disk: its ``struct gendisk``.
        vmemmap: address of the ``struct page`` of page frame 0.

    Raises:
        LayoutUnknown, LayoutInvalid: zram's types are not known.
        CorruptStructure, MemoryFault: the device cannot be read.
    """

    def __init__(self, kernel: Kernel, disk: StructView, vmemmap: int) -> None:
        typed = with_module_types(kernel, "zram")
        self._kernel, self._layout = typed, typed.layout
        self._zram = typed.view("zram", disk.pointer("private_data"))
        if self._zram.pointer("disk") != disk.address:
            wrong = f"disk is {self._zram.pointer('disk'):#x}, expected {disk.address:#x}"
            raise CorruptStructure(wrong, self._zram.address, "zram")
        self._page_size = kernel.memory.kernel_map.spec.page_size
        self._table = self._zram.pointer("table")
        self._entry_size = struct_size(self._layout, "zram_table_entry", ENTRY_MAX)
        self._nr_entries = self._zram.uint("disksize", size=8) // self._page_size
        self._handle = self._layout.member("zram_table_entry", "handle").offset
        # Linux 7.2 has attr.flags beside its lock; before that, the lock is a bit of flags.
        self._flags = self._layout.member("zram_table_entry", "flags", "attr.flags")
        self._same, self._wb = self._flag("ZRAM_SAME"), self._flag("ZRAM_WB")
        lock = bit_number(self._layout, "ZRAM_LOCK")
        same_bit = self._same.bit_length() - 1
        self._size_mask = (1 << min(same_bit, same_bit if lock is None else lock)) - 1
        self._huge = self._flag("ZRAM_HUGE")
        self._priority = bit_number(self._layout, "ZRAM_COMP_PRIORITY_BIT1")
        self._pool = ZsPool(with_module_types(typed, "zsmalloc"), self._zram.pointer("mem_pool"), vmemmap)
        self._codecs: dict[int, Decompress] = {}
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def _flag(self, name: str) -> int:
        """Return the mask of an enumerator of ``enum zram_pageflags``; 0 if this kernel does not have it."""
        bit = bit_number(self._layout, name)
        if bit is None and name == "ZRAM_SAME":
            raise LayoutUnknown("NUMBER(ZRAM_SAME)")
        return 0 if bit is None else 1 << bit

    def _entry(self, index: int) -> tuple[int, int]:
        """Return handle and flags of a block."""
        block, within = divmod(index, ENTRIES_AT_ONCE)
        raw = self._blocks.get(block)
        if raw is None:
            count = min(ENTRIES_AT_ONCE, self._nr_entries - block * ENTRIES_AT_ONCE)
            size = self._entry_size
            raw = self._kernel.memory.read(self._table + block * ENTRIES_AT_ONCE * size, count * size)
            self._blocks[block] = raw
            if len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        at, word, order = within * self._entry_size, self._kernel.arch.pointer_size, self._kernel.arch.byte_order
        handle = raw[at + self._handle : at + self._handle + word]
        flags = raw[at + self._flags.offset : at + self._flags.offset + (self._flags.size or word)]
        return int.from_bytes(handle, order), int.from_bytes(flags, order)

    def find(self, offset: int) -> UserPageState:
        """Tell whether zram has the block, and if not, why not."""
        if offset >= self._nr_entries:
            raise CorruptStructure(f"block {offset:#x}, expected {self._nr_entries:#x}", self._zram.address, "zram")
        handle, flags = self._entry(offset)
        if flags & self._wb:
            return UserPageState.SWAPPED_TO_DISK  # zram's own backing device
        if flags & self._same or not handle:
            # A block that was never written reads as zeros; but the page was swapped here, so it was written.
            return UserPageState.STORED if flags & self._same else UserPageState.SWAP_UNREADABLE
        self._codec(flags)
        return UserPageState.STORED

    def read(self, offset: int) -> bytes:
        """Return the page of a block, decompressed."""
        handle, flags = self._entry(offset)
        if flags & self._same:
            word = self._kernel.arch.pointer_size
            return handle.to_bytes(word, self._kernel.arch.byte_order) * (self._page_size // word)
        size = flags & self._size_mask
        if flags & self._huge or size == self._page_size:
            return self._pool.read(handle, self._page_size)
        return self._codec(flags)(self._pool.read(handle, size), self._page_size)

    def _codec(self, flags: int) -> Decompress:
        priority = flags >> self._priority & fmt.ZRAM_COMP_PRIORITY_MASK if self._priority is not None else 0
        if priority not in self._codecs:
            self._codecs[priority] = self._open_codec(priority)
        return self._codecs[priority]

    def _open_codec(self, priority: int) -> Decompress:
        """Return the decoder of one of the device's algorithms; there may be several since Linux 6.2."""
        word = self._kernel.arch.pointer_size
        params = self._layout.find_member("zram", "params")
        if params is not None and self._zram.has("params"):
            size, dictionary = self._layout.size("zcomp_params"), self._layout.member("zcomp_params", "dict").offset
            if self._kernel.read_pointer(self._zram.address + params.offset + priority * size + dictionary):
                raise CodecError("zram's pages are compressed with a dictionary, which cannot be decoded")
        if self._zram.has("comp_algs"):
            pointer = self._kernel.read_pointer(self._zram.addr_of("comp_algs") + priority * word)
            name = self._kernel.read_string(pointer, NAME_MAX)
        else:
            name = self._zram.bytes_of("compressor", NAME_MAX).split(b"\0", 1)[0]
        return decompressor(name.decode("ascii", "replace"))
