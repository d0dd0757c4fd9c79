"""Which events became rows of late, so that one that its producer sends again is known.

CloudEvents says that source and id together name an event. An event is a repetition where an earlier one of
the same name became a row of the same dataset from the same partition, at most `reach` offsets before. That
is decided by offsets alone: batches, restarts and rebalances do not change the answer.

Names are kept as 128 bits of XXH64, about 50 bytes of memory for each. Of a billion events, two meet by
accident with a probability of 1e-21.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.native import Bools, Int64s, Spans, UInt64s, compiled
from headrace.native.xxh64 import put_string, xxh64

Slots = npt.NDArray[np.int32]

_LANES: Final = 2
_FIRST_ROOM: Final = 1024
# Slots for each entry there is room for: a search ends after one or two.
_SLOTS: Final = 2
_EMPTY: Final = -1


def name_hashes(sources: pa.ChunkedArray, ids: pa.ChunkedArray) -> UInt64s:
    """Two numbers for each event: which one it is. A source that is null, in rows of old, is empty."""
    left, right = Spans.from_arrow(sources), Spans.from_arrow(ids)
    hashes = np.empty((len(ids), _LANES), np.uint64)
    longest = int(left.lengths.max(initial=0)) + int(right.lengths.max(initial=0))
    scratch = np.empty(4 + longest // 8, np.uint64)
    _hash_names(
        left.buffer,
        left.starts,
        left.lengths,
        right.buffer,
        right.starts,
        right.lengths,
        scratch,
        hashes,
    )
    return hashes


class RecentEvents:
    """The events of one dataset from one partition, in the order of their offsets."""

    def __init__(self, reach: int) -> None:
        """`reach`: in offsets."""
        self._reach = reach
        self._count = 0
        self._hashes = np.empty((_FIRST_ROOM, _LANES), np.uint64)
        self._offsets = np.empty(_FIRST_ROOM, np.int64)
        self._slots = np.full(_SLOTS * _FIRST_ROOM, _EMPTY, np.int32)

    def __len__(self) -> int:
        return self._count

    def repeated(self, hashes: UInt64s, offsets: Int64s) -> Bools:
        """Which of these events, at rising offsets, are repetitions: of known ones, or among themselves."""
        repeated = np.empty(len(offsets), np.bool_)
        slots = np.full(_slots_for(len(offsets)), _EMPTY, np.int32)
        _find_repeated(
            self._hashes,
            self._offsets,
            self._slots,
            self._reach,
            hashes,
            offsets,
            slots,
            repeated,
        )
        return repeated

    def add(self, hashes: UInt64s, offsets: Int64s) -> None:
        """Remember events that became rows, at rising offsets; those that are known already stay as they are.

        A batch of which only a part could be stored is stored again, with that part.
        """
        if self._count:
            beyond = offsets > self._offsets[self._count - 1]
            hashes, offsets = hashes[beyond], offsets[beyond]
        if not len(offsets):
            return
        if self._count + len(offsets) > len(self._offsets):
            self._make_room(len(offsets), int(offsets[-1]) - self._reach)
        end = self._count + len(offsets)
        self._hashes[self._count : end] = hashes
        self._offsets[self._count : end] = offsets
        _enter(self._hashes, self._count, end, self._slots)
        self._count = end

    def forget_before(self, oldest: int) -> None:
        """Give the memory back where all that is known lies before the offset `oldest`."""
        if self._count and self._offsets[self._count - 1] < oldest:
            self._make_room(0, oldest)

    def _make_room(self, wanted: int, oldest: int) -> None:
        """Forget what lies before the offset `oldest`, and have room for as much again as is left."""
        first = int(np.searchsorted(self._offsets[: self._count], oldest))
        kept = self._count - first
        room = max(_FIRST_ROOM, kept + kept // 4 + wanted)
        hashes = np.empty((room, _LANES), np.uint64)
        offsets = np.empty(room, np.int64)
        hashes[:kept] = self._hashes[first : self._count]
        offsets[:kept] = self._offsets[first : self._count]
        self._hashes, self._offsets, self._count = hashes, offsets, kept
        self._slots = np.full(_slots_for(room), _EMPTY, np.int32)
        _enter(hashes, 0, kept, self._slots)


def _slots_for(entries: int) -> int:
    """A power of two: a hash is cut down to a slot by its lowest bits."""
    return 1 << max(1, (_SLOTS * entries - 1).bit_length())


@compiled
def _hash_names(
    left: npt.NDArray[np.uint8],
    left_starts: Int64s,
    left_lengths: Int64s,
    right: npt.NDArray[np.uint8],
    right_starts: Int64s,
    right_lengths: Int64s,
    words: UInt64s,
    hashes: UInt64s,
) -> None:
    for row in range(len(hashes)):
        count = put_string(left, left_starts[row], left_lengths[row], words, 0)
        count = put_string(right, right_starts[row], right_lengths[row], words, count)
        for lane in range(_LANES):
            hashes[row, lane] = xxh64(words, count, lane)


@compiled
def _enter(hashes: UInt64s, first: int, end: int, slots: Slots) -> None:
    for entry in range(first, end):
        _enter_one(hashes, entry, slots)


@compiled
def _enter_one(hashes: UInt64s, entry: int, slots: Slots) -> None:
    mask = np.uint64(len(slots) - 1)
    slot = hashes[entry, 0] & mask
    while slots[slot] != _EMPTY:
        slot = (slot + np.uint64(1)) & mask
    slots[slot] = entry


@compiled
def _find_repeated(
    known: UInt64s,
    known_offsets: Int64s,
    known_slots: Slots,
    reach: int,
    hashes: UInt64s,
    offsets: Int64s,
    slots: Slots,
    repeated: Bools,
) -> None:
    for row in range(len(offsets)):
        own = offsets[row]
        repeated[row] = _is_known(
            known, known_offsets, known_slots, hashes, row, own - reach, own
        ) or _is_known(hashes, offsets, slots, hashes, row, own - reach, own)
        if not repeated[row]:
            _enter_one(hashes, row, slots)


@compiled
def _is_known(
    known: UInt64s,
    known_offsets: Int64s,
    slots: Slots,
    hashes: UInt64s,
    row: int,
    oldest: int,
    own: int,
) -> bool:
    """Whether an event of the row's name is known at an offset from `oldest` to before the row's own.

    At its own offset it is itself, read again.
    """
    mask = np.uint64(len(slots) - 1)
    slot = hashes[row, 0] & mask
    while slots[slot] != _EMPTY:
        entry = slots[slot]
        same = known[entry, 0] == hashes[row, 0] and known[entry, 1] == hashes[row, 1]
        if same and oldest <= known_offsets[entry] < own:
            return True
        slot = (slot + np.uint64(1)) & mask
    return False
