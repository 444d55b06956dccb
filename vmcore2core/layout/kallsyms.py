"""kallsyms, the kernel's own symbol table, read from the dump.

Addresses are 32-bit offsets. Their base has changed twice between kernels. So the form is chosen that agrees with the
symbols in VMCOREINFO, and a table that agrees in no form is refused.

References: kernel/kallsyms.c: kallsyms_sym_address(); scripts/kallsyms.c: write_src() (Linux 4.18 to 7.2);
kernel/vmcore_info.c for the tables' addresses, since Linux 6.0.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import ByteOrder, Memory, SymbolAt
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.kallsyms_names import SymbolNames, read_tokens
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.overrides import override

NAME = "kallsyms in the dump"
SYMBOLS_MAX = 1 << 24
WITNESSES = ("_stext", "init_uts_ns", "swapper_pg_dir", "init_task", "prb", "clear_seq", "node_online_map")

Form = Literal["place-relative", "base-relative", "base-relative, absolute per-CPU"]
FORMS: tuple[Form, ...] = ("place-relative", "base-relative, absolute per-CPU", "base-relative")


class KallsymsTables(NamedTuple):
    """Kernel virtual addresses of the tables; ``relative_base`` is None if the kernel has none."""

    names: int
    num_syms: int
    token_table: int
    token_index: int
    offsets: int
    relative_base: int | None


def known_symbols(info: VmcoreInfo) -> dict[str, int]:
    """Return the symbols in VMCOREINFO that a table is checked against."""
    return {name: address for name in WITNESSES if (address := info.symbol(name)) is not None}


class KallsymsSource(LayoutSource):
    """Symbols from the dump's kallsyms tables.

    Args:
        memory: kernel virtual memory.
        tables: their addresses.
        byte_order: of the kernel.
        witnesses: symbols known from elsewhere; the table must agree with them.
        name: how the tables were found, for provenance.
        word: bytes of an ``unsigned long``.
        form: of the table, if the caller checks the answers in another way.

    Raises:
        LayoutInvalid: the tables are broken, or agree with the witnesses in no known form.
        MemoryFault: they cannot be read.
    """

    def __init__(
        self,
        memory: Memory,
        tables: KallsymsTables,
        byte_order: ByteOrder,
        witnesses: dict[str, int],
        name: str = NAME,
        *,
        word: int = 8,
        form: Form | None = None,
    ) -> None:
        self.name = name
        self._memory = memory
        self._tables = tables
        self._order = byte_order
        self._word = word
        self._code = "<" if byte_order == "little" else ">"
        self.num_syms = int.from_bytes(memory.read(tables.num_syms, 4), byte_order)
        if not 0 < self.num_syms <= SYMBOLS_MAX:
            raise LayoutInvalid(
                f"kallsyms_num_syms at {tables.num_syms:#x} is {self.num_syms}, expected 1 to {SYMBOLS_MAX}"
            )
        self.form = form or self._form(witnesses)

    @classmethod
    def from_vmcoreinfo(
        cls, memory: Memory, info: VmcoreInfo, byte_order: ByteOrder, word: int = 8
    ) -> KallsymsSource | None:
        """Return the source at VMCOREINFO's SYMBOL(kallsyms_*); None if it lacks them (before Linux 6.0)."""
        keys = ("names", "num_syms", "token_table", "token_index", "offsets")
        found = [address for key in keys if (address := info.symbol(f"kallsyms_{key}")) is not None]
        if len(found) != len(keys):
            return None
        names, num_syms, token_table, token_index, offsets = found
        relative_base = info.symbol("kallsyms_relative_base")
        tables = KallsymsTables(names, num_syms, token_table, token_index, offsets, relative_base)
        return cls(memory, tables, byte_order, known_symbols(info), word=word)

    @cached_property
    def _names(self) -> SymbolNames:
        tables = self._tables
        tokens = read_tokens(self._memory, tables.token_table, tables.token_index, self._order)
        return SymbolNames(self._memory, tables.names, self.num_syms, tokens, tables.token_table, self._order)

    @cached_property
    def _offsets(self) -> NDArray[np.int32]:
        return np.frombuffer(self._memory.read(self._tables.offsets, 4 * self.num_syms), self._code + "i4").astype(
            np.int32
        )

    @cached_property
    def _base(self) -> int:
        assert self._tables.relative_base is not None  # noqa: S101 - called for base-relative forms only
        return int.from_bytes(self._memory.read(self._tables.relative_base, self._word), self._order)

    def _address(self, index: int, form: Form) -> int:
        offset = int(self._offsets[index])
        if form == "place-relative":
            address = self._tables.offsets + 4 * index + offset
        elif form == "base-relative":
            address = self._base + (offset & 0xFFFF_FFFF)
        else:
            address = offset if offset >= 0 else self._base - 1 - offset
        return address & (1 << 8 * self._word) - 1  # as the kernel's own arithmetic wraps

    def _form(self, witnesses: dict[str, int]) -> Form:
        """Return the form in which the table agrees with every witness that it has."""
        forms = FORMS[:1] if self._tables.relative_base is None else FORMS[1:]
        heard = {name: indices for name in witnesses if (indices := self._names.indices(name))}
        for form in forms:
            if heard and all(
                witnesses[name] in {self._address(i, form) for i in indices} for name, indices in heard.items()
            ):
                return form
        told = ", ".join(f"{name}={witnesses[name]:#x}" for name in heard or witnesses)
        raise LayoutInvalid(f"kallsyms at {self._tables.names:#x} does not agree with VMCOREINFO ({told})")

    @override
    def symbol(self, name: str) -> int | None:
        """If several static symbols have the name, the first."""
        return next(iter(self.all_symbols(name)), None)

    @override
    def all_symbols(self, name: str) -> tuple[int, ...]:
        return tuple(self._address(index, self.form) for index in self._names.indices(name))

    @override
    def symbol_at(self, address: int) -> SymbolAt | None:
        """Follows get_symbol_pos() in kernel/kallsyms.c."""
        addresses, indices = self._by_address
        after = int(np.searchsorted(addresses, np.uint64(address), "right"))
        if not after:
            return None
        start = int(addresses[after - 1])
        first = int(np.searchsorted(addresses, np.uint64(start), "left"))
        end = int(addresses[after]) if after < len(addresses) else start
        return SymbolAt(self._names.name(int(indices[first])), start, end - start)

    @cached_property
    def _by_address(self) -> tuple[U64Array, NDArray[np.int64]]:
        """The addresses of all symbols, ascending, and the position of each in the table."""
        offsets = self._offsets.astype(np.int64)
        addresses: U64Array
        if self.form == "place-relative":
            places = offsets + 4 * np.arange(len(offsets), dtype=np.int64)
            addresses = places.view(np.uint64) + np.uint64(self._tables.offsets)
        elif self.form == "base-relative":
            addresses = (offsets & 0xFFFF_FFFF).view(np.uint64) + np.uint64(self._base)
        else:
            moved = (-1 - offsets).view(np.uint64) + np.uint64(self._base)
            addresses = np.where(offsets >= 0, offsets.view(np.uint64), moved)
        addresses &= np.uint64((1 << 8 * self._word) - 1)
        order = np.argsort(addresses, kind="stable")
        return addresses[order], order
