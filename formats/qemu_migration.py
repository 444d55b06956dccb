"""QEMU's migration stream, and libvirt's header in front of it; all numbers of the stream are big-endian.

Sources of truth: QEMU's migration/{migration,savevm,ram}.c: QEMU_VM_* in migration/savevm.h, enum qemu_vm_cmd and
mig_cmd_args in migration/savevm.c, RAM_SAVE_FLAG_* in migration/ram.h, ram_save_setup(), save_page_header(), struct
MappedRamHeader in migration/ram.c (7.2 to 11.1); hw/s390x/s390-stattrib.c: cmma_load(); hw/ppc/spapr.c: htab_load();
hw/i386/{pc,pc_piix,pc_q35,microvm}.c; libvirt's src/qemu/qemu_saveimage.h: struct _virQEMUSaveHeader,
qemu_saveimage_format.h: virQEMUSaveFormat (11.2).
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
QEMU_VM_SUBSECTION = 0x05
QEMU_VM_VMDESCRIPTION = 0x06
QEMU_VM_CONFIGURATION = 0x07
QEMU_VM_COMMAND = 0x08
QEMU_VM_SECTION_FOOTER = 0x7E

MIG_CMD_POSTCOPY_ADVISE = 3
POSTCOPY_ADVISE_SIZE = 16
"""Of its argument: the page sizes of all RAM blocks, as bits, and the target's; none is for dirty bitmaps alone."""

TARGET_PAGE_BITS = b"configuration/target-page-bits"
CAPABILITIES = b"configuration/capabilities"
UUID = b"configuration/uuid"
UUID_SIZE = 16
IGNORE_SHARED = b"x-ignore-shared"
MAPPED_RAM = b"mapped-ram"

RAM_SECTION = b"ram"
RAM_SAVE_FLAG_ZERO = 0x02
RAM_SAVE_FLAG_MEM_SIZE = 0x04
RAM_SAVE_FLAG_PAGE = 0x08
RAM_SAVE_FLAG_EOS = 0x10
RAM_SAVE_FLAG_CONTINUE = 0x20
RAM_SAVE_FLAG_XBZRLE = 0x40
RAM_SAVE_FLAG_HOOK = 0x80
RAM_SAVE_FLAG_COMPRESS_PAGE = 0x100
RAM_SAVE_FLAG_MULTIFD_FLUSH = 0x200
RAM_FLAGS_MASK = 0xFFF
TARGET_PAGE_SIZE = 4096
TARGET_PAGE_SHIFT = 12

REFUSED = {
    RAM_SAVE_FLAG_XBZRLE: "xbzrle: a page's difference to what the other side has",
    RAM_SAVE_FLAG_HOOK: "RDMA's",
    RAM_SAVE_FLAG_COMPRESS_PAGE: "a compressed page (the capability compress)",
}

PAGE_RECORD = 8 + TARGET_PAGE_SIZE
"""A page's header and the page; RAM_SAVE_FLAG_CONTINUE says that it is in the same block as the page before."""
ZERO_RECORD = 8 + 1
"""A header, and the byte that the page is filled with: 0 since QEMU 2.0."""

MAPPED_RAM_HDR_VERSION = 1
MAPPED_RAM_HEADER_SIZE = 28
"""be32 version, be64 page_size, bitmap_offset, pages_offset: both of the file; 0 if the block is left out."""

# Sections besides memory's that are saved in turns with it, by the names under which they are registered.
STATTR_SECTION = b"s390-storage_attributes"
STATTR_FLAG_EOS = 0x01
STATTR_FLAG_MORE = 0x02
STATTR_FLAG_DONE = 0x08
HTAB_SECTION = b"spapr/htab"
HTAB_NONE = 0xFFFF_FFFF
HASH_PTE_SIZE_64 = 16

# Where a machine's main memory begins; x86's is cut at the hole below 4 GiB.
PC_RAM = b"pc.ram"
ARM_RAM_BASE, RISCV_RAM_BASE = 0x4000_0000, 0x8000_0000
RAM_BASES = {
    PC_RAM: 0,
    b"microvm.ram": 0,
    b"mach-virt.ram": ARM_RAM_BASE,
    b"riscv_virt_board.ram": RISCV_RAM_BASE,
    b"s390.ram": 0,
    b"ppc_spapr.ram": 0,
    b"mips_malta.ram": 0,
    b"loongson3.highram": 0,
}
MIPS_BLOCKS = (b"mips_malta.ram", b"loongson3.highram")
MIPS_MACHINES = (b"malta", b"loongson3-virt")
MIPS_LOW, MIPS_HIGH = 256 << 20, 0x9000_0000
"""The first 256 MiB are at 0; behind them, Linux uses what is as far above 0x80000000, where all of the block is."""
NODE_RAM = rb"(?:/objects/)?ram-node(\d+)"
"""libvirt's names of the blocks of a machine with NUMA nodes, which lie one behind the other."""
MACHINE_BASES = {b"pc-": 0, b"microvm": 0, b"virt-": ARM_RAM_BASE, b"s390-ccw-virtio": 0, b"pseries": 0}
MACHINE_BASES |= {b"malta": 0, b"loongson3-virt": 0}
"""By the beginning of the machine's name, if blocks have the user's names; riscv64's is "virt" without a version."""
RISCV_MACHINE = b"virt"
PC_BLOCKS = (PC_RAM, b"microvm.ram")
PC_MACHINES = (b"pc-", b"microvm")
FOUR_GIB = 1 << 32
LOW_MAX = {b"q35": (0xB000_0000, 0x8000_0000), b"microvm": (0xC000_0000, 0xC000_0000)}
LOW_MAX[b"i440fx"] = (0xE000_0000, 0xC000_0000)
"""Memory of this size or more is split; this much is then below 4 GiB, unless max-ram-below-4g says otherwise."""

# mc146818rtc's memory, as pc_cmos_init() fills it for the firmware.
RTC = b"mc146818rtc"
CMOS_SIZE = 128
CMOS_LOW = slice(0x34, 0x36)
"""Memory from CMOS_BASE to the hole below 4 GiB, in CMOS_UNIT."""
CMOS_HIGH = slice(0x5B, 0x5E)
"""Memory from 4 GiB on."""
CMOS_BASE, CMOS_UNIT = 16 << 20, 64 << 10

LIBVIRT_MAGIC = b"LibvirtQemudSave"
LIBVIRT_PARTIAL_MAGIC = b"LibvirtQemudPart"
libvirt_save_header = np.dtype(
    [("magic", "S16"), ("version", "<u4"), ("data_len", "<u4"), ("was_running", "<u4"), ("compressed", "<u4")]
)
"""The beginning of the header, in the host's byte order."""
LIBVIRT_HEADER_SIZE = 92
LIBVIRT_COMPRESSED = {1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd"}
LIBVIRT_SPARSE = 6
"""The stream as QEMU writes it with mapped-ram."""
