"""x86 floating-point and vector registers: notes from the kernel's XSAVE image.

The image in memory may be compacted (XSAVES, XSAVEC) and may lack components in their initial state; the notes have the
standard form with all components.

References: arch/x86/kernel/fpu/xstate.c: __copy_xstate_to_uabi_buf(), __raw_xsave_addr(); regset.c: xfpregs_get(),
xstateregs_get(), __convert_from_fxsr(); arch/x86/kernel/ptrace.c: x86_64_regsets, x86_32_regsets (Linux 5.10 to 7.2);
Intel SDM volume 1, 13.4.3 for the compacted form.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.arch.capabilities import ReadParts
from vmcore2core.arch.spec import keys_of
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import x86_fpu as fmt
from vmcore2core.interfaces import KernelView, Layout, Memory

LAYOUT_KEYS = keys_of(
    {
        "task_struct": "thread.pkru thread.fpu.state thread.fpu.fpstate thread.tls_array",
        "fpu": "fpstate __fpstate",
        "fpstate": "size user_xfeatures regs",
        "fpu_state_config": "max_size max_features",
    },
    symbols=(
        "xstate_offsets xstate_sizes xstate_fx_sw_bytes init_fpstate xstate_flags xstate_comp_offsets fpu_user_cfg "
        "fpu_user_xstate_size fpu_kernel_xstate_size elf_coredump_extra_notes_write"
    ),
    numbers="XFEATURE_MAX",
)

XFEATURES_MAX = 63
HEADER = slice(fmt.XSAVE_HEADER_OFFSET, fmt.XSAVE_HEADER_OFFSET + 16)
"""What of the header tells which components an image has, and where."""


class XsaveGeometry(NamedTuple):
    """The processor's XSAVE layout, as the kernel found it at boot.

    Attributes:
        offsets: ``xstate_offsets``: of each component in the standard form, -1 for none.
        sizes: ``xstate_sizes``.
        aligned: bits of the components that start at a multiple of 64 in the compacted form.
        compacted_offsets: ``xstate_comp_offsets``, which kernels before Linux 5.16 have instead.
        user_size: bytes of the standard form for a process.
        user_features: bits of the components that a process sees.
        sw_reserved: ``xstate_fx_sw_bytes``, which the notes have at offset 464; it begins with XCR0.
        init: the legacy area's initial state.
        has_layout_note: whether this kernel's cores have NT_X86_XSAVE_LAYOUT (since Linux 6.12).
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    aligned: int
    compacted_offsets: tuple[int, ...] | None
    user_size: int
    user_features: int
    sw_reserved: bytes
    init: bytes
    has_layout_note: bool

    def layout_note(self) -> bytes:
        """Return the descriptor of NT_X86_XSAVE_LAYOUT (arch/x86/kernel/fpu/xstate.c: dump_xsave_layout_desc())."""
        extended = [i for i in _bits(self.user_features) if i >= fmt.XFEATURE_FIRST_EXTENDED]
        records = [(i, self.sizes[i], self.offsets[i], 0) for i in extended]
        return np.array(records, fmt.xfeat_component).tobytes()


class FpuImage(NamedTuple):
    """One task's state.

    Attributes:
        data: union fpregs_state from memory.
        user_features: bits of the components that this process may see.
        pkru: ``thread.pkru``, if the kernel keeps it separately (since Linux 5.14); else None: the image has it from
            when the thread left its CPU.
    """

    data: bytes
    user_features: int
    pkru: int | None


def _bits(mask: int) -> list[int]:
    return [i for i in range(XFEATURES_MAX) if mask >> i & 1]


def find_geometry(kernel: KernelView) -> XsaveGeometry | None:
    """Return the geometry, or None if the layout does not know where the kernel keeps it.

    Raises:
        MemoryFault: it cannot be read.
        LayoutInvalid: it has impossible values.
    """
    # If the number is not known, the largest possible number is read; only components in use are looked at.
    layout = kernel.layout
    number = layout.find_constant("XFEATURE_MAX") or XFEATURES_MAX
    addresses = [
        layout.find_symbol(name) for name in ("xstate_offsets", "xstate_sizes", "xstate_fx_sw_bytes", "init_fpstate")
    ]
    sizes_known = user_size(kernel)
    offsets_at, sizes_at, sw_at, init_at = addresses
    if sizes_known is None:
        return None
    if offsets_at is None or sizes_at is None or sw_at is None or init_at is None:
        return None
    if not fmt.XFEATURE_PKRU < number <= XFEATURES_MAX:
        raise LayoutInvalid(f"XFEATURE_MAX is {number}, expected {fmt.XFEATURE_PKRU + 1} to {XFEATURES_MAX}")
    seen_size, user_features = sizes_known
    regs = layout.find_member("fpstate", "regs")
    flags_at, compacted_at = layout.find_symbol("xstate_flags"), layout.find_symbol("xstate_comp_offsets")
    flags = _ints(kernel.memory, flags_at, number) if flags_at is not None else (0,) * number
    geometry = XsaveGeometry(
        offsets=_ints(kernel.memory, offsets_at, number),
        sizes=_ints(kernel.memory, sizes_at, number),
        aligned=sum(1 << i for i, flag in enumerate(flags) if flag & fmt.XSTATE_FLAG_ALIGNED64),
        compacted_offsets=_ints(kernel.memory, compacted_at, number) if compacted_at is not None else None,
        user_size=seen_size,
        user_features=user_features,
        sw_reserved=kernel.memory.read(sw_at, fmt.SW_RESERVED.stop - fmt.SW_RESERVED.start),
        init=kernel.memory.read(init_at + (regs.offset if regs is not None else 0), fmt.FXSAVE_SIZE),
        has_layout_note=layout.find_symbol("elf_coredump_extra_notes_write") is not None,
    )
    _check(geometry)
    return geometry


def _ints(memory: Memory, address: int, count: int) -> tuple[int, ...]:
    return tuple(np.frombuffer(memory.read(address, 4 * count), "<i4").tolist())


def user_size(kernel: KernelView) -> tuple[int, int] | None:
    """Return (bytes of the standard form, its components) for processes; None if they are not known.

    Raises:
        MemoryFault: it cannot be read.
    """
    layout = kernel.layout
    config = layout.find_symbol("fpu_user_cfg")
    max_size = layout.find_member("fpu_state_config", "max_size")
    max_features = layout.find_member("fpu_state_config", "max_features")
    if config is not None and max_size is not None and max_features is not None:
        size = kernel.uint(config + max_size.offset, 4)
        return size, kernel.uint(config + max_features.offset, 8)
    # Before Linux kernel commit 2bd264bce238 ("x86/fpu: Move xstate size to fpu_*_cfg") (in v5.16).
    size_at, sw_at = layout.find_symbol("fpu_user_xstate_size"), layout.find_symbol("xstate_fx_sw_bytes")
    if size_at is None or sw_at is None:
        return None
    size = kernel.uint(size_at, 4)
    return size, kernel.uint(sw_at, 8)


def _check(geometry: XsaveGeometry) -> None:
    if not fmt.XSAVE_EXTENDED_OFFSET <= geometry.user_size <= fmt.XSAVE_SIZE_MAX:
        raise LayoutInvalid(
            f"the XSAVE image of processes has {geometry.user_size:#x} bytes, expected 0x240 to 0x10000"
        )
    if any(geometry.sw_reserved[8:]):  # the kernel only fills in the word of components
        raise LayoutInvalid(f"xstate_fx_sw_bytes is {geometry.sw_reserved.hex()}, expected zeros behind its first word")
    told = int.from_bytes(geometry.sw_reserved[:8], "little")
    if told != geometry.user_features:  # update_regset_xstate_info()
        raise LayoutInvalid(f"xstate_fx_sw_bytes has components {told:#x}, expected {geometry.user_features:#x}")
    if geometry.user_features & fmt.XFEATURE_MASK_FPSSE != fmt.XFEATURE_MASK_FPSSE:
        raise LayoutInvalid(f"processes have XSAVE components {geometry.user_features:#x}, expected 0x3 among them")
    end = fmt.XSAVE_EXTENDED_OFFSET
    for i in _bits(geometry.user_features):
        if i >= len(geometry.offsets):
            raise LayoutInvalid(f"XSAVE component {i} of processes, expected less than XFEATURE_MAX")
        start, size = geometry.offsets[i], geometry.sizes[i]
        if i >= fmt.XFEATURE_FIRST_EXTENDED and not (
            fmt.XSAVE_EXTENDED_OFFSET <= start < start + size <= geometry.user_size
        ):
            raise LayoutInvalid(
                f"XSAVE component {i} at {start:#x} with {size:#x} bytes, expected within {geometry.user_size:#x}"
            )
        end = max(end, start + size) if i >= fmt.XFEATURE_FIRST_EXTENDED else end
    if geometry.user_size != end:
        raise LayoutInvalid(
            f"the XSAVE image of processes has {geometry.user_size:#x} bytes, expected {end:#x} as its components have"
        )


def find_image(
    task: int, kernel: KernelView, *, word: int = 8, at_least: int = fmt.XSAVE_EXTENDED_OFFSET
) -> FpuImage | None:
    """Return a task's state in memory, or None if the layout does not know where it is.

    Args:
        task: ``struct task_struct *`` of a task off the CPU; the registers of others are in the processor.
        kernel: the dumped one.
        word: bytes of a pointer.
        at_least: smallest size of the state in bytes: processors without XSAVE need less than an XSAVE image.

    Raises:
        MemoryFault: it cannot be read.
        LayoutInvalid: it is not where the layout says.
    """
    layout = kernel.layout
    pkru_member = layout.find_member("task_struct", "thread.pkru")
    pkru = kernel.uint(task + pkru_member.offset, 4) if pkru_member is not None else None
    inline = layout.find_member("task_struct", "thread.fpu.state")
    if inline is not None:  # before Linux 5.16
        size_at = layout.find_symbol("fpu_kernel_xstate_size")
        if size_at is None:
            return None
        size = kernel.uint(size_at, 4)
        data = _image(kernel.memory, task + inline.offset, size, at_least)
        return FpuImage(data, (1 << XFEATURES_MAX) - 1, pkru)
    fpu = _fpu(task, layout)
    pointer, own = layout.find_member("fpu", "fpstate"), layout.find_member("fpu", "__fpstate")
    names = ("size", "user_xfeatures", "regs")
    members = [found for name in names if (found := layout.find_member("fpstate", name)) is not None]
    if fpu is None or pointer is None or own is None or len(members) != len(names):
        return None
    fpstate = kernel.uint(fpu + pointer.offset, word)
    # Larger states, for AMX, are allocated separately; their size says so.
    size = kernel.uint(fpstate + members[0].offset, 4)
    if fpstate != fpu + own.offset and size <= 4096:
        raise LayoutInvalid(f"fpu.fpstate at {fpu:#x} is {fpstate:#x}, expected {fpu + own.offset:#x}")
    user = kernel.uint(fpstate + members[1].offset, 8)
    return FpuImage(_image(kernel.memory, fpstate + members[2].offset, size, at_least), user, pkru)


class FpuImages(NamedTuple):
    """The states of many tasks, as ``FpuImage`` has one.

    Attributes:
        data: uint8[n, size].
        pkru: uint32[n], or None.
        there: bool[n], of which tasks these are the states: they have the first one's size and components.
    """

    data: U8Array
    pkru: NDArray[np.uint32] | None
    there: NDArray[np.bool_]


def find_images(
    tasks: U64Array, first: FpuImage, layout: Layout, read_parts: ReadParts, zero: Iterable[str] = ()
) -> FpuImages:
    """Return the states of many tasks off the CPU.

    Args:
        tasks: uint64[n], ``struct task_struct *``.
        first: the state of the first one.
        layout: of the kernel, which has 64 bits.
        read_parts: reads its memory.
        zero: words of ``struct thread_struct`` that the others have to be zero in; of some, the layout may not know.
    """
    size, parts, expected = len(first.data), dict[str, tuple[int, int]](), dict[str, U64Array]()
    pkru_member = layout.find_member("task_struct", "thread.pkru")
    if pkru_member is not None:
        parts["pkru"] = pkru_member.offset, 4
    for name in zero:
        member = layout.find_member("task_struct", f"thread.{name}")
        if member is not None:
            parts[name], expected[name] = (member.offset, 8), np.zeros(len(tasks), np.uint64)
    inline = layout.find_member("task_struct", "thread.fpu.state")
    if inline is not None:
        parts["data"] = inline.offset, size
    else:
        fpu = _fpu(0, layout) or 0
        own = fpu + layout.member("fpu", "__fpstate").offset
        parts["fpstate"] = fpu + layout.member("fpu", "fpstate").offset, 8
        parts["size"] = own + layout.member("fpstate", "size").offset, 4
        parts["user_xfeatures"] = own + layout.member("fpstate", "user_xfeatures").offset, 8
        parts["data"] = own + layout.member("fpstate", "regs").offset, size
        expected["fpstate"] = tasks + np.uint64(own % (1 << 64))
        expected["size"] = np.full(len(tasks), size, np.uint64)
        expected["user_xfeatures"] = np.full(len(tasks), first.user_features, np.uint64)
    found = dict(zip(parts, read_parts(tasks, list(parts.values())), strict=True))
    there = np.logical_and.reduce([known for _, known in found.values()])
    for name, values in expected.items():
        there &= found[name][0].view(f"<u{parts[name][1]}").reshape(-1) == values
    return FpuImages(found["data"][0], found["pkru"][0].view("<u4").reshape(-1) if "pkru" in found else None, there)


def _fpu(task: int, layout: Layout) -> int | None:
    """Return the address of a task's ``struct fpu``."""
    inside = layout.find_member("task_struct", "thread.fpu.fpstate")
    if inside is not None:
        member = layout.find_member("fpu", "fpstate")
        return None if member is None else task + inside.offset - member.offset
    # Since Linux kernel commit cb7ca40a3882 ("x86/fpu: Make task_struct::thread constant size") (in v6.16), it follows
    # task_struct: x86_task_fpu().
    size = layout.find_size("task_struct")
    return None if size is None else task + size


def _image(memory: Memory, address: int, size: int, at_least: int) -> bytes:
    if not at_least <= size <= fmt.XSAVE_SIZE_MAX:
        raise LayoutInvalid(f"the FPU state at {address:#x} has {size:#x} bytes, expected {at_least:#x} to 0x10000")
    return memory.read(address, size)


def fxsave(image: FpuImage, geometry: XsaveGeometry) -> bytes:
    """Return NT_FPREGSET of a 64-bit process: struct user_i387_struct, the 512 bytes of FXSAVE."""
    return fxsaves(np.frombuffer(image.data, np.uint8)[None], geometry).tobytes()


def fxsaves(images: U8Array, geometry: XsaveGeometry) -> U8Array:
    """Return NT_FPREGSET of many threads, uint8[n, 512].

    Args:
        images: uint8[n, size], union fpregs_state as it is in memory; the headers are equal.
        geometry: of the kernel.
    """
    return _legacy(images, geometry.init, int(_header(images)["xfeatures"]) & 0b11)


def _header(images: U8Array) -> np.void:
    header: np.void = np.frombuffer(images[0].tobytes(), fmt.xstate_header, 1, fmt.XSAVE_HEADER_OFFSET)[0]
    return header


def _legacy(images: U8Array, init: bytes, features: int) -> U8Array:
    out, initial = np.zeros((len(images), fmt.FXSAVE_SIZE), np.uint8), np.frombuffer(init, np.uint8)
    fp, sse = features >> fmt.XFEATURE_FP & 1, features >> fmt.XFEATURE_SSE & 1
    ymm = features >> fmt.XFEATURE_YMM & 1
    for part, present in ((fmt.FP_HEAD, fp), (fmt.MXCSR, sse | ymm), (fmt.ST_SPACE, fp), (fmt.XMM_SPACE, sse)):
        out[:, part] = images[:, part] if present else initial[part]
    return out


def xsave(image: FpuImage, geometry: XsaveGeometry) -> bytes:
    """Return NT_X86_XSTATE: the standard form, with components in their initial state filled in.

    Raises:
        LayoutInvalid: a component lies outside the image.
    """
    pkru = None if image.pkru is None else np.array([image.pkru], "<u4")
    return xsaves(np.frombuffer(image.data, np.uint8)[None], image.user_features, pkru, geometry).tobytes()


def xsaves(images: U8Array, user_features: int, pkru: NDArray[np.uint32] | None, geometry: XsaveGeometry) -> U8Array:
    """Return NT_X86_XSTATE of many threads, uint8[n, geometry.user_size].

    Args:
        images: as ``fxsaves`` takes them.
        user_features: as ``FpuImage`` has it, of all.
        pkru: uint32[n], likewise.
        geometry: of the kernel.

    Raises:
        LayoutInvalid: a component lies outside the images.
    """
    header = _header(images)
    _check_features(header, user_features, geometry)
    features = int(header["xfeatures"]) & user_features & geometry.user_features
    out = np.zeros((len(images), geometry.user_size), np.uint8)
    out[:, : fmt.FXSAVE_SIZE] = _legacy(images, geometry.init, features)
    out[:, fmt.SW_RESERVED] = np.frombuffer(geometry.sw_reserved, np.uint8)
    shown = np.zeros(1, fmt.xstate_header)
    shown["xfeatures"] = features
    out[:, fmt.XSAVE_HEADER_OFFSET : fmt.XSAVE_EXTENDED_OFFSET] = shown.view(np.uint8)
    for i in _bits(geometry.user_features & user_features):
        if i < fmt.XFEATURE_FIRST_EXTENDED:
            continue
        start, size = geometry.offsets[i], geometry.sizes[i]
        if i == fmt.XFEATURE_PKRU and pkru is not None:
            out[:, start : start + 4] = pkru[:, None].view(np.uint8)
        elif features >> i & 1:  # the initial state of all others is zero
            at = _component(i, int(header["xcomp_bv"]), geometry)
            if at + size > images.shape[1]:
                raise LayoutInvalid(f"XSAVE component {i} at {at:#x} lies outside its {images.shape[1]:#x} bytes")
            out[:, start : start + size] = images[:, at : at + size]
    return out


def _check_features(header: np.void, user_features: int, geometry: XsaveGeometry) -> None:
    """Check that image, task and kernel agree on the components."""
    xfeatures, xcomp_bv = int(header["xfeatures"]), int(header["xcomp_bv"])
    if xcomp_bv & fmt.XCOMP_BV_COMPACTED_FORMAT and xfeatures & ~xcomp_bv:
        raise LayoutInvalid(f"an XSAVE image has components {xfeatures:#x}, expected some of XCOMP_BV {xcomp_bv:#x}")
    if xcomp_bv and not xcomp_bv & fmt.XCOMP_BV_COMPACTED_FORMAT:
        raise LayoutInvalid(f"an XSAVE image has XCOMP_BV {xcomp_bv:#x}, expected 0 or its highest bit")
    known = user_features != (1 << XFEATURES_MAX) - 1
    # Components that a task must request (AMX) may be missing from its own.
    if known and (user_features ^ geometry.user_features) & ~(1 << fmt.XFEATURE_XTILE_DATA):
        raise LayoutInvalid(
            f"fpstate.user_xfeatures is {user_features:#x}, expected {geometry.user_features:#x} as fpu_user_cfg"
        )


def user_ssp(image: FpuImage, geometry: XsaveGeometry) -> bytes | None:
    """Return NT_X86_SHSTK: the shadow stack's pointer; None if the image lacks that component.

    Raises:
        LayoutInvalid: it lies outside the image.
    """
    header = np.frombuffer(image.data, fmt.xstate_header, 1, fmt.XSAVE_HEADER_OFFSET)[0]
    if not int(header["xfeatures"]) >> fmt.XFEATURE_CET_USER & 1:
        return None
    at = _component(fmt.XFEATURE_CET_USER, int(header["xcomp_bv"]), geometry)
    found = image.data[at : at + fmt.CET_USER_SSP.stop][fmt.CET_USER_SSP]
    if at < fmt.XSAVE_EXTENDED_OFFSET or len(found) < fmt.CET_USER_SSP.stop - fmt.CET_USER_SSP.start:
        raise LayoutInvalid(f"XSAVE component 11 at {at:#x} lies outside its {len(image.data):#x} bytes")
    return found


def _component(number: int, xcomp_bv: int, geometry: XsaveGeometry) -> int:
    """Return where a component is in an image."""
    if not xcomp_bv & fmt.XCOMP_BV_COMPACTED_FORMAT:
        return geometry.offsets[number]
    if geometry.compacted_offsets is not None:
        return geometry.compacted_offsets[number]
    at = fmt.XSAVE_EXTENDED_OFFSET
    for i in _bits(xcomp_bv & ((1 << number + 1) - 1)):
        if i < fmt.XFEATURE_FIRST_EXTENDED:
            continue
        if geometry.aligned >> i & 1:
            at = -(-at // 64) * 64
        if i == number:
            return at
        at += geometry.sizes[i] if i < len(geometry.sizes) else 0
    raise LayoutInvalid(f"XSAVE component {number} is not in XCOMP_BV {xcomp_bv:#x}")


def i387(legacy: bytes, cs: int, ds: int) -> bytes:
    """Return NT_FPREGSET of a 32-bit process, from FXSAVE's image.

    Args:
        legacy: ``fxsave``'s 512 bytes.
        cs: ``pt_regs.cs``: FXSAVE in 64-bit mode does not keep the selectors.
        ds: ``thread.ds``.
    """
    return _i387(legacy, cs & 0xFFFF_FFFF, ds & 0xFFFF | 0xFFFF_0000)


def i387_of_32_bit(legacy: bytes) -> bytes:
    """Return NT_FPREGSET of a process of a 32-bit kernel, where FXSAVE's pointers have selectors."""
    fx = np.frombuffer(legacy, fmt.fxregs, 1)[0]
    return _i387(legacy, int(fx["rip"]) >> 32 & 0xFFFF | int(fx["fop"]) << 16, int(fx["rdp"]) >> 32)


def _i387(legacy: bytes, fcs: int, fos: int) -> bytes:
    fx = np.frombuffer(legacy, fmt.fxregs, 1)[0]
    out = np.zeros(1, fmt.user_i387_ia32)
    out["cwd"], out["swd"] = int(fx["cwd"]) | 0xFFFF_0000, int(fx["swd"]) | 0xFFFF_0000
    out["twd"] = _tag_word(fx)
    out["fip"], out["foo"] = int(fx["rip"]) & 0xFFFF_FFFF, int(fx["rdp"]) & 0xFFFF_FFFF
    out["fcs"], out["fos"] = fcs, fos
    out["st_space"] = fx["st_space"][:, :10].reshape(-1)
    return out.tobytes()


def _tag_word(fx: np.void) -> int:
    """Return the x87 tag word, two bits a register, from FXSAVE's one bit and the registers (twd_fxsr_to_i387())."""
    top = int(fx["swd"]) >> 11 & 7
    word = 0xFFFF_0000
    for register in range(8):
        tag = 3  # empty
        if int(fx["twd"]) >> register & 1:
            value = fx["st_space"][(register - top) & 7]
            exponent = int(value[8]) | (int(value[9]) & 0x7F) << 8
            significand = int.from_bytes(value[:8].tobytes(), "little")
            if exponent == 0x7FFF:
                tag = 2
            elif exponent == 0:
                tag = 1 if significand == 0 else 2
            else:
                tag = 0 if significand >> 63 else 2
        word |= tag << 2 * register
    return word


def tls(descriptors: bytes, first: int = fmt.GDT_ENTRY_TLS_MIN) -> bytes:
    """Return NT_386_TLS from ``thread.tls_array`` (arch/x86/kernel/tls.c: fill_user_desc()).

    Args:
        descriptors: struct desc_struct[GDT_ENTRY_TLS_ENTRIES], 8 bytes each.
        first: GDT_ENTRY_TLS_MIN.
    """
    out = np.zeros(len(descriptors) // fmt.DESC_SIZE, fmt.user_desc)
    for i, desc in enumerate(np.frombuffer(descriptors, "<u8").tolist()):
        kind, present, available, long, wide, pages = (desc >> at & mask for at, mask in fmt.DESC_FLAGS)
        limit = desc & 0xFFFF | desc >> 32 & 0xF0000
        base = desc >> 16 & 0xFF_FFFF | desc >> 32 & 0xFF00_0000
        flags = (
            wide | (kind >> 2) << 1 | (not kind & 2) << 3 | pages << 4 | (not present) << 5 | available << 6 | long << 7
        )
        out[i] = (first + i, base, limit, flags)
    return out.tobytes()
