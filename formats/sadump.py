"""sadump: stand-alone dumps that the firmware of Fujitsu's PRIMEQUEST and PRIMERGY writes; little-endian, in blocks.

A partition begins with its header; the first of a set of disks has one more for the set, and a backup one before it.
Then come the dump's header, the CPUs' registers, two bitmaps of page frames, and the pages that the second one has.

Sources of truth: makedumpfile's sadump_mod.h and sadump_info.c (1.7.9), crash's sadump.h (9.0), libkdumpfile's
sadump.c, whose author saw samples; no description was ever published. Intel's SDM, volume 3, "SMRAM State Save Map".
"""

from __future__ import annotations

import numpy as np

BLOCK_SIZE = 4096
"""SADUMP_DEFAULT_BLOCK_SIZE: the only size that the known readers support."""

SADUMP_PART_SIGNATURE = b"sadump\0\0"
SADUMP_SIGNATURE = b"sadump\0\0"
MAGICNUM_OFFSET = 168
"""From here to the end of its block, the partition's header has numbers, each computed from the one before."""

sadump_part_header = np.dtype(
    [
        ("signature", "V8"),
        ("enable", "<u4"),
        ("reboot", "<u4"),
        ("compress", "<u4"),
        ("recycle", "<u4"),
        ("label", "<u4", 16),
        ("sadump_id", "V16"),
        ("disk_set_id", "V16"),
        ("vol_id", "V16"),
        ("time_stamp", "V16"),
        ("set_disk_set", "<u4"),
        ("reserve", "<u4"),
        ("used_device", "<u8"),
    ]
)
"""set_disk_set: the disk's number in its set, from 1, or 0; used_device: bytes of it that the dump has."""

sadump_media_header = np.dtype(
    [("sadump_id", "V16"), ("disk_set_id", "V16"), ("time_stamp", "V16"), ("sequential_num", "u1")]
)

sadump_disk_set_header = np.dtype([("disk_set_header_size", "<u4"), ("disk_num", "<u4"), ("disk_set_size", "<u8")])
"""disk_set_header_size in blocks."""

sadump_header = np.dtype(
    [
        ("signature", "V8"),
        ("header_version", "<u4"),
        ("reserve", "<u4"),
        ("timestamp", "V16"),
        ("status", "<u4"),
        ("compress", "<u4"),
        ("block_size", "<u4"),
        ("extra_hdr_size", "<u4"),
        ("sub_hdr_size", "<u4"),
        ("bitmap_blocks", "<u4"),
        ("dumpable_bitmap_blocks", "<u4"),
        ("max_mapnr", "<u4"),
        ("total_ram_blocks", "<u4"),
        ("device_blocks", "<u4"),
        ("written_blocks", "<u4"),
        ("current_cpu", "<u4"),
        ("nr_cpus", "<u4"),
        ("pad", "<u4"),
        # In header_version 1 and later:
        ("max_mapnr_64", "<u8"),
        ("total_ram_blocks_64", "<u8"),
        ("device_blocks_64", "<u8"),
        ("written_blocks_64", "<u8"),
    ]
)

SUB_HEADER_SIZE = 4
"""The sub-header begins with the bytes of all CPUs' states; then come nr_cpus of the first, and of the second."""
sadump_apic_state = np.dtype([("ApicId", "<u8"), ("Ldr", "<u8")])

sadump_smram_cpu_state = np.dtype(
    [
        ("Reserved1", "V464"),
        *((name, "<u4") for name in ("GdtUpper", "LdtUpper", "IdtUpper")),
        ("Reserved2", "V12"),
        ("IoEip", "<u8"),
        ("Reserved3", "V80"),
        ("Cr4", "<u4"),
        ("Reserved4", "V72"),
        *((name, "<u4") for name in "GdtLower GdtLimit IdtLower IdtLimit LdtLower LdtLimit LdtInfo".split()),
        ("Reserved5", "V48"),
        ("Eptp", "<u8"),
        ("EptpSetting", "<u4"),
        ("Reserved6", "V20"),
        ("Smbase", "<u4"),
        ("SmmRevisionId", "<u4"),
        ("IoInstructionRestart", "<u2"),
        ("AutoHaltRestart", "<u2"),
        ("Reserved7", "V24"),
        *((f"R{i}", "<u8") for i in range(15, 7, -1)),
        *((name, "<u8") for name in "Rax Rcx Rdx Rbx Rsp Rbp Rsi Rdi IoMemAddr".split()),
        *((name, "<u4") for name in "IoMisc Es Cs Ss Ds Fs Gs Ldtr Tr".split()),
        *((name, "<u8") for name in "Dr7 Dr6 Rip Ia32Efer Rflags Cr3 Cr0".split()),
    ]
)
"""The registers that the processor saved when it entered system management mode, without the bases of fs and gs."""

GENERAL = tuple(f"R{name}" for name in "15 14 13 12 11 10 9 8 ax cx dx bx sp bp si di ip".split())
"""The ones that user_regs_struct has under the same name in lower case."""
SEGMENTS = ("Es", "Cs", "Ss", "Ds", "Fs", "Gs")
EFER_LMA = 1 << 10
