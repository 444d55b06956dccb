"""Whatever the bytes of a process are, a backtrace ends, within bounds, and without an exception."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unwind.processes import Process, Recording, compile_c, record
from tests.unwind.test_gdb import SIGNAL
from vmcore2core.unwind.frames import Backtrace, Found

pytestmark = pytest.mark.no_cover

SECONDS = 10
NUMBERS = [0, 1, 7, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
MUTATION = st.tuples(
    st.floats(0, 1, exclude_max=True), st.one_of(st.binary(min_size=1, max_size=16), st.sampled_from(NUMBERS))
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Recording, str]]:
    folder = tmp_path_factory.mktemp("programs")
    found = []
    for name, options in (("pie", ["-Wl,--hash-style=sysv"]), ("static", ["-static", "-no-pie"])):
        program = compile_c(SIGNAL, folder / name, "-DON_STACK=SA_ONSTACK", "-pthread", *options)
        found.append((record(program), str(program)))
    return found


def walk(process: Process, registers: dict[str, int]) -> Backtrace:
    """Unwind and name everything; fail where that takes too long or invents frames."""
    started = time.monotonic()
    unwinder = process.unwinder()
    found = unwinder.backtrace(registers)
    for frame in found.frames:
        image = unwinder.space.image(frame.lookup_pc)
        if image is not None:
            image.symbol(frame.lookup_pc)
    assert len(found.frames) <= 256
    assert found.end
    assert time.monotonic() - started < SECONDS
    return found


def mutated(data: bytes, mutations: list[tuple[float, bytes | int]], ranges: list[tuple[int, int]]) -> bytes:
    """Overwrite bytes at places within some ranges."""
    found = bytearray(data)
    for place, value in mutations:
        raw = value if isinstance(value, bytes) else struct.pack("<Q", value)
        low, high = ranges[int(place * 1e6) % len(ranges)]
        at = low + int(place * (high - low))
        found[at : at + len(raw)] = raw[: len(found) - at]
    return bytes(found)


def tables_of(data: bytes) -> list[tuple[int, int]]:
    """Return where a file's headers and the sections that the unwinder reads are."""
    shoff, shnum, shstrndx = (struct.unpack_from(f, data, at)[0] for f, at in (("<Q", 40), ("<H", 60), ("<H", 62)))
    sections = [struct.unpack_from("<IIQQQQ", data, shoff + 64 * i) for i in range(shnum)]
    names = sections[shstrndx][4]
    wanted = (b".eh_frame", b".eh_frame_hdr", b".dynsym", b".dynstr", b".hash", b".dynamic", b".symtab", b".strtab")
    found = [(0, 64), (64, 64 + 56 * struct.unpack_from("<H", data, 56)[0]), (shoff, shoff + 64 * shnum)]
    for section in sections:
        start = names + section[0]
        if data[start : data.index(b"\0", start)] in wanted:
            found.append((section[4], section[4] + section[5]))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(MUTATION, min_size=1, max_size=8), which=st.integers(0, 1))
def test_a_mutated_image_never_raises_or_hangs(
    recordings: list[tuple[Recording, str]], mutations: list[tuple[float, bytes | int]], which: int
) -> None:
    recording, program = recordings[which]
    (stop,) = recording.stops[0]
    process = recording.process(stop)
    number = next(vma.inode for vma in process.vmas if vma.path == program.encode() if vma.inode is not None)
    data = process.files.data[number]
    process.files.data[number] = mutated(data, mutations, tables_of(data))
    walk(process, stop.registers)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(MUTATION, min_size=1, max_size=12))
def test_a_mutated_stack_never_raises_or_hangs(
    recordings: list[tuple[Recording, str]], mutations: list[tuple[float, bytes | int]]
) -> None:
    recording, _ = recordings[0]
    (stop,) = recording.stops[0]
    process = recording.process(stop)
    low, data = process.parts[-1]
    process.parts[-1] = low, mutated(data, mutations, [(0, min(len(data), 4096))])
    walk(process, stop.registers)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(registers=st.dictionaries(st.sampled_from(["rip", "rsp", "rbp", "rbx"]), st.integers(0, (1 << 64) - 1)))
def test_any_registers_end_in_a_sentence(recordings: list[tuple[Recording, str]], registers: dict[str, int]) -> None:
    recording, _ = recordings[0]
    (stop,) = recording.stops[0]
    walk(recording.process(stop), {**stop.registers, **registers})
    walk(recording.process(stop), registers)


def minimal(program: bytes, *, stack: bytes = b"") -> Process:
    """Return a process with one image of one page, whose .eh_frame_hdr has one FDE with this program, and a stack."""
    cie = struct.pack("<IIB", 13, 0, 1) + b"zR\0" + b"\x01\x78\x10\x01\x1b"  # pcrel, sdata4
    fde_at, code_at, hdr = 0x200 + len(cie), 0x800, 0x180
    body = struct.pack("<ii", code_at - (fde_at + 8), 0x100) + b"\0" + program
    fde = struct.pack("<II", len(body) + 4, len(cie) + 4) + body
    ehdr = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    phdrs = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0x1000, 0x1000, 0x1000)
    phdrs += struct.pack("<IIQQQQQQ", 0x6474E550, 4, hdr, hdr, 0, 20, 20, 4)
    table = struct.pack("<BBBBiIii", 1, 0x1B, 3, 0x3B, 0x200 - hdr - 4, 1, code_at - hdr, fde_at - hdr)
    page = bytearray(0x1000)
    for at, piece in ((0, ehdr + phdrs), (hdr, table), (0x200, cie + fde)):
        page[at : at + len(piece)] = piece
    process = Process()
    process.map(0x10000, 0x11000, 5, "/x", process.files.add(bytes(page)))
    process.map(0x20000, 0x40000, 6)
    process.parts = [(0x20000, stack.ljust(0x20000, b"\0"))]
    return process


REGISTERS = {"rip": 0x10880, "rsp": 0x20000, "rbp": 0}
CFA_RSP_8 = b"\x0c\x07\x08\x90\x01"


def test_the_minimal_image_unwinds() -> None:
    found = walk(minimal(CFA_RSP_8, stack=struct.pack("<QQ", 0x10890, 0)), REGISTERS)
    assert [frame.pc for frame in found.frames] == [0x10880, 0x10890]
    assert found.complete
    assert "is 0" in found.end


def test_a_stack_of_endless_calls_ends_at_the_limit() -> None:
    found = walk(minimal(CFA_RSP_8, stack=struct.pack("<Q", 0x10890) * 0x3000), REGISTERS)
    assert len(found.frames) == 256
    assert found.end == "there are more than 256 frames"


def test_a_stack_pointer_that_does_not_grow_ends_the_stack() -> None:
    same = b"\x0c\x07\x00\x90\x00"  # CFA = rsp, return address at CFA
    found = walk(minimal(same, stack=struct.pack("<Q", 0x10890)), REGISTERS)
    assert len(found.frames) == 1
    assert "expected a higher one" in found.end


def test_a_return_to_what_is_no_code_ends_the_stack() -> None:
    found = walk(minimal(CFA_RSP_8, stack=struct.pack("<Q", 0x20000)), REGISTERS)
    assert "0x20000 of 0x10880 is in no executable mapping" in found.end
    assert not found.complete


def test_an_undefined_return_address_ends_the_stack_completely() -> None:
    found = walk(minimal(CFA_RSP_8 + b"\x07\x10"), REGISTERS)
    assert found.complete
    assert "has no caller" in found.end


def test_a_frame_address_of_an_unknown_register_ends_the_stack() -> None:
    found = walk(minimal(b"\x0c\x0a\x08\x90\x01"), REGISTERS)  # r10
    assert not found.complete
    assert "depends on what is not known" in found.end


def test_an_expression_that_loops_ends() -> None:
    found = walk(minimal(b"\x0f\x03\x2f\xfd\xff\x90\x01"), REGISTERS)
    assert "does not end after" in found.end


def test_a_register_that_a_function_may_change_is_not_known_in_its_caller() -> None:
    found = walk(minimal(CFA_RSP_8, stack=struct.pack("<QQ", 0x10890, 0)), {**REGISTERS, "rax": 5, "rbx": 6})
    assert 0 in found.frames[0].registers
    assert sorted(found.frames[1].registers) == [3, 6, 7, 16]  # rbx, rbp, rsp, rip


def test_two_signal_contexts_that_lead_to_each_other_end() -> None:
    process = minimal(CFA_RSP_8)
    page = bytearray(process.files.data[0])
    page[0xA00:0xA09] = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"
    process.files.data[0] = bytes(page)

    def context(sp: int) -> bytes:
        return bytes(40) + struct.pack("<18Q", *[0] * 15, sp, 0x10A00, 0)

    process.parts = [(0x20000, context(0x21000).ljust(0x1000, b"\0") + context(0x20000).ljust(0x1000, b"\0"))]
    found = walk(process, {**REGISTERS, "rip": 0x10A00})
    assert [frame.sp for frame in found.frames] == [0x20000, 0x21000]
    assert "comes back to 0x20000" in found.end


def test_a_trampoline_goes_before_call_frame_information_that_does_not_say_signal() -> None:
    process = minimal(CFA_RSP_8)
    page = bytearray(process.files.data[0])
    page[0x880:0x889] = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"
    process.files.data[0] = bytes(page)
    process.parts = [(0x20000, bytes(40) + struct.pack("<18Q", *[0] * 15, 0x20800, 0x10890, 0) + bytes(0x1000))]
    found = walk(process, REGISTERS)
    assert [frame.found for frame in found.frames[:2]] == [Found.REGISTERS, Found.SIGNAL]
    assert (found.frames[1].pc, found.frames[1].sp) == (0x10890, 0x20800)


def test_nothing_known_of_the_image_is_said() -> None:
    process = minimal(CFA_RSP_8)
    process.files.gone = {(0, 0)}
    found = walk(process, REGISTERS)
    assert "without ELF headers that are known" in found.end
