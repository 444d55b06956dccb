"""VMCOREINFO's text, and what each architecture makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from tests.arch.test_s390x_paging import TEXT as S390X
from tests.fuzz.harness import Harness
from tests.fuzz.poke import DUMP
from vmcore2core.arch import all_archs
from vmcore2core.containers import open_container
from vmcore2core.errors import Vmcore2coreError
from vmcore2core.layout.vmcoreinfo import VmcoreInfoSource, looks_like_vmcoreinfo, merged, parse_vmcoreinfo


def seeds() -> Sequence[bytes]:
    with open_container([DUMP]) as container:
        text = container.vmcoreinfo
    assert text is not None
    return [text, text[:1000], S390X.encode()]


def run(data: bytes) -> None:
    looks_like_vmcoreinfo(data)
    info = parse_vmcoreinfo(data)
    source = VmcoreInfoSource(merged(info, info))
    for key in list(info.values)[:100]:
        kind, _, name = key.removesuffix(")").partition("(")
        struct, _, member = name.partition(".")
        source.member(struct, member)
        source.size(name)
        source.symbol(name)
        source.constant(name)
        info.string(kind)
    for arch in all_archs():
        with contextlib.suppress(Vmcore2coreError):
            arch.claims(info)
            arch.kernel_map(info)


HARNESS = Harness("vmcoreinfo", seeds, run)
