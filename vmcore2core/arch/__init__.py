"""Architectures: one folder each, found by the ``ARCH`` constant of its ``machine.py``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

from vmcore2core.arch.base import Arch
from vmcore2core.interfaces import ByteOrder


def each_arch() -> Iterator[Arch]:
    """Yield every architecture of this package, each imported when it is its turn.

    The one of this machine comes first: most dumps are read on a machine of their own kind.
    """
    folders = [module.name for module in iter_modules(__path__) if module.ispkg]
    for name in sorted(folders, key=lambda name: name != platform.machine()):
        if find_spec(f"{__name__}.{name}.machine"):  # x86 has only what two machines share
            yield import_module(f"{__name__}.{name}.machine").ARCH


@cache
def all_archs() -> tuple[Arch, ...]:
    """Return every architecture of this package, by its name."""
    return tuple(sorted(each_arch(), key=lambda arch: arch.name))


def arch_for_machine(e_machine: int, byte_order: ByteOrder | None = None) -> Arch | None:
    """Return the architecture with this ELF machine number, or None; if two share it (MIPS), the byte order decides."""
    found = (arch for arch in each_arch() if arch.e_machine == e_machine)
    first = next(found, None)
    if first is None or not first.both_orders or byte_order in (None, first.byte_order):
        return first
    return next((arch for arch in found if arch.byte_order == byte_order), first)
