"""The records of Kafka's record batches, all at once and by column, in compiled code.

aiokafka makes an object of each record, which costs more than all else that is done with a small event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.messaging.record_batch import Record, RecordBatch, read_headers
from headrace.native import Bytes, Int64s, Spans, compiled

# The columns of `Records.positions`, each contiguous: functions are compiled for that.
_OFFSET, _TIMESTAMP, _KEY, _KEY_LENGTH, _VALUE, _VALUE_LENGTH, _HEADERS, _END = range(8)
_COLUMNS: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """The records of several batches: one buffer, and where each record's parts lie in it."""

    buffer: Bytes
    positions: Int64s
    partitions: npt.NDArray[np.int32]
    """Partition of each record."""
    topic: str

    def __len__(self) -> int:
        return len(self.partitions)

    @property
    def offsets(self) -> Int64s:
        """Offset of each record."""
        offsets: Int64s = self.positions[_OFFSET]
        return offsets

    @property
    def timestamps(self) -> Int64s:
        """Milliseconds since the epoch."""
        timestamps: Int64s = self.positions[_TIMESTAMP]
        return timestamps

    @property
    def keys(self) -> Spans:
        """The records' keys."""
        return Spans(self.buffer, self.positions[_KEY], self.positions[_KEY_LENGTH])

    @property
    def values(self) -> Spans:
        """The records' values."""
        return Spans(self.buffer, self.positions[_VALUE], self.positions[_VALUE_LENGTH])

    @property
    def headers(self) -> Spans:
        """The bytes of the records' headers, undecoded: a count, then names and values with their lengths."""
        starts, ends = self.positions[_HEADERS], self.positions[_END]
        return Spans(self.buffer, starts, ends - starts)

    def part(self, start: int, end: int) -> Records:
        """The records from index `start` and before `end`, in the same buffer."""
        return Records(self.buffer, self.positions[:, start:end], self.partitions[start:end], self.topic)

    def record(self, index: int) -> Record:
        """One record."""
        offset, timestamp, key, key_length, value, value_length, headers, end = self.positions[
            :, index
        ].tolist()
        return Record(
            self.topic,
            int(self.partitions[index]),
            offset,
            timestamp,
            None if key_length < 0 else self.buffer[key : key + key_length].tobytes(),
            None if value_length < 0 else self.buffer[value : value + value_length].tobytes(),
            read_headers(self.buffer[headers:end].tobytes()),
        )


def decode(topic: str, batches: Sequence[RecordBatch]) -> Records:
    """The records of batches of one topic, without those that were read before. Raises MalformedBatch."""
    parts = [batch.payload() for batch in batches]
    buffer = np.frombuffer(b"".join(parts), np.uint8)
    count = sum(batch.count for batch in batches)
    positions = np.empty((_COLUMNS, count), np.int64)
    partitions = np.empty(count, np.int32)
    fresh = np.ones(count, np.bool_)
    start = row = 0
    for batch, part in zip(batches, parts, strict=True):
        rows = slice(row, row + batch.count)
        part_end, row_end = start + len(part), row + batch.count
        base = batch.base_offset, batch.base_timestamp, batch.has_append_time
        if not _decode(buffer[:part_end], start, *base, positions, row, row_end):
            raise batch.malformed("no records")
        partitions[rows] = batch.partition
        fresh[rows] = positions[_OFFSET, rows] >= batch.first_offset
        start, row = part_end, row_end
    if fresh.all():
        return Records(buffer, positions, partitions, topic)
    return Records(buffer, np.ascontiguousarray(positions[:, fresh]), partitions[fresh], topic)


@compiled
def read_varint(buffer: Bytes, position: int, end: int) -> tuple[int, int]:
    """A zigzag varint of up to 64 bits and the position behind it, which is -1 where there is none."""
    result = np.uint64(0)
    for index in range(10):
        if position < 0 or position >= end:
            return 0, -1
        byte = buffer[position]
        position += 1
        result |= np.uint64(byte & 0x7F) << np.uint64(7 * index)
        if byte < 0x80:
            # int() would stay unsigned.
            value = np.int64(result >> np.uint64(1)) ^ -np.int64(result & np.uint64(1))
            return value, position  # type: ignore[return-value]
    return 0, -1


@compiled
def read_string(buffer: Bytes, position: int, end: int) -> tuple[int, int, int]:
    """Start and length of bytes after their length, and the position behind them, -1 where there are none."""
    length, start = read_varint(buffer, position, end)
    if start < 0 or length < -1 or length > end - start:
        return 0, -1, -1
    return start, length, start + max(length, 0)


@compiled
def _decode(
    buffer: Bytes,
    start: int,
    base_offset: int,
    base_timestamp: int,
    fixed: bool,
    positions: Int64s,
    first: int,
    end_row: int,
) -> bool:
    position = start
    for row in range(first, end_row):
        length, position = read_varint(buffer, position, len(buffer))
        if position < 0 or length < 1 or length > len(buffer) - position:
            return False
        end = position + length
        timestamp_delta, position = read_varint(buffer, position + 1, end)
        offset_delta, position = read_varint(buffer, position, end)
        key, key_length, position = read_string(buffer, position, end)
        value, value_length, position = read_string(buffer, position, end)
        if position < 0 or not _headers_are_sound(buffer, position, end):
            return False
        positions[0, row] = base_offset + offset_delta
        positions[1, row] = base_timestamp + (0 if fixed else timestamp_delta)
        positions[2, row] = key
        positions[3, row] = key_length
        positions[4, row] = value
        positions[5, row] = value_length
        positions[6, row] = position
        positions[7, row] = end
        position = end
    return position == len(buffer)


@compiled
def _headers_are_sound(buffer: Bytes, position: int, end: int) -> bool:
    count, position = read_varint(buffer, position, end)
    if position < 0 or count < 0:
        return False
    for _ in range(count):
        _, length, position = read_string(buffer, position, end)
        if position < 0 or length < 0:
            return False
        _, length, position = read_string(buffer, position, end)
        if position < 0:
            return False
    return position == end
