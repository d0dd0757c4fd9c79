"""Which split a row belongs to: by its key, for ever, or by its time, among the rows of its version.

By key: a key's place is the first eight bytes of BLAKE2b (digest size 8) of its UTF-8 text, big-endian,
divided by 2^64: a number in [0, 1). The training split takes the places below its share, validation the next,
test the rest. A sample never moves between splits as a dataset grows, whatever Python's or the platform's own
hash is.

By time: the earliest rows train, the next validate, the latest test. Where validation and test begin is a
moment, so that rows of one moment are never parted; each split has at most its share of the rows, rounded,
and the last one more where many rows have the same time. As a dataset grows both moments move on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

By: TypeAlias = Literal["key", "time"]

SPLITS: Final = ("train", "validation", "test")
# When each row's event happened: its time field, or what its event says.
TIME_COLUMN: Final = "_event_time"
# Below this, hashing one by one takes less time than importing what hashes many at once.
FEW_KEYS: Final = 100_000
# Later than any row: a split that begins then has none.
NEVER: Final = int(np.iinfo(np.int64).max)
_BINS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the rows, which sum to 1, and what decides which rows these are."""

    train: float
    validation: float
    test: float
    by: By = "key"


class Splitter(Protocol):
    """Tells each row's split by one of its columns."""

    column: str

    def assign(self, values: pa.Array) -> NDArray[np.int8]:
        """Return the split of each of the column's values, none of them null: an index into `SPLITS`."""


class ByKey:
    """Splits by hashes of keys. `few`: up to so many keys are hashed one by one."""

    def __init__(self, column: str, shares: Shares, *, few: int = FEW_KEYS) -> None:
        self.column = column
        self._shares = shares
        self._few = few

    def assign(self, values: pa.Array) -> NDArray[np.int8]:
        """Hash them."""
        return assign(values, self._shares, few=self._few)


class ByTime:
    """Splits by time. Validation and test begin at the moments `begins`, microseconds since the epoch."""

    def __init__(self, begins: tuple[int, int]) -> None:
        self.column = TIME_COLUMN
        self._begins = begins

    def assign(self, values: pa.Array) -> NDArray[np.int8]:
        """Compare them."""
        return np.searchsorted(self._begins, microseconds(values), side="right").astype(np.int8)


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


def microseconds(times: pa.Array) -> NDArray[np.int64]:
    """Return timestamps, none of them null, as microseconds since the epoch."""
    numbers: NDArray[np.int64] = times.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return numbers


def begins_of(times: Callable[[], Iterable[NDArray[np.int64]]], shares: Shares) -> tuple[int, int]:
    """Return the moments at which validation and test begin; `NEVER` where a split has no rows.

    `times` gives the rows' times in chunks, in any order, each time that it is called: some four times. What
    is held does not grow with them.
    """
    count, low, high = 0, NEVER, -NEVER
    for chunk in times():
        if len(chunk):
            count += len(chunk)
            low, high = min(low, int(chunk.min())), max(high, int(chunk.max()))
    # Rounded: 0.57 * 100 is less than 57.
    ranks = [round(shares.train * count), round((shares.train + shares.validation) * count)]
    searches = [_Search(rank, low, high) for rank in ranks if rank < count]
    while not all(search.found for search in searches):
        for chunk in times():
            for search in searches:
                search.look(chunk)
        for search in searches:
            search.narrow()
    validation, test = [*(search.low for search in searches), NEVER, NEVER][:2]
    return validation, test


class _Search:
    """Looks for the number before which `rank` others come in order; all of them lie from `low` to `high`."""

    def __init__(self, rank: int, low: int, high: int) -> None:
        self._rank = rank
        self.low = low
        self._high = high
        self._counts = np.zeros(_BINS, np.int64)

    @property
    def found(self) -> bool:
        return self.low == self._high

    @property
    def _width(self) -> int:
        return (self._high - self.low) // _BINS + 1

    def look(self, numbers: NDArray[np.int64]) -> None:
        inside = numbers[(numbers >= self.low) & (numbers <= self._high)]
        self._counts += np.bincount((inside - self.low) // self._width, minlength=_BINS)

    def narrow(self) -> None:
        reached = np.cumsum(self._counts)
        index = int(np.searchsorted(reached, self._rank, side="right"))
        self._rank -= int(reached[index] - self._counts[index])
        first = self.low + index * self._width
        self.low, self._high = first, min(self._high, first + self._width - 1)
        self._counts[:] = 0


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
