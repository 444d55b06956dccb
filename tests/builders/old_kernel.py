"""A small ELF dump of a kernel before 5.10, as makedumpfile reads one: VMCOREINFO, page tables, uts name, log_buf.

The layout is Linux 5.4's: kernel/printk/printk.c, kernel/crash_core.c: crash_save_vmcoreinfo_init(). Memory is
FLATMEM's, which takes the fewest keys.
"""

from __future__ import annotations

import struct
from pathlib import Path

MEMORY = 32 << 20
IMAGE = 0xFFFF_FFFF_8000_0000
DIRECT = 0xFFFF_8880_0000_0000
PGD, PUD, PMD, DIRECT_PUD, DIRECT_PMD = range(0x180_0000, 0x180_5000, 0x1000)
UTS, VARIABLES, LOG_BUF = 0x181_0000, 0x182_0000, 0x190_0000
LOG_BUF_LEN = 1 << 12
HEADER = 20  # struct printk_log with CONFIG_PRINTK_CALLER

VMCOREINFO = f"""OSRELEASE=5.4.0-old
PAGESIZE=4096
SYMBOL(init_uts_ns)={IMAGE + UTS:x}
OFFSET(uts_namespace.name)=4
SYMBOL(swapper_pg_dir)={IMAGE + PGD:x}
SYMBOL(init_top_pgt)={IMAGE + PGD:x}
SYMBOL(_stext)={IMAGE + (16 << 20):x}
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=0
NUMBER(KERNEL_IMAGE_SIZE)=536870912
SYMBOL(mem_map)={IMAGE + VARIABLES + 64:x}
SYMBOL(contig_page_data)={IMAGE + VARIABLES + 128:x}
SIZE(nodemask_t)=128
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page._refcount)=52
OFFSET(page.mapping)=24
OFFSET(page.lru)=8
OFFSET(pglist_data.node_zones)=0
OFFSET(pglist_data.nr_zones)=8
OFFSET(pglist_data.node_start_pfn)=16
OFFSET(pglist_data.node_spanned_pages)=24
SYMBOL(log_buf)={IMAGE + VARIABLES:x}
SYMBOL(log_buf_len)={IMAGE + VARIABLES + 8:x}
SYMBOL(log_first_idx)={IMAGE + VARIABLES + 12:x}
SYMBOL(clear_idx)={IMAGE + VARIABLES + 16:x}
SYMBOL(log_next_idx)={IMAGE + VARIABLES + 20:x}
SIZE(printk_log)={HEADER}
OFFSET(printk_log.ts_nsec)=0
OFFSET(printk_log.len)=8
OFFSET(printk_log.text_len)=10
OFFSET(printk_log.dict_len)=12
"""


class OldKernel:
    """The memory of such a kernel; records go round in its log buffer."""

    def __init__(self) -> None:
        self.memory = bytearray(MEMORY)
        for pud, pmd, in_pgd, in_pud in ((PUD, PMD, 511, 510), (DIRECT_PUD, DIRECT_PMD, 273, 0)):
            self._put(PGD + 8 * in_pgd, struct.pack("<Q", pud | 0x63))
            self._put(pud + 8 * in_pud, struct.pack("<Q", pmd | 0x63))
            self._put(pmd, struct.pack("<16Q", *(number << 21 | 0x1E3 for number in range(16))))
        names = ("Linux", "old", "5.4.0-old", "#1", "x86_64", "(none)")
        self._put(UTS + 4, b"".join(name.encode().ljust(65, b"\0") for name in names))
        self._put(VARIABLES + 64, struct.pack("<Q", DIRECT + (26 << 20)))
        self.first = self.next = LOG_BUF_LEN - 200

    def _put(self, paddr: int, data: bytes) -> None:
        self.memory[paddr : paddr + len(data)] = data

    def record(self, nanoseconds: int, text: bytes, level: int, caller: int, dictionary: bytes = b"") -> None:
        """Add a record as log_store() does; one that does not fit before the end stands at the start."""
        size = HEADER + len(text) + len(dictionary)
        size += -size % 4
        if self.next + size + HEADER > LOG_BUF_LEN:
            self._put(LOG_BUF + self.next, bytes(HEADER))
            self.next = 0
        head = struct.pack("<QHHHBBI", nanoseconds, size, len(text), len(dictionary), 0, level << 5 | 6, caller)
        self._put(LOG_BUF + self.next, head + text + dictionary)
        self.next += size

    def write(self, path: Path) -> Path:
        """Write the dump."""
        self._put(VARIABLES, struct.pack("<Q4I", IMAGE + LOG_BUF, LOG_BUF_LEN, self.first, 0, self.next))
        info = VMCOREINFO.encode()
        notes = struct.pack("<III", 5, 336, 1) + b"CORE".ljust(8, b"\0") + bytes(336)
        notes += struct.pack("<III", 11, len(info), 0) + b"VMCOREINFO\0\0" + info + bytes(-len(info) % 4)
        offset = 0x1000 + len(notes) + -len(notes) % 0x1000
        half = MEMORY // 2
        head = b"\x7fELF\2\1\1".ljust(16, b"\0")
        head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
        head += struct.pack("<IIQQQQQQ", 4, 0, 0x1000, 0, 0, len(notes), len(notes), 4)
        head += struct.pack("<IIQQQQQQ", 1, 7, offset + half, IMAGE + half, half, half, half, 0)
        head += struct.pack("<IIQQQQQQ", 1, 7, offset, DIRECT, 0, MEMORY, MEMORY, 0)
        path.write_bytes((head.ljust(0x1000, b"\0") + notes).ljust(offset, b"\0") + self.memory)
        return path
