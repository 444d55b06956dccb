"""What is asked of the layout, written as VMCOREINFO text: one file next to a dump instead of debug information.

The keys are the kernel's own where it exports them (the task and VMA export), and in the same grammar where it does
not; ``SIZE(struct.member)`` tells the size of a member where that matters, and ``KERNELOFFSET`` to which KASLR offset
the symbols belong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vmcore2core.interfaces import Layout
from vmcore2core.layout import asked
from vmcore2core.layout.vmcoreinfo import VmcoreInfo

INSTEAD_OF = frozenset({"SYMBOL(__start_BTF)", "SYMBOL(__stop_BTF)"})
"""Keys that lead to the dump's BTF, in whose place the text is used."""


def export_layout(layout: Layout, symbols: Layout, vmcoreinfo: VmcoreInfo, more: Iterable[str] = ()) -> Iterator[str]:
    """Yield lines of VMCOREINFO text, without newlines.

    Args:
        layout: answers for structures and constants.
        symbols: answers for symbols, which BTF does not have.
        vmcoreinfo: of the dump or vmlinux; tells which kernel it is.
        more: keys that only the architecture asks: "OFFSET(task_struct.thread.fsbase)", "SYMBOL(init_fpstate)".
    """
    for key in ("OSRELEASE", "BUILD-ID", "PAGESIZE"):
        value = vmcoreinfo.string(key)
        if value is not None:
            yield f"{key}={value}"
    yield f"KERNELOFFSET={vmcoreinfo.kernel_offset or 0:x}"
    for key in dict.fromkeys((*asked.keys(), *more)):
        if key not in INSTEAD_OF:
            yield from _lines(key, layout, symbols)


def _lines(key: str, layout: Layout, symbols: Layout) -> Iterator[str]:
    kind, _, name = key.removesuffix(")").partition("(")
    if kind == "OFFSET":
        struct, _, member = name.partition(".")
        found = layout.find_member(struct, member)
        if found is not None and found.bit_size is None:  # the grammar has no bit fields
            yield f"{key}={found.offset}"
            if found.size is not None:
                yield f"SIZE({name})={found.size}"
        return
    addresses = symbols.find_symbols(name) if kind == "SYMBOL" else ()
    number = layout.find_size(name) if kind == "SIZE" else layout.find_constant(name) if kind == "NUMBER" else None
    if len(addresses) == 1:  # the grammar has one address for a name
        yield f"{key}={addresses[0]:x}"
    elif number is not None:
        yield f"{key}={number}"
