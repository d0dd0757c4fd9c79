"""Which split a row belongs to: decided by its key alone, for ever.

A key's place is the first eight bytes of BLAKE2b (digest size 8) of its UTF-8 text, big-endian, divided
by 2^64: a number in [0, 1). The training split takes the places below its share, validation the next,
test the rest. A sample never moves between splits as a dataset grows, whatever Python's or the platform's
own hash is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from headrace.training.run.specification import Shares

SPLITS = ("train", "validation", "test")


def place(key: str) -> float:
    """Return a key's place in [0, 1)."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    # 53 bits are what a float holds: dividing all 64 could round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign(keys: Iterable[str], shares: Shares) -> NDArray[np.int8]:
    """Return each key's split: 0 train, 1 validation, 2 test."""
    places = np.fromiter(map(place, keys), dtype=np.float64)
    ends = [shares.train, shares.train + shares.validation]
    if not shares.test:
        # Shares that sum to 1 only nearly leave nothing over.
        ends[-1] = 1.0
    if not shares.test and not shares.validation:
        ends[0] = 1.0
    return np.searchsorted(ends, places, side="right").astype(np.int8)
