"""BLAKE2b (RFC 7693) with a digest of eight bytes, over many byte strings at once."""

from __future__ import annotations

from typing import Final

import numpy as np

from headrace.native.compiler import compiled
from headrace.native.spans import Bytes, Int64s, Spans, UInt64s

_BLOCK: Final = 128
_WORD: Final = 8
_ROUNDS: Final = 12
# SHA-512's initial values.
_START: Final = np.array(
    [
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    ],
    np.uint64,
)
# Of the parameter block only its first word is not zero: digest's length 8, no key, fanout and depth 1.
_PARAMETERS: Final = 0x01010008
_SIGMA: Final = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    ],
    np.int64,
)


def blake2b_64(strings: Spans) -> UInt64s:
    """Each string's digest, its eight bytes read as a big-endian number. Every string must be there."""
    digests = np.empty(len(strings), np.uint64)
    state, message = np.empty(8, np.uint64), np.empty(16, np.uint64)
    _digest_all(strings.buffer, strings.starts, strings.lengths, state, message, digests)
    return digests.byteswap()


@compiled
def _digest_all(
    buffer: Bytes,
    starts: Int64s,
    lengths: Int64s,
    state: UInt64s,
    message: UInt64s,
    digests: UInt64s,
) -> None:
    for index in range(len(starts)):
        for word in range(8):
            state[word] = _START[word]
        state[0] ^= np.uint64(_PARAMETERS)
        start, left, done = starts[index], lengths[index], 0
        while left > _BLOCK:
            _read(buffer, start + done, _BLOCK, message)
            done += _BLOCK
            left -= _BLOCK
            _compress(state, message, done, np.uint64(0))
        _read(buffer, start + done, left, message)
        _compress(state, message, done + left, np.uint64(0xFFFFFFFFFFFFFFFF))
        digests[index] = state[0]


@compiled
def _read(buffer: Bytes, start: int, length: int, message: UInt64s) -> None:
    """Make a block of `length` bytes, padded with zeros, sixteen little-endian words."""
    for word in range(16):
        message[word] = np.uint64(0)
    for position in range(length):
        message[position // _WORD] |= np.uint64(buffer[start + position]) << np.uint64(8 * (position % _WORD))


@compiled
def _compress(state: UInt64s, message: UInt64s, count: int, last: np.uint64) -> None:
    # Sixteen names and not an array: compiled, they are registers.
    v0, v1, v2, v3 = state[0], state[1], state[2], state[3]
    v4, v5, v6, v7 = state[4], state[5], state[6], state[7]
    v8, v9, v10, v11 = _START[0], _START[1], _START[2], _START[3]
    v12, v13 = _START[4] ^ np.uint64(count), _START[5]
    v14, v15 = _START[6] ^ last, _START[7]
    m = message
    for turn in range(_ROUNDS):
        s = _SIGMA[turn]
        v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m[s[0]], m[s[1]])
        v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m[s[2]], m[s[3]])
        v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m[s[4]], m[s[5]])
        v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m[s[6]], m[s[7]])
        v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m[s[8]], m[s[9]])
        v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m[s[10]], m[s[11]])
        v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m[s[12]], m[s[13]])
        v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m[s[14]], m[s[15]])
    state[0] ^= v0 ^ v8
    state[1] ^= v1 ^ v9
    state[2] ^= v2 ^ v10
    state[3] ^= v3 ^ v11
    state[4] ^= v4 ^ v12
    state[5] ^= v5 ^ v13
    state[6] ^= v6 ^ v14
    state[7] ^= v7 ^ v15


@compiled
def _mix(
    a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64, first: np.uint64, second: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    a += b + first
    d = _rotated(d ^ a, 32)
    c += d
    b = _rotated(b ^ c, 24)
    a += b + second
    d = _rotated(d ^ a, 16)
    c += d
    b = _rotated(b ^ c, 63)
    return a, b, c, d


@compiled
def _rotated(value: np.uint64, bits: int) -> np.uint64:
    """The value turned right by `bits`."""
    return (value >> np.uint64(bits)) | (value << np.uint64(64 - bits))
