"""makedumpfile's flattened format: a dump as a stream of (offset, size, bytes), all numbers big-endian.

Source of truth: makedumpfile 1.7.9, makedumpfile.h: struct makedumpfile_header, struct makedumpfile_data_header; QEMU's
dump/dump.c: write_start_flat_header(), write_buffer().
"""

from __future__ import annotations

import numpy as np

MAKEDUMPFILE_SIGNATURE = b"makedumpfile\0\0\0\0"
MAX_SIZE_MDF_HEADER = 4096
TYPE_FLAT_HEADER = 1
VERSION_FLAT_HEADER = 1
END_FLAG_FLAT_HEADER = -1

makedumpfile_header = np.dtype([("signature", "S16"), ("type", ">i8"), ("version", ">i8")])
"""At offset 0, padded to MAX_SIZE_MDF_HEADER."""

makedumpfile_data_header = np.dtype([("offset", ">i8"), ("buf_size", ">i8")])
"""Before each piece of data; both END_FLAG_FLAT_HEADER after the last one."""
