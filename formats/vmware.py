"""VMware's checkpoints, .vmss (a suspended machine) and .vmsn (a snapshot): groups of tagged values, little-endian.

A header, a table of groups, and in each group tags up to an empty one: 16 bits that say how long the name is, how many
indices follow it, and how many bytes the value has; two sizes mean a block, which has its size in words of its own.

Sources of truth: crash's vmware_vmss.h and vmware_vmss.c (9.0), by VMware; volatility3's layers/vmware.py (2.7).
"""

from __future__ import annotations

import numpy as np

CPTDUMP_OLD_MAGIC_NUMBER = 0xBED0BED0
"""Sizes of blocks are of 32 bits then."""
CPTDUMP_MAGIC_NUMBERS = (0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1, 0xBAD2BAD2)
"""CPTDUMP_{,PARTIAL_,RESTORED_,NORESTORE_}MAGIC_NUMBER."""

cptdumpheader = np.dtype([("id", "<u4"), ("version", "<u4"), ("numgroups", "<u4")])
cptgroupdesc = np.dtype([("name", "S64"), ("position", "<u8"), ("size", "<u8")])

TAG_SIZE = 2
TAG_NAMELEN_OFFSET = 8
TAG_NINDX_OFFSET, TAG_NINDX_MASK = 6, 0x3
TAG_VALSIZE_MASK = 0x3F
TAG_ISBLOCK = 0x3F
TAG_ISBLOCK_COMPRESSED = 0x3E

cptblock = np.dtype([("nbytes", "<u8"), ("nbytesinmem", "<u8"), ("padsize", "<u2")])
"""Behind the indices of a block: bytes in the file, bytes that they are in memory, and bytes of padding before them."""

MEMORY_GROUP = "memory"
MEMORY = "Memory"
"""Its block with the machine's memory, if there is no .vmem beside it."""
REGIONS_COUNT = "regionsCount"
REGION = ("regionPPN", "regionPageNum", "regionSize")
"""Of each region: page frame, page of the memory's file or block, pages."""

CPU_GROUP = "cpu"
NUM_VCPUS = "cpu:numVCPUs"
GPREGS = "gpregs"
gpregs = np.dtype([(f"r{name}", "<u8") for name in "ax cx dx bx bp sp si di 8 9 10 11 12 13 14 15".split()])
"""Block of each CPU, in versions without a tag for each register; the order is that of crash's struct vmssregs64."""
CR64 = "CR64"
CR64_NR = 9
IDTR = "IDTR"
IDTR_BASE = slice(2, 10)
"""In the block, behind the limit; as tags, index 1 and 2 are its halves."""
SELECTOR = "S"
SEGMENT_BASE = "S.base64"
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
EFLAGS = ("eflags", "EFLAGS")
"""Two tags of which one has what the other lacks."""
