"""Architectures: one module each, found by its ``ARCH`` constant."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from vmcore2core.arch.base import Arch


@cache
def all_archs() -> tuple[Arch, ...]:
    """Return every architecture of this package, by module name."""
    modules = (import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__))
    return tuple(m.ARCH for m in modules if hasattr(m, "ARCH"))


def arch_for_machine(e_machine: int) -> Arch | None:
    """Return the architecture with this ELF machine number, or None."""
    return next((a for a in all_archs() if a.e_machine == e_machine), None)
