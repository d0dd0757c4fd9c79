"""Decimal numbers to the nearest doubles, in compiled code.

Clinger's fast path where both the digits and the power of ten are exact doubles, else the algorithm of Eisel
and Lemire: one or two 64-bit products with a table of powers of five (Lemire, "Number parsing at a gigabyte
per second", 2021; the code follows fast_float). What it leaves undecided, and what is smaller or larger than
a normal double, is left to the caller.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.native import UInt64s, compiled

MAX_DIGITS: Final = 19
"""So many decimal digits fit into 64 bits."""

_SMALLEST_POWER: Final = -300
_LARGEST_POWER: Final = 300
_EXACT_DIGITS: Final = 1 << 53
_EXACT_POWER: Final = 22


def _powers_of_five() -> tuple[UInt64s, UInt64s]:
    """The upper 128 bits of each power, normalised, in two halves; those of negative ones rounded up."""
    count = _LARGEST_POWER - _SMALLEST_POWER + 1
    high, low = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for index in range(count):
        power = index + _SMALLEST_POWER
        five = 5 ** abs(power)
        bits = five.bit_length()
        if power < 0:
            bits128 = (1 << (bits + 127)) // five + 1
        elif bits <= 128:
            bits128 = five << (128 - bits)
        else:
            bits128 = five >> (bits - 128)
        bits128 >>= max(0, bits128.bit_length() - 128)
        high[index], low[index] = bits128 >> 64, bits128 & ((1 << 64) - 1)
    return high, low


_FIVE_HIGH, _FIVE_LOW = _powers_of_five()
_POWERS_OF_TEN: Final[npt.NDArray[np.float64]] = np.array([10.0**n for n in range(_EXACT_POWER + 1)])


@compiled
def to_double(digits: np.uint64, power: int) -> tuple[bool, float]:
    """Whether it is decided, and the double nearest to `digits` times ten to the `power`."""
    if digits <= np.uint64(_EXACT_DIGITS) and -_EXACT_POWER <= power <= _EXACT_POWER:
        if power < 0:
            return True, np.float64(digits) / _POWERS_OF_TEN[-power]
        return True, np.float64(digits) * _POWERS_OF_TEN[power]
    if digits == 0:
        return True, 0.0
    if not _SMALLEST_POWER <= power <= _LARGEST_POWER:
        return False, 0.0
    return _eisel_lemire(digits, power)


@compiled
def _eisel_lemire(digits: np.uint64, power: int) -> tuple[bool, float]:
    one = np.uint64(1)
    zeros = _leading_zeros(digits)
    digits = digits << np.uint64(zeros)
    high, low = _product(digits, _FIVE_HIGH[power - _SMALLEST_POWER])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        # The bits below could still carry into the mantissa: look at them too.
        carry, _ = _product(digits, _FIVE_LOW[power - _SMALLEST_POWER])
        sum_low = low + carry
        if sum_low < low:
            high += one
        low = sum_low
        if low == np.uint64(0xFFFFFFFFFFFFFFFF):
            return False, 0.0
    upper = high >> np.uint64(63)
    shift = upper + np.uint64(9)
    mantissa = high >> shift
    # 152170 / 2^16 is log2(5); the rest counts the shifts so far.
    exponent = (((152170 + 65536) * power) >> 16) + 1024 + 63 - zeros - np.int64(one ^ upper)
    if exponent <= 1 or exponent >= 2046:
        return False, 0.0
    halfway = low <= one and -4 <= power <= 23 and mantissa & np.uint64(3) == one
    if halfway and mantissa << shift == high:
        # Exactly between two doubles: to the even one.
        mantissa -= one
    mantissa = (mantissa + (mantissa & one)) >> one
    if mantissa == one << np.uint64(53):
        mantissa >>= one
        exponent += 1
    # Exact: 53 bits, and the result is a normal double.
    return True, math.ldexp(np.float64(mantissa), int(exponent) - 1075)


@compiled
def _product(left: np.uint64, right: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The upper and the lower half of the product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    low = (left & mask) * (right & mask)
    cross1 = (left >> half) * (right & mask)
    cross2 = (left & mask) * (right >> half)
    middle = (low >> half) + (cross1 & mask) + (cross2 & mask)
    high = (left >> half) * (right >> half) + (cross1 >> half) + (cross2 >> half) + (middle >> half)
    return high, (low & mask) | (middle << half)


@compiled
def _leading_zeros(value: np.uint64) -> int:
    zeros = 0
    for step in (32, 16, 8, 4, 2, 1):
        if value >> np.uint64(64 - step) == 0:
            zeros += step
            value = value << np.uint64(step)
    return zeros
