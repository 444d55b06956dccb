"""The kernel's list of physical memory."""

from __future__ import annotations

from tests.e2e.guests import FIXTURES
from vmcore2core.addresses import AddressRange
from vmcore2core.kernel.resource import not_in, system_ram
from vmcore2core.session import Session

MIB = 1 << 20


def test_system_ram_is_that_of_proc_iomem() -> None:
    guest = FIXTURES / "debian-6.1-amd64"
    lines = [line.split(" : ") for line in (guest / "truth" / "iomem.txt").read_text().splitlines()]
    ends = [where.split("-") for where, name in lines if name == "System RAM" and not where.startswith(" ")]
    with Session([guest / "vmcore"]) as session:
        expected = tuple(AddressRange(int(start, 16), int(end, 16) + 1) for start, end in ends)
        assert system_ram(session.kernel) == expected
        assert len(expected) == 2


def test_what_is_not_in_memory() -> None:
    memory = [AddressRange(0, 16 * MIB), AddressRange(32 * MIB, 48 * MIB)]

    def missing(start: int, end: int) -> list[tuple[int, int]]:
        return [(part.start // MIB, part.end // MIB) for part in not_in([AddressRange(start * MIB, end * MIB)], memory)]

    assert missing(1, 15) == missing(32, 48) == []
    assert missing(0, 64) == [(16, 32), (48, 64)]
    assert missing(20, 24) == [(20, 24)]
    assert missing(47, 49) == [(48, 49)]
    assert list(not_in([AddressRange(4096, 16 * MIB + 4096)], memory)) == []
