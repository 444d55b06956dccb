"""formats/diskdump.py against makedumpfile's C declarations, through the C compiler.

Tests formats/_cabi.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.formats.test_elf import compile_and_run
from vmcore2core.formats import diskdump
from vmcore2core.formats._cabi import offsetof

HEADERS = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
/* word: long and time_t; off: off_t and long long */
#define DECLARE(tag, word, off)                                                                                     \
  struct utsname_##tag { char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65]; }; \
  struct timeval_##tag { word tv_sec, tv_usec; };                                                                   \
  struct main_##tag { char signature[8]; int header_version; struct utsname_##tag utsname;                          \
    struct timeval_##tag timestamp; unsigned status; int block_size, sub_hdr_size; unsigned bitmap_blocks,          \
    max_mapnr, total_ram_blocks, device_blocks, written_blocks, current_cpu; int nr_cpus; };                        \
  struct sub_##tag { word phys_base; int dump_level; int split; word start_pfn, end_pfn; off offset_vmcoreinfo;     \
    word size_vmcoreinfo; off offset_note; word size_note; off offset_eraseinfo; word size_eraseinfo;               \
    off start_pfn_64, end_pfn_64, max_mapnr_64; };
typedef uint64_t u64_on_4 __attribute__((aligned(4)));
DECLARE(64, uint64_t, uint64_t)
DECLARE(32_packed, uint32_t, u64_on_4)
DECLARE(32_padded, uint32_t, uint64_t)
"""

MAIN = (
    "signature header_version utsname timestamp status block_size sub_hdr_size bitmap_blocks max_mapnr "
    "total_ram_blocks device_blocks written_blocks current_cpu nr_cpus"
).split()

SUB = {
    "phys_base": 0,
    "dump_level": 1,
    "split": 2,
    "start_pfn": 2,
    "end_pfn": 2,
    "offset_vmcoreinfo": 3,
    "size_vmcoreinfo": 3,
    "offset_note": 4,
    "size_note": 4,
    "offset_eraseinfo": 5,
    "size_eraseinfo": 5,
    "start_pfn_64": 6,
    "end_pfn_64": 6,
    "max_mapnr_64": 6,
}
"""Members of kdump_sub_header with the header_version that brought them, as diskdump_mod.h comments them."""


def offsets_by_compiler(tmp_path: Path) -> dict[str, int]:
    body = ""
    for tag in ("64", "32_packed", "32_padded"):
        body += f'printf("main_{tag} %zu\\n", sizeof(struct main_{tag}));'
        body += f'printf("sub_{tag} %zu\\n", sizeof(struct sub_{tag}));'
        body += "".join(f'printf("main_{tag}.{m} %zu\\n", offsetof(struct main_{tag}, {m}));' for m in MAIN)
        body += "".join(f'printf("sub_{tag}.{m} %zu\\n", offsetof(struct sub_{tag}, {m}));' for m in SUB)
    return compile_and_run(HEADERS + f"int main(void) {{ {body} return 0; }}", tmp_path)


def test_members_lie_where_the_compiler_has_them(tmp_path: Path) -> None:
    told = offsets_by_compiler(tmp_path)
    for (word_size, _), struct in diskdump.DISK_DUMP_HEADER.items():
        tag = "64" if word_size == 64 else "32_packed"
        assert struct.sizeof() == told[f"main_{tag}"]
        for member in MAIN:
            assert offsetof(struct, member) == told[f"main_{tag}.{member}"], (word_size, member)
    for (abi, _, version), struct in diskdump.KDUMP_SUB_HEADER.items():
        tag = abi.replace("-", "_")
        for member, since in SUB.items():
            if since <= version:
                assert offsetof(struct, member) == told[f"sub_{tag}.{member}"], (abi, version, member)
            else:
                with pytest.raises(KeyError):
                    offsetof(struct, member)
        if version == 6:
            assert struct.sizeof() == told[f"sub_{tag}"]


def test_known_offsets_of_real_files() -> None:
    """Read off a 64-bit file of makedumpfile 1.7.8 with od, and off QEMU's packed declarations."""
    assert offsetof(diskdump.DISK_DUMP_HEADER[64, "little"], "status") == 424
    assert offsetof(diskdump.DISK_DUMP_HEADER[32, "little"], "status") == 412
    assert offsetof(diskdump.KDUMP_SUB_HEADER["64", "little", 6], "max_mapnr_64") == 96
    assert offsetof(diskdump.KDUMP_SUB_HEADER["32-packed", "little", 6], "max_mapnr_64") == 72


def test_page_desc_is_24_bytes() -> None:
    for dtype in diskdump.PAGE_DESC_DTYPE.values():
        assert dtype.itemsize == 24
        assert dtype.fields is not None
        assert [dtype.fields[name][1] for name in ("offset", "size", "flags", "page_flags")] == [0, 8, 12, 16]


def test_codec_flags_are_makedumpfiles() -> None:
    assert diskdump.DUMP_DH_CODECS == 0x1 | 0x2 | 0x4 | 0x20
