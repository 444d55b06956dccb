"""The types of one loaded kernel module: its BTF continues the kernel's own.

References: kernel/bpf/btf.c: btf_parse_module(), btf_modules (Linux 5.11 to 7.2).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.formats import btf as fmt
from vmcore2core.formats._cabi import NUMPY_ORDER
from vmcore2core.interfaces import Layout, Member
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.btf import BtfSource, validate_btf
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.overrides import override

BTF_SIZE_MAX = 64 << 20
MODULE_NAME_LEN = 64


def with_module_types(kernel: Kernel, module: str) -> Kernel:
    """Return the kernel with a layout that also knows a module's types; the same kernel if the module has no BTF.

    Raises:
        LayoutInvalid: the module's BTF is broken.
        CorruptStructure, MemoryFault: it cannot be read.
    """
    try:
        btf = _find_module(kernel, module)
        blob = _joined(btf) if btf is not None else None
    except LayoutUnknown:
        return kernel  # before Linux 5.11, or without CONFIG_DEBUG_INFO_BTF_MODULES
    if blob is None:
        return kernel
    wrong = validate_btf(blob)
    if wrong is not None:
        raise LayoutInvalid(f"BTF of module {module}: {wrong}")
    source = BtfSource(blob, f"BTF of module {module} in the dump", pointer_size=kernel.arch.pointer_size)
    return replace(kernel, layout=KernelLayout([_Known(kernel.layout), source]))


class _Known(LayoutSource):
    """The answers of a layout, as a source."""

    name = "kernel"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @override
    def member(self, struct: str, path: str) -> Member | None:
        return self._layout.find_member(struct, path)

    @override
    def size(self, struct: str) -> int | None:
        return self._layout.find_size(struct)

    @override
    def symbol(self, name: str) -> int | None:
        return self._layout.find_symbol(name)

    @override
    def constant(self, name: str) -> int | None:
        return self._layout.find_constant(name)


def _find_module(kernel: Kernel, module: str) -> StructView | None:
    """Return a module's ``struct btf``."""
    for entry in list_for_each_entry(kernel, kernel.layout.symbol("btf_modules"), "btf_module", "list"):
        btf = entry.follow("btf", "btf")
        if btf is not None and btf.bytes_of("name", MODULE_NAME_LEN).split(b"\0", 1)[0] == module.encode():
            return btf
    return None


def _joined(btf: StructView) -> bytes | None:
    """Join the kernel's BTF and the module's, whose type IDs and names continue the kernel's."""
    base = btf.follow("base_btf", "btf")
    if base is None:
        return None
    first_types, first_strings = _sections(base)
    more_types, more_strings = _sections(btf)
    types, strings = first_types + more_types, first_strings + more_strings
    header = np.zeros(1, fmt.btf_header(NUMPY_ORDER[btf.kernel.arch.byte_order]))
    header["magic"], header["version"], header["hdr_len"] = fmt.BTF_MAGIC, fmt.BTF_VERSION, header.itemsize
    header["type_len"], header["str_off"], header["str_len"] = len(types), len(types), len(strings)
    return header.tobytes() + types + strings


def _sections(btf: StructView) -> tuple[bytes, bytes]:
    """Return the types and the strings of a ``struct btf``.

    Raises:
        LayoutInvalid: its header is not BTF's.
    """
    kernel, size, data = btf.kernel, btf.uint("data_size", size=4), btf.pointer("data")
    dtype = fmt.btf_header(NUMPY_ORDER[kernel.arch.byte_order])
    if not dtype.itemsize <= size <= BTF_SIZE_MAX:
        raise LayoutInvalid(f"BTF at {data:#x} has {size:#x} bytes, expected at most {BTF_SIZE_MAX:#x}")
    raw = kernel.memory.read(data, size)
    header = np.frombuffer(raw, dtype, 1)[0]
    fields = {name: int(header[name]) for name in dtype.names or ()}
    types, strings = fields["hdr_len"] + fields["type_off"], fields["hdr_len"] + fields["str_off"]
    ends = types + fields["type_len"], strings + fields["str_len"]
    if fields["magic"] != fmt.BTF_MAGIC or max(ends) > size:
        raise LayoutInvalid(f"BTF at {data:#x} begins {raw[:4].hex()}, expected a header of {size:#x} bytes of BTF")
    return raw[types : ends[0]], raw[strings : ends[1]]
