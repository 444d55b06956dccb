"""zswap: pages compressed in memory in front of a swap device, whose slots for them are empty or out of date.

References: mm/zswap.c: zswap_load(), zswap_decompress(), zswap_frontswap_load(); mm/zpool.c; mm/zbud.c: zbud_map()
(Linux 4.18 to 7.2).
"""

from __future__ import annotations

from vmcore2core.errors import CodecError, CorruptStructure
from vmcore2core.formats import swap as fmt
from vmcore2core.kernel.btf_modules import with_module_types
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.xarray import XArray
from vmcore2core.kernel.zcomp import Decompress, decompressor
from vmcore2core.kernel.zsmalloc import ZsPool
from vmcore2core.memory.pages import UserPageState

NAME_MAX = 128  # CRYPTO_MAX_ALG_NAME
RB_DEPTH_MAX = 128  # twice the height of a balanced tree of 2^64 nodes


class Zswap:
    """The ``kernel.swap.Store`` of zswap for one swap device.

    Args:
        kernel: the kernel.
        number: of the device.
        vmemmap: address of the ``struct page`` of page frame 0.

    Raises:
        LayoutUnknown: its types are not known.
        MemoryFault: it cannot be read.
    """

    def __init__(self, kernel: Kernel, number: int, vmemmap: int) -> None:
        self.kernel, self._number, self._vmemmap = kernel, number, vmemmap
        self._page_size = kernel.memory.kernel_map.spec.page_size
        self._pools: dict[int, tuple[ZsPool | None, int]] = {}
        self._codecs: dict[int, Decompress] = {}
        self._typed: Kernel | None = None
        self._trees, self._nr_trees = 0, None
        trees, lengths = (kernel.layout.find_symbol(name) for name in ("zswap_trees", "nr_zswap_trees"))
        if trees is not None:  # else the kernel has no zswap: the caller knows its other symbols
            self._trees = kernel.read_pointer(trees + number * kernel.arch.pointer_size)
        # Since Linux kernel commit 44c7c734a513 ("mm/zswap: split zswap rb-tree") (in v6.9), a device has many trees.
        self._nr_trees = None if lengths is None else kernel.uint(lengths + number * 4, 4)

    def find(self, offset: int) -> UserPageState | None:
        """Return ``STORED`` if zswap has the slot, else None."""
        entry = self._entry(offset)
        if entry is None:
            return None
        length = entry.uint("length", size=4)
        if length:
            self._allocator(entry)
        if length not in (0, self._page_size):
            self._codec(entry)
        return UserPageState.STORED

    def read(self, offset: int) -> bytes:
        """Return the page of a slot, decompressed."""
        entry = self._entry(offset)
        if entry is None:
            raise CorruptStructure(f"slot {offset:#x} is not there any more", self._trees, "zswap_trees")
        length = entry.uint("length", size=4)
        if not length:  # until Linux 6.11: a page of one word
            word = self.kernel.arch.pointer_size
            return entry.ulong("value").to_bytes(word, self.kernel.arch.byte_order) * (self._page_size // word)
        data = self._object(entry, length)
        return data if length == self._page_size else self._codec(entry)(data, self._page_size)

    def _entry(self, offset: int) -> StructView | None:
        """Return the ``struct zswap_entry`` of a slot."""
        if not self._trees:
            return None
        tree = self._trees
        layout = self.kernel.layout
        is_rbtree = layout.find_member("zswap_tree", "rbroot") is not None
        if self._nr_trees is not None:
            index = offset >> fmt.SWAP_ADDRESS_SPACE_SHIFT
            if index >= self._nr_trees:
                raise CorruptStructure(f"slot {offset:#x}, expected {self._nr_trees} trees", tree, "zswap_trees")
            tree += index * layout.size("zswap_tree" if is_rbtree else "xarray")
        found = self._in_rbtree(tree, offset) if is_rbtree else self._in_xarray(tree, offset)
        if found is not None and self._slot(found) != offset:
            raise CorruptStructure(f"slot {self._slot(found):#x}, expected {offset:#x}", found.address, "zswap_entry")
        return found

    def _slot(self, entry: StructView) -> int:
        """Return the slot of an entry; since Linux 6.5, it is an swp_entry_t, with the device."""
        if not entry.has("swpentry"):
            return entry.ulong("offset")
        number, slot = divmod(entry.uint("swpentry", size=8), 1 << fmt.SWP_TYPE_SHIFT)
        if number != self._number:
            raise CorruptStructure(f"device {number}, expected {self._number}", entry.address, "zswap_entry.swpentry")
        return slot

    def _in_xarray(self, tree: int, offset: int) -> StructView | None:
        run = next(XArray(self.kernel.view("xarray", tree)).runs(offset, offset), None)
        return None if run is None or run.is_value else self.kernel.view("zswap_entry", run.entry)

    def _in_rbtree(self, tree: int, offset: int) -> StructView | None:
        layout = self.kernel.layout
        inside = layout.member("zswap_entry", "rbnode").offset
        node = self.kernel.view("zswap_tree", tree).embedded("rbroot", "rb_root").pointer("rb_node")
        for _ in range(RB_DEPTH_MAX):
            if not node:
                return None
            entry = self.kernel.view("zswap_entry", node - inside)
            slot = self._slot(entry)
            if slot == offset:
                return entry
            node = self.kernel.view("rb_node", node).pointer("rb_left" if offset < slot else "rb_right")
        raise CorruptStructure(f"more than {RB_DEPTH_MAX} levels", tree, "zswap_tree.rbroot")

    def _codec(self, entry: StructView) -> Decompress:
        pool = entry.pointer("pool")
        if pool not in self._codecs:
            name = self.kernel.view("zswap_pool", pool).bytes_of("tfm_name", NAME_MAX).split(b"\0", 1)[0]
            self._codecs[pool] = decompressor(name.decode("ascii", "replace"))
        return self._codecs[pool]

    def _allocator(self, entry: StructView) -> tuple[ZsPool | None, int]:
        address = entry.pointer("pool")
        if address not in self._pools:
            self._pools[address] = self._open_pool(self.kernel.view("zswap_pool", address))
        return self._pools[address]

    def _object(self, entry: StructView, length: int) -> bytes:
        """Return the stored bytes of a page."""
        handle = entry.ulong("handle")
        pool, header = self._allocator(entry)
        if not 0 < length <= self._page_size:
            raise CorruptStructure(f"length {length:#x}, expected at most a page", entry.address, "zswap_entry")
        if pool is None:  # zbud: the handle is the address
            return self.kernel.memory.read(handle + header, length)
        return pool.read(handle, header + length)[header:]

    def _open_pool(self, pool: StructView) -> tuple[ZsPool | None, int]:
        """Return a pool's allocator (None for zbud), and the number of bytes that zswap has before each page."""
        if pool.has("zs_pool"):  # since Linux 6.18
            return self._zsmalloc(pool.pointer("zs_pool")), 0
        if pool.has("zpools"):  # Linux 6.7 to 6.9: 32 of them, of the same size classes
            zpool = self.kernel.view("zpool", self.kernel.read_pointer(pool.addr_of("zpools")))
        else:
            zpool = self.kernel.view("zpool", pool.pointer("zpool"))
        driver = self.kernel.view("zpool_driver", zpool.pointer("driver"))
        name = self.kernel.read_string(driver.pointer("type"), NAME_MAX)
        # struct zswap_header, where the allocator asks zswap to make room (until Linux 6.5).
        header = 8 if zpool.has("evictable") and zpool.uint("evictable", size=1) else 0
        if name == b"zsmalloc":
            return self._zsmalloc(zpool.pointer("pool")), header
        if name == b"zbud":
            return None, header
        raise CodecError(f"zswap's pages are in {name.decode('ascii', 'replace')}, which cannot be read")

    def _zsmalloc(self, address: int) -> ZsPool:
        self._typed = self._typed or with_module_types(self.kernel, "zsmalloc")
        return ZsPool(self._typed, address, self._vmemmap)
