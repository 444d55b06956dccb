"""The interface of a source of kernel layout: it may know members, sizes, symbols and constants."""

from __future__ import annotations

from abc import ABC

from vmcore2core.interfaces import Member, SymbolAt


class LayoutSource(ABC):
    """A source of facts about this kernel. None always means "not known", never an error.

    Attributes:
        name: as provenance prints it: "VMCOREINFO", "kallsyms in the dump", "BTF in the dump", "vmlinux DWARF".
    """

    name: str

    def member(self, struct: str, path: str) -> Member | None:
        """Return where ``path`` ("mm", "thread.fsbase") lies in ``struct`` (or union); sees through anonymous ones."""
        return None

    def size(self, struct: str) -> int | None:
        """Return the size of a struct or union (or typedef of one) in bytes."""
        return None

    def symbol(self, name: str) -> int | None:
        """Return a symbol's run-time address (KASLR included)."""
        return None

    def forget(self) -> None:  # noqa: B027 - most sources have nothing to release
        """Release what can be read again: memory may be scarce."""

    def all_symbols(self, name: str) -> tuple[int, ...]:
        """Return the addresses of all symbols with this name: static ones may share it."""
        address = self.symbol(name)
        return () if address is None else (address,)

    def symbol_at(self, address: int) -> SymbolAt | None:
        """Return the symbol at or before a run-time address."""
        return None

    def constant(self, name: str) -> int | None:
        """Return a number by name: NUMBER(), LENGTH(), or an enumerator."""
        return None
