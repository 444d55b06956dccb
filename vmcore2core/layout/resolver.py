"""The layout for the layers above: the first source that knows an answer gives it, and its name is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vmcore2core.errors import LayoutUnknown
from vmcore2core.interfaces import Member, SymbolAt
from vmcore2core.layout.base import LayoutSource

T = TypeVar("T")


class KernelLayout:
    """``interfaces.Layout`` over sources in order of preference."""

    def __init__(self, sources: Sequence[LayoutSource]) -> None:
        self._sources = list(sources)
        self._members: dict[tuple[str, str], Member | None] = {}
        self._numbers: dict[str, int | None] = {}
        self._provenance: dict[str, str] = {}
        self._distrusted: set[tuple[str, str]] = set()

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources' names in the order in which they are asked."""
        return tuple(source.name for source in self._sources)

    def only(self, prefix: str) -> KernelLayout:
        """Return a layout of only those sources whose name begins with this."""
        return KernelLayout([source for source in self._sources if source.name.startswith(prefix)])

    def add(self, source: LayoutSource) -> None:
        """Append a source; questions without an answer so far are asked again."""
        self._sources.append(source)
        self._members = {key: value for key, value in self._members.items() if value is not None}
        self._numbers = {key: value for key, value in self._numbers.items() if value is not None}

    def forget(self) -> None:
        """Release what sources can read again: BTF takes some 17 MiB. Answers so far are kept."""
        for source in self._sources:
            source.forget()

    def distrust(self, struct: str, member: str) -> bool:
        """Take a member from the next source that knows it; return whether there is one."""
        before = self._members.pop((struct, member), None) or self.find_member(struct, member)
        item = f"OFFSET({struct}.{member})"
        if before is None:
            return False
        self._distrusted.add((item, before.source))
        self._members.pop((struct, member), None)
        if self.find_member(struct, member) is not None:
            return True
        self._distrusted.discard((item, before.source))
        self._members.pop((struct, member), None)
        return False

    def provenance(self) -> dict[str, str]:
        """Return the source of each answer so far: "OFFSET(task_struct.mm)" -> source name."""
        return dict(self._provenance)

    def _ask(self, item: str, ask: Callable[[LayoutSource], T | None]) -> T | None:
        for source in self._sources:
            if (item, source.name) in self._distrusted:
                continue
            answer = ask(source)
            if answer is not None:
                self._provenance[item] = source.name
                return answer
        return None

    def find_member(self, struct: str, member: str) -> Member | None:
        """Return a member; None if no source knows it."""
        key = struct, member
        try:
            return self._members[key]
        except KeyError:
            found = self._ask(f"OFFSET({struct}.{member})", lambda source: source.member(struct, member))
            self._members[key] = found
            return found

    def member(self, struct: str, *names: str) -> Member:
        """Return the first of the members that a source knows.

        Raises:
            LayoutUnknown: no source knows any of them.
        """
        for name in names:
            found = self._members.get((struct, name)) or self.find_member(struct, name)
            if found is not None:
                return found
        raise LayoutUnknown(" or ".join(f"OFFSET({struct}.{name})" for name in names), self.source_names)

    def _find_number(self, item: str, ask: Callable[[LayoutSource], int | None]) -> int | None:
        if item not in self._numbers:
            self._numbers[item] = self._ask(item, ask)
        return self._numbers[item]

    def find_size(self, struct: str) -> int | None:
        """Return the size of a structure; None if no source knows it."""
        return self._find_number(f"SIZE({struct})", lambda source: source.size(struct))

    def size(self, struct: str) -> int:
        """Return the size of a structure.

        Raises:
            LayoutUnknown: no source knows it.
        """
        return self._known(f"SIZE({struct})", self.find_size(struct))

    def find_symbol(self, name: str) -> int | None:
        """Return the address of a symbol; None if no source knows it."""
        return self._find_number(f"SYMBOL({name})", lambda source: source.symbol(name))

    def find_symbols(self, name: str) -> tuple[int, ...]:
        """Return all addresses of a name, from the first source that knows any."""
        return self._ask(f"SYMBOL({name})", lambda source: source.all_symbols(name) or None) or ()

    def find_symbol_at(self, address: int) -> SymbolAt | None:
        """Return the symbol that holds an address; None if no source knows one."""
        return next((found for source in self._sources if (found := source.symbol_at(address)) is not None), None)

    def symbol(self, name: str) -> int:
        """Return the address of a symbol.

        Raises:
            LayoutUnknown: no source knows it.
        """
        return self._known(f"SYMBOL({name})", self.find_symbol(name))

    def find_constant(self, name: str) -> int | None:
        """Return a constant; None if no source knows it."""
        return self._find_number(f"NUMBER({name})", lambda source: source.constant(name))

    def _known(self, item: str, value: int | None) -> int:
        if value is None:
            raise LayoutUnknown(item, self.source_names)
        return value
