"""VMCOREINFO's text, read by each architecture."""

from __future__ import annotations

from collections.abc import Sequence

from tests.arch.s390x.test_paging import TEXT as S390X
from tests.fuzz.harness import Harness, Parts
from tests.fuzz.poke import DUMP
from vmcore2core.arch import all_archs
from vmcore2core.containers import open_container
from vmcore2core.layout.vmcoreinfo import VmcoreInfoSource, looks_like_vmcoreinfo, merged, parse_vmcoreinfo


def seeds() -> Sequence[bytes]:
    with open_container([DUMP]) as container:
        text = container.vmcoreinfo
    assert text is not None
    return [text, text[:1000], S390X.encode()]


def run(data: bytes) -> str:
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
    parts = Parts()
    for arch in all_archs():
        with parts.one():
            arch.claims(info)
            arch.paging.kernel_map(info)
    return parts.result


HARNESS = Harness("vmcoreinfo", seeds, run)
