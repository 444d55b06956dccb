"""QEMU's migration stream, and libvirt's header in front of it; all numbers of the stream are big-endian.

Sources of truth: QEMU's migration/{migration,savevm,ram}.c: QEMU_VM_* in migration/savevm.h, RAM_SAVE_FLAG_* in
migration/ram.h, ram_save_setup(), save_page_header() (7.2 to 10.0); hw/i386/{pc_piix,pc_q35}.c; libvirt's
src/qemu/qemu_saveimage.h: struct _virQEMUSaveHeader (9.0).
"""

from __future__ import annotations

import numpy as np

QEMU_VM_FILE_MAGIC = b"QEVM"
QEMU_VM_FILE_VERSION = 3

QEMU_VM_EOF = 0x00
QEMU_VM_SECTION_START = 0x01
QEMU_VM_SECTION_PART = 0x02
QEMU_VM_SECTION_END = 0x03
QEMU_VM_SECTION_FULL = 0x04
QEMU_VM_CONFIGURATION = 0x07
QEMU_VM_SECTION_FOOTER = 0x7E

RAM_SECTION = b"ram"
RAM_SAVE_FLAG_ZERO = 0x02
RAM_SAVE_FLAG_MEM_SIZE = 0x04
RAM_SAVE_FLAG_PAGE = 0x08
RAM_SAVE_FLAG_EOS = 0x10
RAM_SAVE_FLAG_CONTINUE = 0x20
RAM_SAVE_FLAG_MULTIFD_FLUSH = 0x200
RAM_FLAGS_MASK = 0xFFF
TARGET_PAGE_SIZE = 4096

PAGE_RECORD = 8 + TARGET_PAGE_SIZE
"""A page's header and the page, where RAM_SAVE_FLAG_CONTINUE says that it is of the block before."""
ZERO_RECORD = 8 + 1
"""A header, and the byte that the page is filled with: 0 since QEMU 2.0."""

# Where a machine's main memory begins; x86's is cut at the hole below 4 GiB.
PC_RAM = b"pc.ram"
RAM_BASES = {
    PC_RAM: 0,
    b"mach-virt.ram": 0x4000_0000,
    b"riscv_virt_board.ram": 0x8000_0000,
    b"s390.ram": 0,
    b"ppc_spapr.ram": 0,
}
FOUR_GIB = 1 << 32
Q35_LOW_MAX, Q35_LOW = 0xB000_0000, 0x8000_0000
I440FX_LOW_MAX, I440FX_LOW = 0xE000_0000, 0xC000_0000

LIBVIRT_MAGIC = b"LibvirtQemudSave"
LIBVIRT_PARTIAL_MAGIC = b"LibvirtQemudPart"
libvirt_save_header = np.dtype(
    [("magic", "S16"), ("version", "<u4"), ("data_len", "<u4"), ("was_running", "<u4"), ("compressed", "<u4")]
)
"""As it begins; it is in the host's byte order."""
LIBVIRT_HEADER_SIZE = 92
LIBVIRT_COMPRESSED = {1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd"}
