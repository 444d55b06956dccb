"""Inputs out of inputs: a plain, seeded mutation."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.fuzz.harness import NUMBERS


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes], limit: int) -> bytes:
    """Return an input with some bits, words or pieces replaced, or another length."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        kind = rng.randrange(7)
        at = rng.randrange(len(found)) if found else 0
        if kind == 0 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            size = rng.choice((1, 2, 4, 8))
            word = rng.choice((*NUMBERS, rng.getrandbits(64))) & ((1 << 8 * size) - 1)
            found[at : at + size] = word.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 2:
            del found[at:]
        elif kind == 3:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 8, 64)))
        elif kind == 4:
            piece = rng.choice(others)
            start = rng.randrange(len(piece)) if piece else 0
            found[at:at] = piece[start : start + rng.randrange(256)]
        elif kind == 5 and found:
            size = rng.randrange(64)
            found[at : at + size] = found[(start := rng.randrange(len(found))) : start + size]
        else:
            del found[at : at + rng.randrange(32)]
    return bytes(found[:limit])
