"""BTF as a layout source: offsets and sizes of the kernel's types, from the dump itself or from a vmlinux.

Some 100,000 types are indexed once by their place; a structure is decoded when it is needed. BTF that was found by a
search is trusted only after every type, name and length in it was checked.

References: include/uapi/linux/btf.h, kernel/bpf/btf.c: btf_parse_hdr(), btf_type_check() (Linux 7.2).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import btf as fmt
from vmcore2core.formats.btf import BtfKind
from vmcore2core.interfaces import Member
from vmcore2core.layout.base import LayoutSource
from vmcore2core.overrides import override

DEPTH_MAX = 32  # typedef chains: kernel/bpf/btf.c allows 32 as well
ANONYMOUS_MAX = 256  # anonymous structures within one
NAME_MAX = 512  # KSYM_NAME_LEN, which kernel/bpf/btf.c allows
CANDIDATE_SIZE_MIN = 64 << 10  # the kernel's own BTF is some MiB; modules have less
CANDIDATE_SIZE_MAX = 64 << 20
PLACES_MAX = 4 * fmt.BTF_MAX_TYPES  # places where a type may begin; a kernel has 2 % more of them than types

# Words of a type by its kind: in any case, and for each of vlen.
_FIXED = np.zeros(32, np.int32)
_PER_VLEN = np.zeros(32, np.int32)
_KIND_MAX = int(max(BtfKind))  # numpy compares with a plain number without a copy in 64 bits
for _kind in set(BtfKind) - {BtfKind.UNKN}:
    _FIXED[_kind] = (fmt.TYPE_SIZE + fmt.EXTRA_FIXED.get(_kind, 0)) // 4
    _PER_VLEN[_kind] = fmt.EXTRA_PER_VLEN.get(_kind, 0) // 4


# Looked up once, because looking up a member of BtfKind takes longer than using it.
_COMPOUND = frozenset({BtfKind.STRUCT, BtfKind.UNION})
_PTR, _ARRAY, _TYPEDEF = int(BtfKind.PTR), int(BtfKind.ARRAY), int(BtfKind.TYPEDEF)
_SIZED = _COMPOUND | {BtfKind.INT, BtfKind.ENUM, BtfKind.FLOAT, BtfKind.ENUM64}
_TAGS: dict[int, str] = {BtfKind.STRUCT: "struct ", BtfKind.UNION: "union ", BtfKind.ENUM: "enum "}


class BtfType(NamedTuple):
    """One ``struct btf_type``; ``at`` is its offset in the type section."""

    at: int
    name_off: int
    kind: int
    vlen: int
    kflag: bool
    size_or_type: int


class Names:
    """Finds strings of a string section by their first eight bytes, then compares the few that match.

    Args:
        strings: the section.
        heads: uint64[len(strings) + 1], the eight bytes from each byte of it on.
        offsets: uint32[n], where the strings begin.
    """

    HEAD = 8

    def __init__(self, strings: bytes, heads: NDArray[np.uint64], offsets: NDArray[np.uint32]) -> None:
        self._strings, self._offsets = strings, offsets
        self._heads = heads[np.minimum(offsets, len(strings))]

    def find(self, name: str) -> int | None:
        """Return the position of the first string that equals this one; "" is not a name."""
        if not name:
            return None
        wanted = name.encode() + b"\0"
        mask, head = (
            np.frombuffer(part[: self.HEAD].ljust(self.HEAD, b"\0"), np.uint64)[0]
            for part in (b"\xff" * len(wanted), wanted)
        )
        hits = np.flatnonzero(self._heads & mask == head)
        for hit, offset in zip(hits.tolist(), self._offsets[hits].tolist(), strict=True):
            if self._strings.startswith(wanted, offset):
                return int(hit)
        return None


class Btf:
    """One BTF blob, of which only the header is checked.

    Args:
        data: the blob, header included.

    Raises:
        LayoutInvalid: its header is not BTF's.
    """

    def __init__(self, data: bytes) -> None:
        self.order = "<" if data[:2] == b"\x9f\xeb" else ">"
        dtype = fmt.btf_header(self.order)
        if len(data) < dtype.itemsize:
            raise LayoutInvalid(f"BTF of {len(data)} bytes, expected a header of {dtype.itemsize}")
        header = np.frombuffer(data, dtype, 1)[0]
        fields = {name: int(header[name]) for name in dtype.names or ()}
        if fields["magic"] != fmt.BTF_MAGIC or fields["version"] != fmt.BTF_VERSION:
            raise LayoutInvalid(
                f"BTF header magic {fields['magic']:#x} version {fields['version']}, "
                f"expected {fmt.BTF_MAGIC:#x} and {fmt.BTF_VERSION}"
            )
        types, strings = fields["hdr_len"] + fields["type_off"], fields["hdr_len"] + fields["str_off"]
        if max(types + fields["type_len"], strings + fields["str_len"]) > len(data) or fields["type_len"] % 4:
            raise LayoutInvalid(f"BTF sections end beyond its {len(data)} bytes, or are not aligned")
        self.types = data[types : types + fields["type_len"]]
        self.strings = data[strings : strings + fields["str_len"]]
        self._header = struct.Struct(self.order + fmt.TYPE_FORMAT)
        self._by_kind: dict[BtfKind, tuple[NDArray[np.int64], Names]] = {}

    @cached_property
    def words(self) -> NDArray[np.uint32]:
        """The type section as 32-bit words in host order."""
        return np.frombuffer(self.types, self.order + "u4").astype(np.uint32, copy=False)

    @cached_property
    def _index(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """The place of each type except void, in words of the type section, and its kind; ID 1 comes first.

        Raises:
            LayoutInvalid: a type is of an unknown kind or ends beyond the section.
        """
        info, end = self.words.view(np.int32)[1:-1], len(self.words)
        kinds = (info >> 24).astype(np.uint8) & 0x1F
        # A type may begin wherever the next word has a kind: at all types, and at a few words inside types.
        is_kind = (kinds > 0) & (kinds <= _KIND_MAX)
        if np.count_nonzero(is_kind) > PLACES_MAX:
            raise LayoutInvalid(f"BTF has more than {PLACES_MAX} places for {fmt.BTF_MAX_TYPES} types at most")
        places = np.flatnonzero(is_kind)
        kinds, info = kinds[places], info[places]
        places = places.astype(np.int32)
        ends = places + _FIXED.take(kinds) + _PER_VLEN.take(kinds) * (info & 0xFFFF)
        # Walk from type to type: most end at the next place, the others skip the places inside them.
        odd = np.flatnonzero(ends[:-1] != places[1:])
        within, following = bytearray(len(places)), 0
        for one, after in zip(odd.data, np.searchsorted(places, ends[odd]).data, strict=True):
            if one >= following:
                within[one + 1 : after] = b"\1" * (after - one - 1)
                following = after
        real = np.frombuffer(within, np.uint8) == 0
        places, kinds, ends = places[real], kinds[real], ends[real]
        wrong = np.flatnonzero(np.append(0, ends) != np.append(places, end))
        if len(wrong):
            self._refuse(int(wrong[0]) + 1, int(ends[wrong[0] - 1]) if wrong[0] else 0)
        if len(places) > fmt.BTF_MAX_TYPES:
            raise LayoutInvalid(f"BTF has {len(places)} types, expected {fmt.BTF_MAX_TYPES} at most")
        return places, kinds

    def _refuse(self, type_id: int, at: int) -> NoReturn:
        """Raise the error that says why no type begins where the previous one ends."""
        end = len(self.words)
        if at > end:
            raise LayoutInvalid(f"BTF type {type_id - 1} ends at {at * 4:#x}, beyond the types' {end * 4:#x} bytes")
        if at > end - fmt.TYPE_SIZE // 4:
            raise LayoutInvalid(f"BTF type {type_id} at {at * 4:#x} is cut off by their end")
        kind = fmt.info_kind(int(self.words[at + 1]))
        raise LayoutInvalid(f"BTF type {type_id} at {at * 4:#x} is of kind {kind}, expected 1 to {_KIND_MAX}")

    @property
    def starts(self) -> NDArray[np.int32]:
        """The place of each type except void, in words of the type section, ID 1 first; errors as of ``_index``."""
        return self._index[0]

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """The kind of each type except void, ID 1 first."""
        return self._index[1]

    def type_of(self, type_id: int) -> BtfType | None:
        """Return a type; None for void and for IDs that do not exist."""
        if not 0 < type_id <= len(self.starts):
            return None
        at = 4 * int(self.starts[type_id - 1])
        name_off, info, size = self._header.unpack_from(self.types, at)
        return BtfType(at, name_off, fmt.info_kind(info), fmt.info_vlen(info), fmt.info_kflag(info), size)

    def resolved(self, type_id: int) -> BtfType | None:
        """Return a type without typedefs and qualifiers."""
        for _ in range(DEPTH_MAX):
            found = self.type_of(type_id)
            if found is None or found.kind not in fmt.MODIFIERS:
                return found
            type_id = found.size_or_type
        return None

    def name(self, offset: int) -> str:
        """Return a string of the string section; "" if there is none of a sane length."""
        end = self.strings.find(b"\0", offset, offset + NAME_MAX)
        return self.strings[offset:end].decode("ascii", "replace") if 0 <= offset < end else ""

    @cached_property
    def _heads(self) -> NDArray[np.uint64]:
        return np.ndarray(len(self.strings) + 1, np.uint64, self.strings + bytes(Names.HEAD), strides=(1,))

    def names(self, offsets: NDArray[np.uint32]) -> Names:
        """Return the strings at these places."""
        return Names(self.strings, self._heads, offsets)

    def _named(self, kind: BtfKind) -> tuple[NDArray[np.int64], Names]:
        """Type IDs and names of all types of a kind, indexed at the first question."""
        if kind not in self._by_kind:
            which = np.flatnonzero(self.kinds == int(kind))
            self._by_kind[kind] = which + 1, self.names(self.words[self.starts[which]])
        return self._by_kind[kind]

    def find(self, name: str) -> BtfType | None:
        """Return the first structure with this name, else the first union, else the target of a typedef."""
        for kind in (BtfKind.STRUCT, BtfKind.UNION, BtfKind.TYPEDEF):
            ids, names = self._named(kind)
            position = names.find(name)
            if position is not None:
                return self.resolved(int(ids[position]))
        return None

    def places(self, kinds: Sequence[BtfKind], size: int) -> NDArray[np.int64]:
        """Return where the records (``size`` words each) of all types of these kinds begin."""
        headers = self.starts[np.isin(self.kinds, np.array(kinds, np.uint8))]
        count = (self.words[headers + 1] & 0xFFFF).astype(np.int64)
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(headers + fmt.TYPE_SIZE // 4, count) + size * within

    def records(self, found: BtfType, form: str) -> list[tuple[int, ...]]:
        """Return what follows a type: members, enumerators, the array."""
        size = struct.calcsize(self.order + form)
        count = 1 if found.kind == _ARRAY else found.vlen
        start = found.at + fmt.TYPE_SIZE
        return list(struct.iter_unpack(self.order + form, self.types[start : start + size * count]))


class BtfSource(LayoutSource):
    """Layout answers from BTF.

    Args:
        data: the blob.
        name: for provenance.
        pointer_size: bytes of a pointer; BTF does not tell.
    """

    def __init__(self, data: bytes, name: str, *, pointer_size: int) -> None:
        self.name = name
        self.btf = Btf(data)
        self.pointer_size = pointer_size
        self._structs: dict[str, BtfType | None] = {}

    def _struct(self, name: str) -> BtfType | None:
        if name not in self._structs:
            self._structs[name] = self.btf.find(name)
        return self._structs[name]

    @override
    def member(self, struct: str, path: str) -> Member | None:
        inside = self._struct(struct)
        bits, type_id, bit_size = 0, 0, 0
        for name in path.split("."):
            if inside is None or inside.kind not in _COMPOUND:
                return None
            found = self._member(inside, name, set())
            if found is None:
                return None
            type_id, offset, bit_size = found
            bits += offset
            inside = self.btf.resolved(type_id)
        size = self._size_of(type_id, 0)
        type_name = self._type_name(type_id, 0)
        if bit_size:
            unit = 8 * (size or 4)
            return Member(bits // unit * unit // 8, self.name, size or 4, bits % unit, bit_size, type_name)
        return Member(bits // 8, self.name, size, None, None, type_name)

    def _member(self, inside: BtfType, name: str, seen: set[int]) -> tuple[int, int, int] | None:
        """Return (type ID, bit offset, bit-field size) of a member, seen through anonymous ones.

        ``seen`` are the structures known not to have it: hostile structures may contain each other many times.
        """
        seen.add(inside.at)
        wanted, has_name = name.encode() + b"\0", self.btf.strings.startswith
        anonymous = []
        for name_off, type_id, offset in self.btf.records(inside, fmt.MEMBER_FORMAT):
            if name_off and not has_name(wanted, name_off):
                continue
            bit_size = offset >> fmt.BITFIELD_SIZE_SHIFT if inside.kflag else 0
            if inside.kflag:
                offset &= fmt.BITFIELD_OFFSET_MASK
            if name_off:
                return type_id, offset, bit_size
            anonymous.append((type_id, offset))
        for type_id, offset in anonymous if len(seen) < ANONYMOUS_MAX else ():
            below = self.btf.resolved(type_id)
            if below is not None and below.kind in _COMPOUND and below.at not in seen:
                found = self._member(below, name, seen)
                if found is not None:
                    return found[0], found[1] + offset, found[2]
        return None

    def _size_of(self, type_id: int, depth: int) -> int | None:
        found = self.btf.resolved(type_id)
        if found is None or depth > DEPTH_MAX:
            return None
        if found.kind == _PTR:
            return self.pointer_size
        if found.kind == _ARRAY:
            element, _, count = self.btf.records(found, fmt.ARRAY_FORMAT)[0]
            size = self._size_of(element, depth + 1)
            return None if size is None else size * count
        return found.size_or_type if found.kind in _SIZED else None

    def _type_name(self, type_id: int, depth: int) -> str | None:
        found = self.btf.type_of(type_id)
        if found is None or depth > DEPTH_MAX:
            return None if found else "void"
        if found.kind == _PTR:
            return f"{self._type_name(found.size_or_type, depth + 1)} *"
        if found.kind == _ARRAY:
            element, _, count = self.btf.records(found, fmt.ARRAY_FORMAT)[0]
            return f"{self._type_name(element, depth + 1)}[{count}]"
        if found.kind in fmt.MODIFIERS and found.kind != _TYPEDEF:
            return self._type_name(found.size_or_type, depth + 1)
        return _TAGS.get(found.kind, "") + (self.btf.name(found.name_off) or "(anonymous)")

    @override
    def size(self, struct: str) -> int | None:
        found = self._struct(struct)
        return found.size_or_type if found is not None and found.kind in _COMPOUND else None

    @override
    def constant(self, name: str) -> int | None:
        """An enumerator."""
        for form, places, names in self._enumerators:
            position = names.find(name)
            if position is not None:
                at = 4 * int(places[position])
                _, low, *high = struct.unpack_from(self.btf.order + form, self.btf.types, at)
                return int(high[0] << 32 | low) if high else int(low)
        return None

    @cached_property
    def _enumerators(self) -> list[tuple[str, NDArray[np.int64], Names]]:
        """The record form, places and names of enumerators: those of 32 bits, then those of 64 bits."""
        found = []
        for kind, form in ((BtfKind.ENUM, fmt.ENUM_FORMAT), (BtfKind.ENUM64, fmt.ENUM64_FORMAT)):
            places = self.btf.places((kind,), len(form))
            found.append((form, places, self.btf.names(self.btf.words[places])))
        return found


def validate_btf(data: bytes) -> str | None:
    """Check a whole blob: every kind, every type ID and name in range, every length.

    Returns:
        What is wrong with it, as a sentence, or None.
    """
    try:
        btf = Btf(data)
        headers = btf.starts
    except LayoutInvalid as error:
        return str(error)
    if btf.strings[:1] != b"\0" or btf.strings[-1:] != b"\0":
        return "the BTF string section does not begin and end with NUL"
    words, nr_types = btf.words, len(btf.starts) + 1
    if not (words[headers] < len(btf.strings)).all():
        return "a BTF type's name is beyond the string section"
    refers = np.isin(
        btf.kinds, [*fmt.MODIFIERS, BtfKind.PTR, BtfKind.FUNC, BtfKind.FUNC_PROTO, BtfKind.VAR, BtfKind.DECL_TAG]
    )
    if not (words[headers + 2][refers] < nr_types).all():
        return "a BTF type refers to one that does not exist"
    members = btf.places((BtfKind.STRUCT, BtfKind.UNION), len(fmt.MEMBER_FORMAT))
    if not (words[members] < len(btf.strings)).all() or not (words[members + 1] < nr_types).all():
        return "a BTF member's name or type is out of range"
    return None


def find_btf_candidates(block: bytes) -> list[tuple[int, int]]:
    """Return (offset, length) of possible BTF of a kernel that begins in a block of memory."""
    found = []
    for order in ("<", ">"):
        dtype = fmt.btf_header(order)
        magic = struct.pack(order + "HB", fmt.BTF_MAGIC, fmt.BTF_VERSION)
        at = block.find(magic)
        while at >= 0:
            if at + dtype.itemsize <= len(block):
                header = np.frombuffer(block, dtype, 1, at)[0]
                hdr_len, type_len, str_off, str_len = (
                    int(header[name]) for name in ("hdr_len", "type_len", "str_off", "str_len")
                )
                length = hdr_len + str_off + str_len
                sane = 24 <= hdr_len <= 64 and int(header["type_off"]) == 0 and str_off >= type_len and not type_len % 4
                if sane and CANDIDATE_SIZE_MIN <= length <= CANDIDATE_SIZE_MAX:
                    found.append((at, length))
            at = block.find(magic, at + 1)
    return found
