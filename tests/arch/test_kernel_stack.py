"""Hand-made kernel stacks with frame pointers: interrupts, and broken stacks. tests/e2e has real ones.

Tests arch/arm64/kernel_stack.py, arch/ppc64le/kernel_stack.py, arch/riscv64/kernel_stack.py,
arch/s390x/kernel_stack.py, process/kernelstack.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from tests.builders.kernelimage import Offsets, Table
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.arm64.kernel_stack import Arm64Unwinder
from vmcore2core.arch.kernel_stack import KernelUnwinder
from vmcore2core.arch.ppc64le.kernel_stack import Ppc64leUnwinder
from vmcore2core.arch.riscv64.kernel_stack import Riscv64Unwinder
from vmcore2core.arch.s390x.kernel_stack import S390xUnwinder
from vmcore2core.arch.spec import CpuNote
from vmcore2core.errors import NotMapped
from vmcore2core.interfaces import MemoryAndLayout
from vmcore2core.layout.resolver import KernelLayout

STACK = 0xFFFF_8000_8000_0000
TEXT = 0xFFFF_8000_0800_0000
TASK = 0xFFFF_8000_0000_0000


class Words:
    """Kernel memory of 64-bit words."""

    def __init__(self, words: Mapping[int, int]) -> None:
        self.words = words

    def read(self, address: int, size: int) -> bytes:
        if address not in self.words or size != 8:
            raise NotMapped(address)
        return struct.pack("<Q", self.words[address])


ARM64: Offsets = {
    "task_struct": {
        "thread.cpu_context.fp": (80, 8),
        "thread.cpu_context.sp": (88, 8),
        "thread.cpu_context.pc": (96, 8),
    },
    "pt_regs": {"regs": (0, 248), "sp": (248, 8), "pc": (256, 8), "stackframe": (296, 24)},
    "frame_record_meta": {"type": (16, 8)},
}
RISCV64: Offsets = {
    "task_struct": {"thread.ra": (80, 8), "thread.sp": (88, 8), "thread.s": (96, 96)},
    "pt_regs": {"epc": (0, 8), "ra": (8, 8), "sp": (16, 8), "s0": (64, 8), "status": (256, 8)},
}


def arm64(words: Mapping[int, int], *, without: str = "") -> Arm64Unwinder:
    offsets = {tag: members for tag, members in ARM64.items() if tag != without}
    return Arm64Unwinder(MemoryAndLayout(Words(words), KernelLayout([Table(offsets, constants={"VA_BITS": 48})])))


def riscv64(words: Mapping[int, int]) -> Riscv64Unwinder:
    symbols = {"handle_exception": TEXT + 0x100, "ret_from_exception_end": TEXT + 0x200, "ret_from_fork": TEXT + 0x300}
    return Riscv64Unwinder(MemoryAndLayout(Words(words), KernelLayout([Table(RISCV64, symbols=symbols)])))


def off_cpu(unwinder: KernelUnwinder) -> tuple[list[tuple[int, str, bool]], bool, str]:
    trace = unwinder.trace(unwinder.switched_out(KernelAddr(TASK)))
    return [(frame.pc, frame.found_by, frame.exact) for frame in trace.frames], trace.end.complete, trace.end.why


def context(fp: int) -> dict[int, int]:
    return {TASK + 80: fp, TASK + 88: STACK, TASK + 96: TEXT}


def record(at: int, *words: int) -> dict[int, int]:
    return {at + 8 * i: word for i, word in enumerate(words)}


def test_arm64_crosses_an_exception_by_its_registers() -> None:
    regs = STACK + 0x100
    words = {
        **context(STACK + 0x20),
        **record(STACK + 0x20, regs + 296, TEXT + 0x40),
        **record(regs + 296, 0, 0, 2),
        regs + 256: TEXT + 0x1000,
        regs + 248: STACK + 0x300,
        regs + 8 * 29: STACK + 0x310,
        **record(STACK + 0x310, STACK + 0x400, TEXT + 0x2000),
        **record(STACK + 0x400, 0, 0, 1),
    }
    assert off_cpu(arm64(words)) == (
        [
            (TEXT, "switch frame", False),
            (TEXT + 0x40, "frame pointer", False),
            (TEXT + 0x1000, "exception frame", True),
            (TEXT + 0x2000, "frame pointer", False),
        ],
        True,
        "the end of the stack",
    )


def test_arm64_has_addresses_without_their_authentication_codes() -> None:
    signed = (TEXT + 0x40) & ~(0x7F << 48) | 1 << 55
    words = {**context(STACK + 0x20), **record(STACK + 0x20, STACK + 0x40, signed), **record(STACK + 0x40, 0, 0, 1)}
    assert [pc for pc, *_ in off_cpu(arm64(words))[0]] == [TEXT, TEXT + 0x40]


def test_arm64_before_6_13_ends_with_an_empty_record() -> None:
    words = {**context(STACK + 0x20), **record(STACK + 0x20, 0, 0)}
    assert off_cpu(arm64(words, without="frame_record_meta"))[1:] == (True, "the end of the stack")


def test_arm64_before_5_11_ends_with_the_place_in_user_mode() -> None:
    words = {**context(STACK + 0x20), **record(STACK + 0x20, 0, 0x40_1000)}
    assert off_cpu(arm64(words))[1:] == (True, "user mode")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({**context(0x1000)}, f"the frame pointer of {TEXT:#x} is 0x1000"),
        ({**context(STACK + 4)}, f"the frame pointer of {TEXT:#x} is {STACK + 4:#x}"),
        ({**context(STACK + 0x20)}, "the stack cannot be read: address 0xffff800080000020 is not mapped"),
        (
            {**context(STACK + 0x20), **record(STACK + 0x20, 0, 0, 7)},
            f"the frame record at {STACK + 0x20:#x} is of kind 7, expected 1 or 2",
        ),
    ],
)
def test_arm64_says_what_is_broken(words: Mapping[int, int], why: str) -> None:
    assert off_cpu(arm64(words))[1:] == (False, why)


def test_riscv64_crosses_an_exception_by_its_registers() -> None:
    regs = STACK + 0x100
    words = {
        **context(0),
        TASK + 80: TEXT,
        TASK + 96: STACK + 0x40,
        **record(STACK + 0x30, regs, TEXT + 0x40),
        **record(regs - 16, 0x1234, TEXT + 0x180),
        **record(regs, TEXT + 0x1000, TEXT + 0x2000, STACK + 0x300),
        regs + 64: STACK + 0x320,
        regs + 256: 0x100,
        # A function that calls none has saved s0 alone, where others have saved ra.
        **record(STACK + 0x310, 0, STACK + 0x340),
        **record(STACK + 0x330, 0, TEXT + 0x310),
    }
    assert off_cpu(riscv64(words)) == (
        [
            (TEXT, "switch frame", False),
            (TEXT + 0x40, "frame pointer", False),
            (TEXT + 0x180, "frame pointer", False),
            (TEXT + 0x1000, "exception frame", True),
            (TEXT + 0x2000, "frame pointer", False),
            (TEXT + 0x310, "frame pointer", False),
        ],
        True,
        "the end of the stack",
    )


@pytest.mark.parametrize(
    ("fp", "ra", "why"),
    [
        (STACK + 0x41, 0, f"the frame pointer of {TEXT:#x} is {STACK + 0x41:#x}"),
        (STACK, 0, f"the frame pointer of {TEXT:#x} is {STACK:#x}"),
        (STACK + (1 << 20), 0, f"the frame pointer of {TEXT:#x} is {STACK + (1 << 20):#x}"),
    ],
)
def test_riscv64_says_what_is_broken(fp: int, ra: int, why: str) -> None:
    words = {**context(0), TASK + 80: TEXT, TASK + 96: fp, **record(fp - 16, 0, ra)}
    assert off_cpu(riscv64(words))[1:] == (False, why)


def test_riscv64_ends_where_there_is_no_return_address() -> None:
    words = {**context(0), TASK + 80: TEXT, TASK + 96: STACK + 0x40, **record(STACK + 0x30, 0, 0)}
    assert off_cpu(riscv64(words))[1:] == (True, "the end of the stack")


S390X: Offsets = {
    "task_struct": {"thread.ksp": (80, 8)},
    "stack_frame": {"gprs": (72, 80), "back_chain": (152, 8)},
    "pt_regs": {"psw": (8, 16), "gprs": (24, 128)},
}
PPC64: Offsets = {
    "task_struct": {"thread.ksp": (80, 8)},
    "pt_regs": {"nip": (256, 8), "msr": (264, 8), "gpr": (0, 256)},
}


class BigWords(Words):
    """The same, of a big-endian machine."""

    def read(self, address: int, size: int) -> bytes:
        return super().read(address, size)[::-1]


def s390x(words: Mapping[int, int]) -> S390xUnwinder:
    layout = KernelLayout([Table(S390X, sizes={"stack_frame": 160, "pt_regs": 200})])
    return S390xUnwinder(MemoryAndLayout(BigWords({TASK + 80: STACK, **words}), layout, "big"))


def ppc64(words: Mapping[int, int]) -> Ppc64leUnwinder:
    return Ppc64leUnwinder(MemoryAndLayout(Words({TASK + 80: STACK, **words}), KernelLayout([Table(PPC64)])))


@pytest.mark.parametrize(
    ("mask", "at", "end"), [(1 << 48, 0x800, "user mode"), (0, 0x4000 - 200 - 160, "the end of the stack")]
)
def test_s390x_crosses_an_exception_by_its_registers(mask: int, at: int, end: str) -> None:
    regs, last = STACK + 0x100 + 160, STACK + at
    words = {
        STACK + 136: TEXT,
        STACK + 152: STACK + 0x100,
        STACK + 0x100 + 136: TEXT + 0x40,
        STACK + 0x100 + 152: 0,
        regs + 8: 0,
        regs + 16: TEXT + 0x1000,
        regs + 24 + 8 * 15: STACK + 0x400,
        STACK + 0x400 + 152: last,
        last + 136: TEXT + 0x2000,
        last + 152: 0,
        last + 160 + 8: mask,
        last + 160 + 16: 0x1234,
    }
    assert off_cpu(s390x(words)) == (
        [
            (TEXT, "switch frame", False),
            (TEXT + 0x40, "back chain", False),
            (TEXT + 0x1000, "exception frame", True),
            (TEXT + 0x2000, "back chain", False),
        ],
        True,
        end,
    )


@pytest.mark.parametrize(("marker", "at", "place"), [(0x5347_4552, 32, 48), (0x7265_6773_6865_7265, 96, 112)])
def test_ppc64le_crosses_an_exception_by_its_registers(marker: int, at: int, place: int) -> None:
    frames = [STACK, STACK + 0x100, STACK + 0x200, STACK + 0x600, STACK + 0x700]
    regs = frames[2] + place
    words = {frame + offset: 0 for frame in frames for offset in (32, 96)}
    words |= {
        frames[0]: frames[1],
        frames[1]: frames[2],
        frames[1] + 16: TEXT,
        frames[2] + 16: TEXT + 0x40,
        frames[2] + at: marker,
        regs + 256: TEXT + 0x1000,
        regs + 264: 0,
        regs + 8: frames[3],
        frames[3]: frames[4],
        frames[4] + 16: TEXT + 0x2000,
        frames[4]: 0,
    }
    expected = [
        (TEXT, "switch frame", False),
        (TEXT + 0x40, "back chain", False),
        (TEXT + 0x1000, "exception frame", True),
        (TEXT + 0x2000, "back chain", False),
    ]
    assert off_cpu(ppc64(words)) == (expected, True, "the end of the stack")
    words[regs + 264] = 1 << 14
    assert off_cpu(ppc64(words)) == (expected[:2], True, "user mode")


def test_a_cpu_begins_with_its_note() -> None:
    regs = {"pc": TEXT + 2, "sp": STACK, "x29": STACK + 0x20, "s0": STACK + 0x40, "ra": TEXT + 8}
    regs |= {"nip": TEXT + 2, "r1": STACK, "pswa": TEXT + 2, "r15": STACK}
    note = CpuNote(0, 1, regs, user_mode=False)
    for unwinder in (arm64({}), riscv64({}), s390x({}), ppc64({})):
        first = unwinder.running(note)
        assert (first.pc, first.sp, first.exact, first.found_by) == (TEXT + 2, STACK, True, "crash note")
