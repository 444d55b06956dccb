"""XSAVE images by the book (Intel SDM volume 1, 13.4); real kernels' are held against their cores in tests/e2e.

Tests formats/x86_fpu.py.
"""

from __future__ import annotations

import platform
import struct
import subprocess
from pathlib import Path

import pytest

from tests.needs import need
from vmcore2core.arch.x86.fpu import FpuImage, XsaveGeometry, fxsave, i387, tls, user_ssp, xsave
from vmcore2core.errors import LayoutInvalid

# Standard offsets and sizes of a processor with AVX-512, PKRU, CET and AMX.
OFFSETS = [0, 160, 576, 960, 1024, 1088, 1152, 1664, -1, 2688, -1, -1, -1, -1, -1, -1, -1, 2752, 2816]
SIZES = [160, 256, 256, 64, 64, 64, 512, 1024, -1, 8, -1, 16, 24, -1, -1, -1, -1, 64, 8192]
USER = 0b110_0000_0010_1110_0111  # x87, SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM, PKRU, TILECFG, TILEDATA
INIT = struct.pack("<HHHHQQII", 0x37F, 0, 0, 0, 0, 0, 0x1F80, 0xFFFF).ljust(512, b"\0")
GEOMETRY = XsaveGeometry(
    offsets=tuple(OFFSETS),
    sizes=tuple(SIZES),
    aligned=1 << 17 | 1 << 18,
    compacted_offsets=None,
    user_size=2816 + 8192,
    user_features=USER,
    sw_reserved=struct.pack("<Q", USER).ljust(48, b"\0"),
    init=INIT,
    has_layout_note=True,
)
COMPACTED = 1 << 63
FILL = {i: bytes([0x10 + i]) * SIZES[i] for i in range(2, 19) if SIZES[i] > 0}
LEGACY = bytes(range(1, 256)) * 2 + b"\xaa\xbb"


def image(xfeatures: int, xcomp_bv: int, places: dict[int, int], size: int = 12288) -> FpuImage:
    data = bytearray(size)
    data[:512] = LEGACY[:512]
    struct.pack_into("<QQ", data, 512, xfeatures, xcomp_bv)
    for component, at in places.items():
        data[at : at + SIZES[component]] = FILL[component]
    return FpuImage(bytes(data), USER, None)


def test_standard_form_keeps_every_component_in_its_place() -> None:
    features = 0b111 | 1 << 5 | 1 << 9 | 1 << 18
    note = xsave(image(features, 0, {i: OFFSETS[i] for i in (2, 5, 9, 18)}), GEOMETRY)
    assert len(note) == GEOMETRY.user_size
    assert note[:416] == LEGACY[:416]
    assert note[416:464] == bytes(48)
    assert struct.unpack_from("<Q", note, 464)[0] == USER
    assert struct.unpack_from("<8Q", note, 512) == (features, 0, 0, 0, 0, 0, 0, 0)
    for component in (2, 5, 9, 18):
        assert note[OFFSETS[component] :][: SIZES[component]] == FILL[component]
    assert note[1152 : 1152 + 512 + 1024] == bytes(1536)


def test_compacted_form_is_expanded_with_alignment_and_supervisor_components() -> None:
    # XCOMP_BV: AVX, PKRU, CET_U (a supervisor's), TILECFG (aligned), TILEDATA (aligned)
    xcomp = 0b111 | 1 << 9 | 1 << 11 | 1 << 17 | 1 << 18 | COMPACTED
    places = {2: 576, 9: 832, 11: 840, 17: 896, 18: 960}  # 832 + 8 + 16 = 856, aligned: 896
    note = xsave(image(0b111 | 1 << 9 | 1 << 11 | 1 << 17 | 1 << 18, xcomp, places), GEOMETRY)
    for component in (2, 9, 17, 18):
        assert note[OFFSETS[component] :][: SIZES[component]] == FILL[component], component
    assert struct.unpack_from("<Q", note, 512)[0] == 0b111 | 1 << 9 | 1 << 17 | 1 << 18
    assert FILL[11] not in note


def test_the_shadow_stacks_pointer_is_the_second_word_of_a_supervisor_component() -> None:
    xcomp = 0b111 | 1 << 9 | 1 << 11 | COMPACTED
    data = bytearray(image(0b111 | 1 << 11, xcomp, {}).data)
    struct.pack_into("<QQ", data, 840, 0x1, 0x7F00_1234_5678)
    assert user_ssp(FpuImage(bytes(data), USER, None), GEOMETRY) == struct.pack("<Q", 0x7F00_1234_5678)
    assert user_ssp(image(0b111, xcomp, {}), GEOMETRY) is None
    with pytest.raises(LayoutInvalid):
        user_ssp(image(0b111 | 1 << 11, xcomp, {}, size=848), GEOMETRY)
    with pytest.raises(LayoutInvalid):
        user_ssp(image(0b111 | 1 << 11, 0, {}), GEOMETRY)  # not in the standard form


def test_a_component_in_its_initial_state_is_zero_whatever_memory_has() -> None:
    note = xsave(image(0b11, 0b111 | COMPACTED, {2: 576}), GEOMETRY)
    assert note[576:832] == bytes(256)


def test_x87_and_sse_in_their_initial_states_come_from_the_kernels_image() -> None:
    note = xsave(image(0, 0b111 | COMPACTED, {}), GEOMETRY)
    assert note[:32] == INIT[:32]
    assert note[32:416] == bytes(384)
    legacy = fxsave(image(0b10, 0, {}), GEOMETRY)
    assert (legacy[:24], legacy[24:32], legacy[32:160]) == (INIT[:24], LEGACY[24:32], bytes(128))
    assert (legacy[160:416], legacy[416:]) == (LEGACY[160:416], bytes(96))


def test_pkru_that_the_kernel_keeps_apart_is_taken_from_there() -> None:
    at = image(0b11 | 1 << 9, 0, {9: 2688})
    note = xsave(FpuImage(at.data, at.user_features, 0x5555_5554), GEOMETRY)
    assert note[2688:2696] == struct.pack("<Q", 0x5555_5554)


def test_tables_of_older_kernels_tell_compacted_offsets_themselves() -> None:
    places = list(OFFSETS)
    places[9] = 4000
    old = GEOMETRY._replace(compacted_offsets=tuple(places))
    note = xsave(image(0b11 | 1 << 9, 0b11 | 1 << 9 | COMPACTED, {9: 4000}), old)
    assert note[2688:2696] == FILL[9]


@pytest.mark.parametrize("xcomp", [0b11 | COMPACTED, (1 << 62) - 1 | COMPACTED])
def test_an_image_that_says_what_cannot_be_is_refused(xcomp: int) -> None:
    with pytest.raises(LayoutInvalid):
        xsave(image(0b11 | 1 << 18, xcomp, {}, size=1024), GEOMETRY)


def test_the_layout_note_lists_the_extended_components() -> None:
    records = list(struct.iter_unpack("<4I", GEOMETRY.layout_note()))
    assert records[0] == (2, 256, 576, 0)
    assert [record[0] for record in records] == [2, 5, 6, 7, 9, 17, 18]


def test_i387_is_what_a_32_bit_process_would_store() -> None:
    legacy = bytearray(512)
    struct.pack_into("<HHBBHQQII", legacy, 0, 0x37F, 6 << 11, 0b1110_0000, 0, 0x1D9, 0x804_9123, 0xFFFF_D000, 0, 0)
    pi = bytes.fromhex("35c26821a2da0fc9") + b"\x00\x40"
    legacy[32:42] = pi  # st(0) is register 6
    legacy[48:58] = bytes(10)  # st(1) is register 7: zero
    legacy[144:154] = bytes(8) + b"\xff\x7f"  # st(7) is register 5: a special
    note = i387(bytes(legacy), 0x23, 0x2B)
    assert len(note) == 108
    words = struct.unpack_from("<7I", note)
    # tag word: registers 0 to 4 empty (3), 5 special (2), 6 valid (0), 7 zero (1)
    assert words == (0xFFFF037F, 0xFFFF3000, 0xFFFF4BFF, 0x804_9123, 0x23, 0xFFFF_D000, 0xFFFF002B)
    assert (note[28:38], note[98:108]) == (pi, bytes(8) + b"\xff\x7f")


def test_tls_descriptors_are_shown_as_get_thread_area_does() -> None:
    # base 0xf7fc5500, limit 0xfffff in pages, 32-bit data, writable, present, useable: as glibc asks for
    desc = 0xF7DF_F3FC_5500_FFFF
    note = tls(struct.pack("<QQQ", desc, 0, 0))
    assert struct.unpack_from("<4I", note) == (12, 0xF7FC5500, 0xFFFFF, 0b0101_0001)
    assert struct.unpack_from("<4I", note, 16) == (13, 0, 0, 0b0010_1000)


HOST = r"""
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* XCR0; offset, size and flags of each component (CPUID 0xd); an image by XSAVE, and one by XSAVEC. */
static uint8_t values[64 * 32];
static uint8_t standard[16384] __attribute__((aligned(64))), compacted[16384] __attribute__((aligned(64)));

__attribute__((target("avx512f,avx512bw"))) static void load_avx512(void)
{
	__asm__ volatile("vmovdqu64 (%0), %%zmm0; vmovdqu64 64(%0), %%zmm7; vmovdqu64 128(%0), %%zmm15;"
		"vmovdqu64 192(%0), %%zmm16; vmovdqu64 256(%0), %%zmm31; kmovq (%0), %%k1; kmovq 8(%0), %%k7"
		:: "r"(values) : "memory");
}

__attribute__((target("avx"))) static void load_avx(void)
{
	__asm__ volatile("vmovdqu (%0), %%ymm0; vmovdqu 32(%0), %%ymm15" :: "r"(values) : "memory");
}

int main(void)
{
	uint32_t a, b, c, d, low, high;
	uint64_t xcr0, more = 0;

	for (unsigned i = 0; i < sizeof values; i++)
		values[i] = i * 37 + i / 256 + 1;
	__cpuid(1, a, b, c, d);
	if (!(c & bit_OSXSAVE))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	xcr0 = (uint64_t)high << 32 | low;
	__cpuid_count(0xd, 1, a, b, c, d);
	more = a >> 1 & 1;
	fwrite(&xcr0, 8, 1, stdout);
	fwrite(&more, 8, 1, stdout);
	for (uint32_t i = 0; i < 32; i++) {
		__cpuid_count(0xd, i, a, b, c, d);
		fwrite((uint32_t[]){i < 2 ? 0 : b, i < 2 ? 0 : a, c}, 4, 3, stdout);
	}
	if ((xcr0 & 0xe4) == 0xe4)
		load_avx512();
	else if (xcr0 & 4)
		load_avx();
	__asm__ volatile("fldpi; fld1; xsave64 (%0)" :: "r"(standard), "a"(low), "d"(high) : "memory");
	if (more)
		__asm__ volatile("xsavec64 (%0)" :: "r"(compacted), "a"(low), "d"(high) : "memory");
	fwrite(standard, sizeof standard, 1, stdout);
	fwrite(compacted, sizeof compacted, 1, stdout);
	return 0;
}
"""


def test_images_of_the_host_itself(tmp_path: Path) -> None:
    """XSAVE and XSAVEC of one state, AVX-512 and all that this processor has, give the same note."""
    if platform.machine() != "x86_64":
        return
    (tmp_path / "host.c").write_text(HOST)
    subprocess.run([need("gcc"), "-O1", "-o", tmp_path / "host", tmp_path / "host.c"], check=True)
    said = subprocess.run([tmp_path / "host"], check=True, capture_output=True).stdout
    if not said:
        return  # a processor without XSAVE
    xcr0, has_xsavec = struct.unpack_from("<2Q", said)
    components = list(struct.iter_unpack("<3I", said[16 : 16 + 32 * 12]))
    standard, compacted = said[400 : 400 + 16384], said[400 + 16384 :]
    geometry = XsaveGeometry(
        offsets=tuple(offset for offset, _, _ in components),
        sizes=tuple(size for _, size, _ in components),
        aligned=sum(1 << i for i, (_, size, flags) in enumerate(components) if size and flags & 2),
        compacted_offsets=None,
        user_size=max(576, *(offset + size for i, (offset, size, _) in enumerate(components) if xcr0 >> i & 1)),
        user_features=xcr0,
        sw_reserved=bytes(48),
        init=INIT[:28] + standard[28:32] + INIT[32:],
        has_layout_note=True,
    )
    features = struct.unpack_from("<Q", standard, 512)[0]
    wanted = bytearray(standard[: geometry.user_size])
    wanted[416:464] = bytes(48)
    wanted[464:512] = bytes(48)
    assert features & 3 == 3
    assert xsave(FpuImage(standard, xcr0, None), geometry) == wanted
    assert standard[32:42] == b"\0" * 7 + b"\x80\xff\x3f"  # 1.0 on top of the x87 stack
    if has_xsavec:
        assert struct.unpack_from("<2Q", compacted, 512) == (features, xcr0 | COMPACTED)
        assert xsave(FpuImage(compacted, xcr0, None), geometry) == wanted
    if xcr0 & 0xE4 == 0xE4:
        ramp = bytes((i * 37 + i // 256 + 1) & 0xFF for i in range(320))
        assert features & 0xE0 == 0xE0
        assert wanted[160:176] + wanted[576:592] + wanted[geometry.offsets[6] :][:32] == ramp[:64]  # zmm0
        assert wanted[geometry.offsets[7] + 15 * 64 :][:64] == ramp[256:320]  # zmm31
