"""kallsyms tables in memory, where VMCOREINFO says and where they are searched for."""

from __future__ import annotations

from collections.abc import Sequence

from tests.builders.kallsyms import Form, Tables, build
from tests.fuzz.harness import Choices, Harness
from tests.layout.test_kallsyms import SYMBOLS, WITNESSES
from vmcore2core.layout.kallsyms import KallsymsSource
from vmcore2core.layout.vmcoreinfo import parse_vmcoreinfo

FORMS: tuple[Form, ...] = ("place-relative", "base-relative", "absolute per-CPU")


def seeds() -> Sequence[bytes]:
    return [bytes([form, order]) + bytes(64) for form in range(3) for order in range(2)]


def damaged(choices: Choices) -> tuple[Tables, str]:
    """Return tables with some of their bytes, and of the addresses that VMCOREINFO gives, replaced."""
    form, order = FORMS[choices.take(1)[0] % 3], "<>"[choices.take(1)[0] % 2]
    tables = build(SYMBOLS, form, order=order)
    (start, piece), names = next(iter(tables.memory.pieces.items())), list(tables.addresses)
    while choices.left:
        kind = choices.below(32)
        if kind == 0:
            name = names[choices.below(len(names))]
            tables.addresses[name] = choices.word(tables.addresses[name])
        elif kind == 1:
            del piece[choices.below(len(piece) + 1) :]
        else:
            at = choices.below(len(piece) + 1)
            size = choices.below(9)
            piece[at : at + size] = choices.take(size)
    del start
    return tables, order


def run(data: bytes) -> None:
    tables, order = damaged(Choices(data))
    lines = [b"SYMBOL(%s)=%x\n" % (name.encode(), value) for name, value in WITNESSES.items()]
    info = parse_vmcoreinfo(tables.vmcoreinfo() + b"".join(lines))
    source = KallsymsSource.from_vmcoreinfo(tables.memory, info, "little" if order == "<" else "big")
    for _, _, name in SYMBOLS if source is not None else ():
        assert source is not None
        source.symbol(name)


HARNESS = Harness("kallsyms", seeds, run, 512)
