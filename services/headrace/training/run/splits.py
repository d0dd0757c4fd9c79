"""Which split a row belongs to: decided by its key alone, for ever.

A key's place is the first eight bytes of BLAKE2b (digest size 8) of its UTF-8 text, big-endian, divided
by 2^64: a number in [0, 1). The training split takes the places below its share, validation the next,
test the rest. A sample never moves between splits as a dataset grows, whatever Python's or the platform's
own hash is.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.training.run.specification import Shares

SPLITS = ("train", "validation", "test")
# Below this, hashing one by one takes less time than importing what hashes many at once.
FEW_KEYS = 100_000


def place(key: str) -> float:
    """Return a key's place in [0, 1)."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return float(_places(np.array([int.from_bytes(digest, "big")], np.uint64))[0])


def assign(keys: pa.Array, shares: Shares, *, few: int = FEW_KEYS) -> NDArray[np.int8]:
    """Return the split of each key, none of them null: 0 train, 1 validation, 2 test.

    `few`: up to so many keys are hashed one by one.
    """
    places = _places(_hashed_singly(keys) if len(keys) <= few else _hashed_together(keys))
    ends = [shares.train, shares.train + shares.validation]
    if not shares.test:
        # Shares that sum to 1 only nearly leave nothing over.
        ends[-1] = 1.0
    if not shares.test and not shares.validation:
        ends[0] = 1.0
    return np.searchsorted(ends, places, side="right").astype(np.int8)


class InSplit:
    """Rows of one split that have a label: what a reader of the table selects."""

    def __init__(self, number: int, key: str, label: str, shares: Shares) -> None:
        self.columns = (key, label)
        self._number = number
        self._shares = shares

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Whether each row is one of them."""
        key, label = (batch.column(name) for name in self.columns)
        chosen: NDArray[np.bool_] = assign(key, self._shares, few=0) == self._number
        if label.null_count:
            chosen &= label.is_valid().to_numpy(zero_copy_only=False)
        return chosen


def _places(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    # 53 bits are what a float holds: dividing all 64 could round up to 1.
    places: NDArray[np.float64] = (hashes >> np.uint64(11)) / 2.0**53
    return places


def _hashed_singly(keys: pa.Array) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys.to_pylist())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _hashed_together(keys: pa.Array) -> NDArray[np.uint64]:
    # Numba comes with it, which a run over a small table does without.
    from headrace.native.blake2b import blake2b_64
    from headrace.native.spans import Spans

    return blake2b_64(Spans.from_arrow(pa.chunked_array([keys])))
