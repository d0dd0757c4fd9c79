"""XXH64 over 64-bit words, as the xxHash specification defines it for inputs of whole words."""

from __future__ import annotations

from typing import Final

import numpy as np

from headrace.native.compiler import compiled
from headrace.native.spans import Bytes, UInt64s

_PRIME1: Final = 0x9E3779B185EBCA87
_PRIME2: Final = 0xC2B2AE3D27D4EB4F
_PRIME3: Final = 0x165667B19E3779F9
_PRIME4: Final = 0x85EBCA77C2B2AE63
_PRIME5: Final = 0x27D4EB2F165667C5


@compiled
def xxh64(words: UInt64s, count: int, seed: int) -> np.uint64:
    """The hash of the first `count` words, each taken as 8 little-endian bytes."""
    start = np.uint64(seed)
    position = 0
    if count >= 4:
        lane1 = start + np.uint64(_PRIME1) + np.uint64(_PRIME2)
        lane2 = start + np.uint64(_PRIME2)
        lane3 = start
        lane4 = start - np.uint64(_PRIME1)
        while position + 4 <= count:
            lane1 = _round(lane1, words[position])
            lane2 = _round(lane2, words[position + 1])
            lane3 = _round(lane3, words[position + 2])
            lane4 = _round(lane4, words[position + 3])
            position += 4
        hashed = _rotated(lane1, 1) + _rotated(lane2, 7) + _rotated(lane3, 12) + _rotated(lane4, 18)
        hashed = _merged(_merged(_merged(_merged(hashed, lane1), lane2), lane3), lane4)
    else:
        hashed = start + np.uint64(_PRIME5)
    hashed += np.uint64(8 * count)
    while position < count:
        hashed ^= _round(np.uint64(0), words[position])
        hashed = _rotated(hashed, 27) * np.uint64(_PRIME1) + np.uint64(_PRIME4)
        position += 1
    hashed ^= hashed >> np.uint64(33)
    hashed *= np.uint64(_PRIME2)
    hashed ^= hashed >> np.uint64(29)
    hashed *= np.uint64(_PRIME3)
    return hashed ^ (hashed >> np.uint64(32))


@compiled
def put_string(buffer: Bytes, start: int, length: int, words: UInt64s, count: int) -> int:
    """Put a string behind the first `count` words; how many they are then.

    It is a word with its length, and then its bytes, padded with zeros: at most 2 + length // 8 words.
    """
    words[count] = np.uint64(length)
    count += 1
    for begin in range(0, length, 8):
        word = np.uint64(0)
        for index in range(min(8, length - begin)):
            word |= np.uint64(buffer[start + begin + index]) << np.uint64(8 * index)
        words[count] = word
        count += 1
    return count


@compiled
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(lane + word * np.uint64(_PRIME2), 31) * np.uint64(_PRIME1)


@compiled
def _merged(hashed: np.uint64, lane: np.uint64) -> np.uint64:
    return (hashed ^ _round(np.uint64(0), lane)) * np.uint64(_PRIME1) + np.uint64(_PRIME4)


@compiled
def _rotated(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))
