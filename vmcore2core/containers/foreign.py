"""Words for a file that no container claims: what it is, and what to do.

References: the magic numbers of file(1); crash's xendump.h; dissect.hypervisor's
c_hyperv.py.
"""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO

from vmcore2core.formats.elf import EI_CLASS, EI_DATA, EI_NIDENT, ELF_BYTE_ORDERS, ELF_CLASSES, ELFMAG

_PACKED: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x9d", "compress", "gzip -d"),
    (b"LZIP", "lzip", "lzip -d"),
    (b"\x89LZO\0\r\n\x1a\n", "lzop", "lzop -d"),
    (b"PK\x03\x04", "zip", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "7-zip", "7z x"),
)

_LKCD = "is an LKCD dump, which is not supported: write one with makedumpfile, or as /proc/vmcore has it"
_XEN = "is a xendump of Xen before 3.2, which is not supported; dump with kdump in the guest"
_HYPER_V = "is a file of Hyper-V (.vmrs, .vmcx), which is not supported; dump with kdump in the guest"

_DUMPS: tuple[tuple[bytes, str], ...] = (
    (b"\xed\x23\x8f\x61\x73\x01\x19\xa8", _LKCD),
    (b"\xa8\x19\x01\x73\x61\x8f\x23\xed", _LKCD),
    (b"\xed\xeb\x0f\xf0", _XEN),
    (b"\xee\xeb\x0f\xf0", _XEN),
    (b"\x14\x20\x28\x01", _HYPER_V),
    (b"PAGEDU", "is a Windows crash dump, not a Linux one"),
    (b"MDMP", "is a minidump of a process, not a kernel dump"),
    (b"QFI\xfb", "is a qcow2 disk image, not a kernel dump"),
    (b"KDMV", "is a VMDK disk image, not a kernel dump: the machine's memory is in its .vmem, .vmss or .vmsn"),
    (b"vhdxfile", "is a VHDX disk image, not a kernel dump"),
    (b"conectix", "is a VHD disk image, not a kernel dump"),
)

_TAR_MAGIC_AT = 257
_KERNEL_IMAGES = ((0x202, b"HdrS"), (0x38, b"ARM\x64"), (0x38, b"RSC\x05"))
"""Documentation/arch/x86/boot.rst, arch/arm64/booting.rst, arch/riscv/boot-image-header.rst: magic numbers."""
_KERNEL_IMAGE = (
    "is a kernel as it boots (vmlinuz, bzImage, Image), not a dump; --vmlinux takes the vmlinux of the kernel's debug "
    "package"
)

_LOOKED_AT = 4096
"""Bytes that tell the kind of a file without a signature."""

_MAP = "if it is memory without any header, say what is where with --map"

_ET_NAMES = {1: "object file", 2: "executable", 3: "executable or shared library", 4: "core"}


def is_kernel_image(f: BinaryIO) -> bool:
    """Tell whether a file is a kernel in the form that boot loaders load."""
    head = f.read()
    return any(head[at:].startswith(magic) for at, magic in _KERNEL_IMAGES)


def recognise(f: BinaryIO) -> str | None:
    """Return what the signature in ``f`` stands for, as the rest of a sentence; None if there is no signature."""
    head = f.read()
    for magic, what in _DUMPS:
        if head.startswith(magic):
            return what
    if is_kernel_image(io.BytesIO(head)):
        return _KERNEL_IMAGE
    if head[_TAR_MAGIC_AT:].startswith(b"ustar"):
        return "is a tar archive; unpack it first (tar -xf)"
    for magic, what, command in _PACKED:
        if head.startswith(magic):
            return f"is compressed with {what}; unpack it first ({command})"
    return _describe_elf(head) if head.startswith(ELFMAG) else None


def describe(f: BinaryIO) -> str:
    """Return what the first bytes in ``f`` look like, as the rest of a sentence after the file's name."""
    head = f.read(_LOOKED_AT)
    if not head:
        return "is empty"
    known = recognise(io.BytesIO(head))
    if known is not None:
        return known
    if b"\0" not in head and _is_text(head):
        return "is a text file, not a kernel dump"
    if not head.strip(b"\0"):
        return f"begins with {len(head)} zero bytes, which no dump format does; {_MAP}"
    return f"begins with {head[:8].hex()}, which is not the signature of a known dump format; {_MAP}"


def _describe_elf(head: bytes) -> str:
    if len(head) < EI_NIDENT + 2:
        return f"is cut off: {len(head)} bytes, which is less than an ELF header"
    if head[EI_CLASS] not in ELF_CLASSES or head[EI_DATA] not in ELF_BYTE_ORDERS:
        return (
            f"begins with {head[: EI_DATA + 1].hex()}, an ELF header with EI_CLASS {head[EI_CLASS]} and "
            f"EI_DATA {head[EI_DATA]}, each of which must be 1 or 2"
        )
    e_type = int.from_bytes(head[EI_NIDENT : EI_NIDENT + 2], ELF_BYTE_ORDERS[head[EI_DATA]])
    name = _ET_NAMES.get(e_type, f"file of type {e_type}")
    return f"begins with {head[: EI_DATA + 1].hex()}, an ELF {name}, not a core"


def _is_text(head: bytes) -> bool:
    try:
        # Incremental, because the last character may be cut.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
