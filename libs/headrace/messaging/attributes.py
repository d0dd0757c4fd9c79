"""CloudEvents attributes of many records at once, by column, in compiled code.

Events of one producer differ in id, time and trace, and in nothing else. Those are found here; all others are
summed up as the record's shape: records of one shape have the same other headers, in the same order, so that
`headrace.messaging.events.decode`, the authority, need read only one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.messaging.record_columns import Records, read_string, read_varint
from headrace.native import Bools, Bytes, Int64s, Spans, UInt64s, compiled
from headrace.native.spans import is_utf8, same_bytes

_VARYING: Final = Spans.of([b"ce_id", b"ce_time", b"traceparent", b"tracestate"])
_ID, _TIME, _TRACEPARENT, _TRACESTATE = range(len(_VARYING))

_UPPER_A, _UPPER_Z, _NOT_ASCII = 0x41, 0x5A, 0x80
_ABSENT: Final = -1
# Two hashes of 64 bits with different multipliers, so that two shapes never meet by accident.
_SEED: Final = 0xCBF29CE484222325
_PRIME: Final = 0xFF51AFD7ED558CCD
_OTHER_PRIME: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """What records' headers say, an item for each record."""

    ids: Spans
    times: Int64s
    """`ce_time` in microseconds since the epoch; where it is absent, when the record was sent."""
    traceparents: Spans
    shapes: UInt64s
    """Two numbers for each record: what its other headers are."""
    sizes: Int64s
    """Bytes of the names and the values of all headers."""
    plain: Bools
    """Off where only `decode` can tell: names in capitals or twice, no UTF-8, a time in another notation."""


def read_attributes(records: Records) -> Attributes:
    """Read the headers of all records."""
    count = len(records)
    headers = records.headers
    starts = np.zeros((len(_VARYING), count), np.int64)
    lengths = np.full((len(_VARYING), count), _ABSENT, np.int64)
    shapes = np.empty((count, 2), np.uint64)
    sizes = np.empty(count, np.int64)
    plain = np.empty(count, np.bool_)
    _read(
        headers.buffer,
        headers.starts,
        headers.lengths,
        _VARYING.buffer,
        _VARYING.starts,
        _VARYING.lengths,
        starts,
        lengths,
        shapes,
        sizes,
        plain,
    )
    times = _sent(records)
    _read_times(headers.buffer, starts[_TIME], lengths[_TIME], times, plain)
    return Attributes(
        ids=Spans(headers.buffer, starts[_ID], lengths[_ID]),
        times=times,
        traceparents=Spans(headers.buffer, starts[_TRACEPARENT], lengths[_TRACEPARENT]),
        shapes=shapes,
        sizes=sizes,
        plain=plain,
    )


# Years 1 to 9999, in milliseconds since the epoch.
_FIRST_TIME: Final = -62_135_596_800_000
_LAST_TIME: Final = 253_402_300_799_999


def _sent(records: Records) -> Int64s:
    """Microseconds since the epoch; 0 where a producer wrote 64 bits that are no time of any calendar."""
    sent = records.timestamps
    sound = (sent >= _FIRST_TIME) & (sent <= _LAST_TIME)
    return np.where(sound, sent, 0) * 1000


@compiled
def _read(
    buffer: Bytes,
    starts: Int64s,
    sizes: Int64s,
    names: Bytes,
    name_starts: Int64s,
    name_lengths: Int64s,
    value_starts: Int64s,
    value_lengths: Int64s,
    shapes: UInt64s,
    bytes_of: Int64s,
    plain: Bools,
) -> None:
    for row in range(len(starts)):
        end = starts[row] + sizes[row]
        count, position = read_varint(buffer, starts[row], end)
        first, second = np.uint64(_SEED), np.uint64(_SEED)
        sound, size = True, 0
        for _ in range(count):
            name, name_length, position = read_string(buffer, position, end)
            value, value_length, position = read_string(buffer, position, end)
            value_length = max(value_length, 0)
            size += name_length + value_length
            which = _which(buffer, name, name_length, names, name_starts, name_lengths)
            if which == _ABSENT:
                for index in range(name_length):
                    byte = buffer[name + index]
                    if byte >= _NOT_ASCII or _UPPER_A <= byte <= _UPPER_Z:
                        sound = False
                first, second = _mix(buffer, name, name_length, first, second)
                first, second = _mix(buffer, value, value_length, first, second)
            else:
                sound = sound and value_lengths[which, row] == _ABSENT
                sound = sound and is_utf8(buffer, value, value + value_length)
                value_starts[which, row] = value
                value_lengths[which, row] = value_length
        shapes[row, 0] = first
        shapes[row, 1] = second
        bytes_of[row] = size
        plain[row] = sound


@compiled
def _which(
    buffer: Bytes, name: int, length: int, names: Bytes, name_starts: Int64s, name_lengths: Int64s
) -> int:
    for which in range(len(name_starts)):
        if name_lengths[which] == length and same_bytes(buffer, name, names, name_starts[which], length):
            return which
    return _ABSENT


@compiled
def _mix(
    buffer: Bytes, start: int, length: int, first: np.uint64, second: np.uint64
) -> tuple[np.uint64, np.uint64]:
    # The length too, so that no byte can move from one string to the next.
    word = np.uint64(length)
    for index in range(0, length + 8, 8):
        first = (first ^ word) * np.uint64(_PRIME)
        first ^= first >> np.uint64(32)
        second = (second ^ word) * np.uint64(_OTHER_PRIME)
        second ^= second >> np.uint64(29)
        word = np.uint64(0)
        for offset in range(min(8, length - index)):
            word = word << np.uint64(8) | np.uint64(buffer[start + index + offset])
    return first, second


_DIGIT_ZERO, _DIGIT_NINE, _DASH, _COLON, _BIG_T, _BIG_Z, _DOT, _PLUS = (ord(c) for c in "09-:TZ.+")
# "2026-01-02T03:04:05", and how the rest may go on: "Z", "+00:00", or first ".123456".
_SECONDS_END: Final = 19
_MOST_FRACTION: Final = 6


@compiled
def _read_times(buffer: Bytes, starts: Int64s, lengths: Int64s, times: Int64s, plain: Bools) -> None:
    """Where there is a time, put it into `times`; where it is written in another way, say that in `plain`."""
    for row in range(len(starts)):
        if lengths[row] > 0:
            sound, micros = _read_time(buffer, starts[row], starts[row] + lengths[row])
            if sound:
                times[row] = micros
            else:
                plain[row] = False


@compiled
def _read_time(buffer: Bytes, start: int, end: int) -> tuple[bool, int]:
    """Microseconds since the epoch of an RFC 3339 time in UTC."""
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
    return True, seconds * 1_000_000 + micros


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
