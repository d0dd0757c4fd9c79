"""RFC 3339 times in UTC, as producers mostly write them. Other notations are told apart and not read."""

from __future__ import annotations

from typing import Final

import numpy as np

from headrace.native.compiler import compiled
from headrace.native.spans import Bytes

_DIGIT_ZERO, _DIGIT_NINE, _DASH, _COLON, _BIG_T, _BIG_Z, _DOT, _PLUS = (ord(c) for c in "09-:TZ.+")
# "2026-01-02T03:04:05", and how the rest may go on: "Z", "+00:00", or first ".123456".
_SECONDS_END: Final = 19
_MOST_FRACTION: Final = 6


@compiled
def read_time(buffer: Bytes, start: int, end: int) -> tuple[bool, int]:
    """Whether that is an RFC 3339 time in UTC, and its microseconds since the epoch."""
    if end - start <= _SECONDS_END:
        return False, 0
    year = _number(buffer, start, 4)
    month = _number(buffer, start + 5, 2)
    day = _number(buffer, start + 8, 2)
    hour = _number(buffer, start + 11, 2)
    minute = _number(buffer, start + 14, 2)
    second = _number(buffer, start + 17, 2)
    marks = (
        buffer[start + 4] == _DASH
        and buffer[start + 7] == _DASH
        and buffer[start + 10] == _BIG_T
        and buffer[start + 13] == _COLON
        and buffer[start + 16] == _COLON
    )
    if not marks or year < 1 or not 1 <= month <= 12 or not 1 <= day <= _days_in(year, month):
        return False, 0
    if not (0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 59):
        return False, 0
    position = start + _SECONDS_END
    micros = 0
    if buffer[position] == _DOT:
        position += 1
        scale = 100_000
        while position < end and scale > 0 and _DIGIT_ZERO <= buffer[position] <= _DIGIT_NINE:
            micros += scale * int(buffer[position] - _DIGIT_ZERO)
            scale //= 10
            position += 1
        if buffer[position - 1] == _DOT:
            return False, 0
    if not _is_utc(buffer, position, end):
        return False, 0
    seconds = ((_days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second
    # As wide where this is interpreted, too: no negative integer of Python's becomes unsigned.
    return True, np.int64(seconds * 1_000_000 + micros)  # type: ignore[return-value] # compiled, it is one


@compiled
def _number(buffer: Bytes, start: int, digits: int) -> int:
    """-1 where there are other characters than digits."""
    number = 0
    for index in range(digits):
        byte = buffer[start + index]
        if not _DIGIT_ZERO <= byte <= _DIGIT_NINE:
            return -1
        number = number * 10 + int(byte - _DIGIT_ZERO)
    return number


@compiled
def _is_utc(buffer: Bytes, position: int, end: int) -> bool:
    if end - position == 1:
        return bool(buffer[position] == _BIG_Z)
    return bool(
        end - position == 6
        and buffer[position] == _PLUS
        and _number(buffer, position + 1, 2) == 0
        and buffer[position + 3] == _COLON
        and _number(buffer, position + 4, 2) == 0
    )


@compiled
def _days_in(year: int, month: int) -> int:
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return 29 if leap else 28
    return 30 if month in (4, 6, 9, 11) else 31


@compiled
def _days(year: int, month: int, day: int) -> int:
    """Days since the epoch (Howard Hinnant, "chrono-compatible low-level date algorithms")."""
    if month <= 2:
        year -= 1
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
