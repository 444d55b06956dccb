"""s390 stand-alone dumps: a header of one page, memory, an end marker; all big-endian.

In the extended format, memory comes in segments behind a header of one page each, without those MiB that were zeros.

Sources of truth: s390-tools' include/dump/s390_dump.h, zipl/boot/stage2dump.c (copy_lowcore_64(), find_dump_segment())
and zdump/dfi.h (2.30), MIT licence; z/Architecture Principles of Operation, SA22-7832-13, chapter 4 ("Store Status").
"""

from __future__ import annotations

import numpy as np

DF_S390_MAGIC = 0xA8190173618F23FD
DF_S390_MAGIC_EXT = 0xA8190173618F23FE
DF_S390_HDR_SIZE = 0x1000
DF_S390_CPU_MAX = 512
DF_S390_ARCH_64 = 2
DF_S390_VERSION_CPUS = 5
"""Of the format that is not extended: from here on, lc_vec is filled."""
DF_S390_EM_STR = b"DUMP_END"
DF_S390_EM_SIZE = 16

_HEADER = {
    "magic": (">u8", 0x000),
    "version": (">u4", 0x008),
    "hdr_size": (">u4", 0x00C),
    "page_size": (">u4", 0x014),
    "mem_size": (">u8", 0x018),
    "arch": (">u4", 0x048),
    "cpu_cnt": (">u2", 0x05D),
    "zlib_version_s390": ("u1", 0x061),
    "mvdump_sign": (">u8", 0x200),
    "lc_vec": (f"({DF_S390_CPU_MAX},)>u4", 0x800),
}
df_s390_hdr = np.dtype(
    {
        "names": list(_HEADER),
        "formats": [kind for kind, _ in _HEADER.values()],
        "offsets": [at for _, at in _HEADER.values()],
        "itemsize": DF_S390_HDR_SIZE,
    }
)
"""zlib_version_s390 in the extended format alone; mvdump_sign is the magic number again on volumes of several."""

df_s390_dump_segm_hdr = np.dtype(
    {
        "names": ["start", "len", "stop_marker"],
        "formats": [">u8", ">u8", ">u8"],
        "offsets": [0, 8, 16],
        "itemsize": 0x1000,
    }
)
"""stop_marker is not 0 in the last one."""

LOWCORE_SIZE = 0x2000
lowcore = np.dtype(
    {
        "names": ["vector_save_area_addr", "fprs", "gprs", "psw", "prefix", "fpc", "acrs", "ctrs"],
        "formats": [">u8", "V128", "V128", "V16", ">u4", "V4", "V64", "V128"],
        "offsets": [0x11B0, 0x1200, 0x1280, 0x1300, 0x1318, 0x131C, 0x1340, 0x1380],
        "itemsize": LOWCORE_SIZE,
    }
)
"""Offsets from a CPU's prefix of its stored registers, and of the wider ones."""

VECTOR_SAVE_AREA_ALIGN = 1024
VECTOR_SAVE_AREA_SIZE = 32 * 16

LIVE_MAGIC = b"LIVEDUMP"
"""At address 0 if zgetdump copied a running machine."""
