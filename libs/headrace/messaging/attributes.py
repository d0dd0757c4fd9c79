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
from headrace.native.rfc3339 import read_time
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

    def part(self, start: int, end: int) -> Attributes:
        """Those of the records from index `start` and before `end`."""
        indexes = np.arange(start, end)
        return Attributes(
            self.ids.take(indexes),
            self.times[start:end],
            self.traceparents.take(indexes),
            self.shapes[start:end],
            self.sizes[start:end],
            self.plain[start:end],
        )


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
    times = sent_times(records.timestamps)
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


def sent_times(timestamps: Int64s) -> Int64s:
    """When records were sent, in microseconds since the epoch, by what they say in milliseconds.

    0 where a producer wrote 64 bits that are no time of any calendar.
    """
    sound = (timestamps >= _FIRST_TIME) & (timestamps <= _LAST_TIME)
    times: Int64s = np.where(sound, timestamps, 0) * 1000
    return times


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


@compiled
def _read_times(buffer: Bytes, starts: Int64s, lengths: Int64s, times: Int64s, plain: Bools) -> None:
    """Where there is a time, put it into `times`; where it is written in another way, say that in `plain`."""
    for row in range(len(starts)):
        if lengths[row] > 0:
            sound, micros = read_time(buffer, starts[row], starts[row] + lengths[row])
            if sound:
                times[row] = micros
            else:
                plain[row] = False
