"""Kernel memory of a few places, by address."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.errors import NotMapped


class Bytes:
    """Kernel memory of a few places."""

    def __init__(self, places: Mapping[int, bytes]) -> None:
        self.places = places

    def read(self, address: int, size: int) -> bytes:
        for start, content in self.places.items():
            if start <= address and address + size <= start + len(content):
                return content[address - start : address - start + size]
        raise NotMapped(address)
