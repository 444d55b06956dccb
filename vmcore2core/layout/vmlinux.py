"""A vmlinux as layout sources: the user's, or the debug package's if it is installed.

It must be the very kernel of the dump, by build ID, else by the release in its ``linux_banner``. Its symbols, its BTF
and its DWARF are three sources. Each is opened at the first question that reaches it, and none is asked if the dump's
own tables tell all that a vmlinux of the same build could tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vmcore2core.errors import LayoutInvalid
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.bootstrap import LazySource
from vmcore2core.layout.btf import BtfSource
from vmcore2core.layout.dwarf import NAME as DWARF
from vmcore2core.layout.dwarf import DwarfSource
from vmcore2core.layout.symtab import NAME as SYMTAB
from vmcore2core.layout.symtab import SymtabSource
from vmcore2core.layout.usual_places import usual_places
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.layout.vmlinux_file import VmlinuxFile

log = logging.getLogger(__name__)

BTF = "vmlinux BTF"
BTF_SIZE_MAX = 64 << 20
TABLES = (".symtab", ".BTF", ".debug_info")


def vmlinux_sources(
    vmlinux: Path | None,
    info: VmcoreInfo,
    symbols: LayoutSource | None = None,
    types: LayoutSource | None = None,
    *,
    root: Path = Path("/"),
) -> tuple[LayoutSource, ...]:
    """Return the sources in a vmlinux, in the order to ask them; none if there is no file.

    Args:
        vmlinux: the file that the user names. Without it, the usual places of debug packages are tried if VMCOREINFO
            has a build ID; only a file with this build ID is taken.
        info: VMCOREINFO of the dump.
        symbols: the dump's own source of symbols; if it has variables, too, .symtab is not asked.
        types: the dump's own source of types; if it has any, BTF and DWARF are not asked.
        root: the folder above the usual places.

    Raises:
        LayoutInvalid: the user's file cannot be used, or belongs to another kernel.
    """
    if vmlinux is not None:
        file = VmlinuxFile(vmlinux)
        _check(file, info)
        return _Vmlinux(lambda: file, info, symbols, types, named=True).sources()
    places = [path for path in usual_places(info, root) if path.is_file()]
    return _Vmlinux(_First(places, info), info, symbols, types, named=False).sources() if places else ()


class _First:
    """Opens, once, the first file that belongs to this kernel."""

    def __init__(self, places: list[Path], info: VmcoreInfo) -> None:
        self._places = places
        self._info = info
        self._file: VmlinuxFile | None = None

    def __call__(self) -> VmlinuxFile | None:
        places, self._places = self._places, []
        for path in places:
            try:
                file = VmlinuxFile(path)
                if file.build_id != self._info.build_id:
                    log.info("%s is of another kernel: its build ID is %s", path, file.build_id)
                    continue
                _check(file, self._info)
            except LayoutInvalid as error:
                log.info("not taken: %s", error)
                continue
            log.info("taking %s: it has the dump's build ID", path)
            self._file = file
            break
        return self._file


def _check(file: VmlinuxFile, info: VmcoreInfo) -> None:
    """Check that a file belongs to the dump's kernel and has symbols or types.

    Raises:
        LayoutInvalid: it does not, or has none.
    """
    ours, theirs = info.build_id, file.build_id
    if ours is not None and theirs is not None:
        if ours.lower() != theirs:
            raise LayoutInvalid(f"{file.path} is of another kernel: its build ID is {theirs}, the dump's is {ours}")
    else:
        _check_release(file, info, theirs)
    if not any(file.section(name) for name in TABLES):
        raise LayoutInvalid(f"{file.path} is stripped: expected {', '.join(TABLES[:-1])} or {TABLES[-1]} in it")


def _check_release(file: VmlinuxFile, info: VmcoreInfo, build_id: str | None) -> None:
    without = "the dump" if build_id is not None else "it"
    same = None if info.osrelease is None else file.has_release(info.osrelease)
    if same is None:
        raise LayoutInvalid(f"{file.path} may be of any kernel: {without} has no build ID, and no release is known")
    if not same:
        raise LayoutInvalid(
            f"{file.path} is of another kernel: {without} has no build ID, and the file has no linux_banner of release "
            f"{info.osrelease}"
        )


class _Vmlinux:
    """Opens each source in a vmlinux; None if there is nothing to open, or no need."""

    def __init__(
        self,
        opened: Callable[[], VmlinuxFile | None],
        info: VmcoreInfo,
        symbols: LayoutSource | None,
        types: LayoutSource | None,
        *,
        named: bool,
    ) -> None:
        self._file = opened
        self._info = info
        self._symbols = symbols
        self._types = types
        self._named = named
        self._btf_source = LazySource(BTF, partial(self._said, self._btf))

    def sources(self) -> tuple[LayoutSource, ...]:
        symtab, dwarf = (
            LazySource(name, partial(self._said, make)) for name, make in ((SYMTAB, self._symtab), (DWARF, self._dwarf))
        )
        return symtab, self._btf_source, dwarf

    def _said(self, make: Callable[[], LayoutSource | None]) -> LayoutSource | None:
        """Open a source; if it is broken and the user named the file, report it."""
        try:
            return make()
        except LayoutInvalid as error:
            if not self._named:
                raise  # LazySource reports it with -v
            log.warning("%s", error)
            return None

    def _symtab(self) -> LayoutSource | None:
        if self._symbols is not None and self._symbols.symbol("init_task") is not None:
            return None  # kallsyms with CONFIG_KALLSYMS_ALL
        file = self._file()
        return None if file is None or file.section(".symtab") is None else SymtabSource(file, self._info)

    def _btf(self) -> LayoutSource | None:
        file = None if _knows_types(self._types) else self._file()
        section = None if file is None else file.section(".BTF")
        if file is None or section is None:
            return None
        source = BtfSource(file.data(section, BTF_SIZE_MAX), BTF, pointer_size=file.elf_class // 8)
        if not _knows_types(source):
            raise LayoutInvalid(f"{file.path}: its .BTF has no struct task_struct")
        return source

    def _dwarf(self) -> LayoutSource | None:
        # pahole makes BTF from DWARF: with BTF, DWARF has nothing to add.
        file = None if _knows_types(self._types) or _knows_types(self._btf_source) else self._file()
        return None if file is None or file.section(".debug_info") is None else DwarfSource(file)


def _knows_types(source: LayoutSource | None) -> bool:
    return source is not None and source.size("task_struct") is not None
