"""Inputs of the right shape with any contents, as hypothesis makes and shrinks them."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import btf, chains, kallsyms, notes, pagetables, vmcoreinfo
from tests.fuzz.harness import NUMBERS, Harness
from tests.fuzz.notes import note
from vmcore2core.errors import Vmcore2coreError

NAMES = st.sampled_from(
    ["task_struct", "task_struct.mm", "init_task", "swapper_pg_dir", "_stext", "phys_base", "PAGE", ""]
)
VALUES = st.one_of(st.integers(-(1 << 70), 1 << 70).map(str), st.sampled_from([f"{n:x}" for n in NUMBERS]), st.text())
LINES = st.lists(
    st.tuples(
        st.sampled_from(["OFFSET", "SYMBOL", "SIZE", "NUMBER", "LENGTH", "KERNELOFFSET", "PAGESIZE"]), NAMES, VALUES
    ),
    max_size=24,
)
NOTES = st.lists(
    st.tuples(
        st.sampled_from([b"CORE", b"LINUX", b"QEMU", b"VMCOREINFO", b"ERASEINFO", b""]),
        st.sampled_from([0, 1, 2, 6, 0x202, 0x309, 0xFFFF_FFFF]),
        st.one_of(st.binary(max_size=600), st.sampled_from([bytes(336), bytes(440), b"\xff" * 352])),
        st.sampled_from("<>"),
    ),
    max_size=6,
)
WORDS = st.lists(st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from(NUMBERS)), max_size=48)


def survives(harness: Harness, data: bytes) -> None:
    with contextlib.suppress(Vmcore2coreError):
        harness.run(data)


@settings(max_examples=60, deadline=None)
@given(LINES)
def test_vmcoreinfo_of_any_lines(lines: list[tuple[str, str, str]]) -> None:
    text = "".join(f"{key}({name})={value}\n" if "E" not in key else f"{key}={value}\n" for key, name, value in lines)
    survives(vmcoreinfo.HARNESS, text.encode("utf-8", "surrogatepass"))


@settings(max_examples=60, deadline=None)
@given(NOTES)
def test_notes_of_any_contents(parts: list[tuple[bytes, int, bytes, str]]) -> None:
    survives(notes.HARNESS, b"".join(note(*one) for one in parts))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([kallsyms, btf, chains, pagetables]).map(lambda module: module.HARNESS), WORDS)
def test_any_words(harness: Harness, words: list[int]) -> None:
    survives(harness, struct.pack(f"<{len(words)}Q", *words))
