"""A small fake x86-64 kernel in physical memory: struct.pack, and offsets that are literal numbers.

The offsets of ``EXPORT`` are those that the VMCOREINFO of a 7.2.13 kernel with the task and VMA export prints; those of
``MORE`` are a 7.2 kernel's where its headers fix them (struct list_head, xa_node, path, mount), else any that are free.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from tests.builders.paging import US, FlatContainer, P, PhysicalImage
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers.base import PageState
from vmcore2core.interfaces import Member
from vmcore2core.kernel.struct import Kernel
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.physical import PhysicalMemory

TEXT = 0xFFFF_FFFF_8100_0000  # kernel virtual address of physical address 0
IMAGE_SIZE = 0x100_0000  # how far the image's mapping reaches: 16 MiB

Offsets = Mapping[str, Mapping[str, tuple[int, int]]]
"""struct -> member -> (offset, size in bytes)."""

EXPORT: Offsets = {
    "task_struct": {
        "tasks": (832, 16),
        "thread_node": (1208, 16),
        "pid": (1040, 4),
        "tgid": (1044, 4),
        "exit_state": (936, 4),
        "__state": (24, 4),
        "flags": (44, 4),
        "comm": (1504, 16),
        "stack": (32, 8),
        "signal": (1576, 8),
        "mm": (912, 8),
    },
    "signal_struct": {"thread_head": (16, 16), "nr_threads": (8, 4)},
    "mm_struct": {
        "mm_mt": (64, 16),
        "pgd": (120, 8),
        "start_brk": (456, 8),
        "brk": (464, 8),
        "start_stack": (472, 8),
    },
    "maple_tree": {"ma_root": (8, 8), "ma_flags": (4, 4)},
    "maple_node": {"slot": (8, 248), "parent": (0, 8), "ma64": (0, 256), "mr64": (0, 256)},
    "maple_range_64": {"pivot": (8, 120), "slot": (128, 128)},
    "maple_metadata": {"end": (0, 1), "gap": (1, 1)},
    "maple_arange_64": {"pivot": (8, 72), "slot": (80, 80), "gap": (160, 80), "meta": (240, 2)},
    "vm_area_struct": {
        "vm_start": (0, 8),
        "vm_end": (8, 8),
        "vm_mm": (16, 8),
        "vm_flags": (32, 8),
        "vm_file": (88, 8),
    },
    "file": {"f_path": (64, 16)},
    "path": {"dentry": (8, 8)},
    "dentry": {"d_name": (32, 16), "d_parent": (24, 8)},
    "qstr": {"hash_len": (0, 8), "name": (8, 8)},
    "page": {"mapping": (24, 8)},
}

MORE: Offsets = {
    "task_struct": {
        "on_cpu": (52, 4),
        "thread_info.cpu": (20, 4),
        "static_prio": (112, 4),
        "real_parent": (1056, 8),
        "real_cred": (1448, 8),
        "fs": (1536, 8),
        "thread.es": (2328, 2),
        "thread.ds": (2330, 2),
        "thread.fsindex": (2332, 2),
        "thread.gsindex": (2334, 2),
        "thread.fsbase": (2336, 8),
        "thread.gsbase": (2344, 8),
    },
    "signal_struct": {"pids": (400, 32)},
    "pid": {"numbers": (96, 0)},
    "cred": {"uid": (8, 4), "gid": (12, 4)},
    "fs_struct": {"root": (24, 16)},
    "mm_struct": {"saved_auxv": (512, 416), "arg_start": (480, 8), "arg_end": (488, 8), "task_size": (496, 8)},
    "vm_area_struct": {"vm_pgoff": (80, 8), "vm_ops": (72, 8), "anon_vma": (64, 8)},
    "dentry": {"d_hash": (8, 16)},
    "path": {"mnt": (0, 8)},
    "mount": {"mnt_parent": (16, 8), "mnt_mountpoint": (24, 8), "mnt": (32, 32)},
    "vfsmount": {"mnt_root": (0, 8)},
    "file": {"f_mapping": (16, 8)},
    "address_space": {"host": (0, 8), "i_pages": (8, 16), "a_ops": (96, 8)},
    "inode": {"i_size": (80, 8)},
    "xarray": {"xa_head": (8, 8)},
    "xa_node": {"shift": (0, 1), "slots": (40, 512)},
}

# As Linux 5.10 has it: a list of VMAs, state as a long, cpu in task_struct.
OLD: Offsets = {
    "task_struct": {
        "state": (16, 8),
        "stack": (24, 8),
        "flags": (36, 4),
        "on_cpu": (56, 4),
        "cpu": (60, 4),
        "tasks": (1904, 16),
        "mm": (1984, 8),
        "exit_state": (2100, 4),
        "pid": (2200, 4),
        "tgid": (2204, 4),
        "thread_node": (2408, 16),
        "comm": (2480, 16),
        "signal": (2448, 8),
    },
    "signal_struct": {"thread_head": (16, 16), "nr_threads": (8, 4)},
    "mm_struct": {
        "mmap": (0, 8),
        "pgd": (80, 8),
        "start_brk": (280, 8),
        "brk": (288, 8),
        "start_stack": (296, 8),
    },
    "vm_area_struct": {
        "vm_start": (0, 8),
        "vm_end": (8, 8),
        "vm_next": (16, 8),
        "vm_prev": (24, 8),
        "vm_flags": (80, 8),
        "vm_pgoff": (152, 8),
        "vm_file": (160, 8),
    },
    "file": {"f_path": (16, 16), "f_mapping": (216, 8)},
    "path": {"mnt": (0, 8), "dentry": (8, 8)},
    "dentry": {"d_hash": (8, 16), "d_parent": (24, 8), "d_name": (32, 16)},
    "qstr": {"hash_len": (0, 8), "name": (8, 8)},
}

SIZES = {
    "task_struct": 2496,
    "mm_struct": 1344,
    "maple_tree": 16,
    "maple_node": 256,
    "vm_area_struct": 192,
    "file": 168,
    "dentry": 192,
    "pt_regs": 168,
    "page": 64,
}
"""As the same export prints them."""

STORAGE = {**SIZES, "task_struct": 2560, "file": 232}
"""Bytes that the builder gives a structure; 256 to those not named."""


class Table(LayoutSource):
    """A layout source that is a table.

    Attributes:
        offsets: may be changed by a test.
    """

    name = "table"

    def __init__(
        self,
        *offsets: Offsets,
        sizes: Mapping[str, int] | None = None,
        symbols: Mapping[str, int] | None = None,
        constants: Mapping[str, int] | None = None,
        typed: bool = True,
    ) -> None:
        self.offsets: dict[str, dict[str, tuple[int, int]]] = {}
        for table in offsets:
            for tag, members in table.items():
                self.offsets.setdefault(tag, {}).update(members)
        self.sizes = dict(sizes or {})
        self.symbols = dict(symbols or {})
        self.constants = dict(constants or {})
        self.typed = typed  # whether it tells the members' sizes: BTF does, VMCOREINFO does not

    def member(self, struct: str, path: str) -> Member | None:
        found = self.offsets.get(struct, {}).get(path)
        return None if found is None else Member(found[0], self.name, found[1] if self.typed else None)

    def size(self, struct: str) -> int | None:
        return self.sizes.get(struct)

    def symbol(self, name: str) -> int | None:
        return self.symbols.get(name)

    def constant(self, name: str) -> int | None:
        return self.constants.get(name)


class Keys:
    """VMCOREINFO of a kernel with 4-level tables whose image begins at physical address 0."""

    def __init__(self, **numbers: int) -> None:
        self.numbers = {"phys_base": -0x100_0000, "pgtable_l5_enabled": 0, "KERNEL_IMAGE_SIZE": 0x100_0000 + IMAGE_SIZE}
        self.numbers |= numbers

    def symbol(self, name: str) -> int | None:
        return {"swapper_pg_dir": TEXT + PhysicalImage.ROOT, "_stext": TEXT}.get(name)

    def number(self, name: str) -> int | None:
        return self.numbers.get(name)

    def string(self, key: str) -> str | None:
        return None


class KernelImage(PhysicalImage):
    """Kernel structures in physical memory, seen at ``TEXT``.

    Attributes:
        table: what the layout tells; structures are written by it.
    """

    def __init__(self, *offsets: Offsets, pages: int = 64, sized: bool = True) -> None:
        super().__init__(pages)
        self.table = Table(*(offsets or (EXPORT, MORE)), sizes=SIZES if sized else {})
        self._free = self._end = 0

    def alloc(self, size: int, align: int = 16) -> int:
        """Take memory and return its kernel virtual address."""
        self._free = -(-self._free // align) * align
        while self._free + size > self._end:
            fresh = self.page()
            if fresh != self._end:
                self._free = fresh
            self._end = fresh + 4096
        self._free += size
        return TEXT + self._free - size

    def write(self, address: int, data: bytes) -> int:
        """Put bytes at a kernel virtual address, and return the address."""
        self.data[address - TEXT : address - TEXT + len(data)] = data
        return address

    def words(self, address: int, *values: int) -> int:
        """Put 64-bit words."""
        return self.write(address, struct.pack(f"<{len(values)}Q", *values))

    def word(self, address: int) -> int:
        """Return the 64-bit word at a kernel virtual address."""
        return int(struct.unpack_from("<Q", self.data, address - TEXT)[0])

    def string(self, text: bytes) -> int:
        """Put a NUL-terminated string and return its address."""
        return self.write(self.alloc(len(text) + 1, 1), text + b"\0")

    def offset(self, tag: str, member: str) -> int:
        return self.table.offsets[tag][member][0]

    def set(self, tag: str, address: int, members: Mapping[str, int | bytes] | None = None, **more: int | bytes) -> int:
        """Fill in members; returns the address."""
        for name, value in {**(members or {}), **more}.items():
            offset, size = self.table.offsets[tag][name]
            if isinstance(value, int):
                value = (value & ((1 << 8 * min(size, 8)) - 1)).to_bytes(min(size, 8), "little")
            self.write(address + offset, value)
        return address

    def make(self, tag: str, members: Mapping[str, int | bytes] | None = None, **more: int | bytes) -> int:
        """Make a ``struct tag`` and return its address."""
        return self.set(tag, self.alloc(STORAGE.get(tag, 256), 64), members, **more)

    def link(self, head: int, *nodes: int) -> None:
        """Link list_heads in a circle; ``head`` alone is an empty list."""
        ring = [head, *nodes]
        for i, node in enumerate(ring):
            self.words(node, ring[(i + 1) % len(ring)], ring[i - 1])

    def maple_node(self, kind: int, pivots: Sequence[int], slots: Sequence[int], end: int | None = None) -> int:
        """Make a maple node: 1 leaf_64, 2 range_64, 3 arange_64; returns the entry that points to it.

        Args:
            end: index of the last slot in use, for the metadata; None for a full node, which has none.
        """
        node = self.alloc(256, 256)
        pivot_at, slot_at, meta_at = (8, 80, 240) if kind == 3 else (8, 128, 248)
        self.words(node + pivot_at, *pivots)
        self.words(node + slot_at, *slots)
        if end is not None:
            self.write(node + meta_at, bytes([end, 0]))
        return node | kind << 3 | 4

    def maple_leaf(self, vmas: Sequence[tuple[int, int, int]], first: int = 0, *, last: bool = True) -> int:
        """Make a leaf as the kernel stores VMAs (start, end, address), with the gaps between them.

        Args:
            vmas: ascending.
            first: index that the leaf begins with.
            last: the leaf goes on to the end of the address space; else it ends with its last VMA.
        """
        pivots: list[int] = []
        slots: list[int] = []
        at = first
        for start, end, vma in vmas:
            if start > at:
                pivots.append(start - 1)
                slots.append(0)
            pivots.append(end - 1)
            slots.append(vma)
            at = end
        if last:
            pivots.append((1 << 64) - 1)
            slots.append(0)
        assert len(slots) <= 15
        return self.maple_node(1, pivots, slots, len(slots) - 1)

    def vma_tree(self, mm: int, vmas: Sequence[tuple[int, int, int]]) -> None:
        """Put VMAs, up to 7 with gaps between them, into an mm's maple tree of one leaf."""
        self.words(mm + self.offset("mm_struct", "mm_mt") + 8, self.maple_leaf(vmas) & ~4 | 2)

    def xa_node(self, shift: int, slots: Mapping[int, int]) -> int:
        """Make a ``struct xa_node`` and return the entry that points to it."""
        node = self.alloc(40 + 512, 64)
        self.write(node, bytes([shift]))
        for i, entry in slots.items():
            self.words(node + 40 + 8 * i, entry)
        return node + 2

    def dentry(self, name: bytes, parent: int | None = None, *, hashed: bool = True) -> int:
        """Make a dentry; without a parent, a root."""
        address = self.alloc(192, 64)
        self.set("dentry", address, d_parent=parent or address)
        d_name = address + self.offset("dentry", "d_name")
        self.words(d_name, len(name) << 32 | 0x1234, self.string(name))
        if hashed:
            hash_at = address + self.offset("dentry", "d_hash")
            bucket = self.words(self.alloc(8), hash_at | 1)
            self.words(hash_at, 0, bucket)
        return address

    def mount(self, root: int, on: tuple[int, int] | None = None) -> int:
        """Mount the tree at dentry ``root`` on (vfsmount, dentry), and return the vfsmount."""
        mount = self.alloc(256, 64)
        parent = on[0] - 32 if on else mount
        self.words(mount + 16, parent, on[1] if on else root, root)
        return mount + 32

    def file(self, vfsmount: int, dentry: int, **members: int) -> int:
        """Make a ``struct file`` of a path."""
        address = self.make("file", {}, **members)
        self.words(address + self.offset("file", "f_path"), vfsmount, dentry)
        return address

    def user_page(self, vaddr: int, content: bytes = b"") -> int:
        """Map a page of memory at a user address, and return its physical address."""
        paddr = self.page(content)
        self.map(vaddr, paddr | P | US)
        return paddr

    def kernel(
        self, *more: Callable[[Kernel], LayoutSource], states: dict[int, PageState] | None = None, **numbers: int
    ) -> Kernel:
        """Return the kernel as the walkers take it."""
        container = FlatContainer(bytes(self.data), states)
        memory = KernelMemory(PhysicalMemory(container), ARCH.paging.kernel_map(Keys(**numbers)))
        layout = KernelLayout([self.table])
        kernel = Kernel(ARCH, memory, layout)
        for source in more:
            layout.add(source(kernel))
        return kernel
