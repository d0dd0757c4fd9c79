"""The records of Kafka's record batches, all at once and by column, in compiled code.

aiokafka makes an object of each record, which costs more than all else that is done with a small event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.messaging.record_batch import (
    MAX_BATCH_BYTES,
    UNREADABLE,
    Record,
    RecordBatch,
    UnreadableBatch,
    read_headers,
)
from headrace.native import Bytes, Int64s, Spans, compiled

# The columns of `Records.positions`, each contiguous: functions are compiled for that.
_OFFSET, _TIMESTAMP, _KEY, _KEY_LENGTH, _VALUE, _VALUE_LENGTH, _HEADERS, _END = range(8)
_COLUMNS: Final = 8

_NO_RECORDS: Final = "its bytes are no records"

# A header of two bytes is an object of a hundred wherever its record is looked at by itself. No part has more
# than so many for each record, and so many besides.
_HEADERS_EACH: Final = 100
_HEADERS_BESIDES: Final = 500_000


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


@dataclass(frozen=True, slots=True)
class Reach:
    """The offsets [start, end) of a partition that a part accounts for.

    `time`: when its first record batch came, in milliseconds since the epoch.
    """

    partition: int
    start: int
    end: int
    time: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record batch that cannot be read, and why."""

    batch: RecordBatch
    error: UnreadableBatch


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of the records of record batches; or none, for one record batch that cannot be read."""

    records: Records
    reaches: Sequence[Reach]
    """Each partition stands there once."""
    unreadable: Unreadable | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a part: records, and bytes, decompressed; and of a record batch: bytes, decompressed.

    A record batch with more bytes than it may have cannot be read. One with more records than a part may have
    is read in several parts; bytes are no reason to cut it.
    """

    records: int
    bytes: int
    batch_bytes: int = MAX_BATCH_BYTES


class PartReader:
    """Reads record batches of one topic, in parts of a bounded size, in their order.

    Where `read` raises, nothing is lost: the next call reads the same part again.
    """

    def __init__(self, topic: str, batches: Iterable[RecordBatch], bounds: Bounds) -> None:
        """The batches of a partition stand together, at rising offsets."""
        self._topic = topic
        self._batches = deque(batches)
        self._bounds = bounds
        self._cut: Iterator[Part] | None = None

    def read(self) -> Part | None:
        """The next part; None where there is none. Blocks."""
        part = None
        while self._batches and part is None:
            part = self._cut_part() if self._batches[0].count > self._bounds.records else self._whole_part()
        return part

    def _whole_part(self) -> Part:
        """As many record batches as fit, and one at least."""
        bounds = self._bounds
        fitting = list(_with_records_up_to(self._batches, bounds.records))
        # What is not written to of so large an array takes no memory.
        room = sum(batch.room(bounds.batch_bytes) for batch in fitting)
        buffer = np.empty(min(room, max(bounds.bytes, bounds.batch_bytes)), np.uint8)
        records = _read_only(buffer)
        positions = np.empty((_COLUMNS, sum(max(batch.count, 0) for batch in fitting)), np.int64)
        read: list[RecordBatch] = []
        size = count = headers = 0
        for batch in fitting:
            try:
                end = size + batch.read_into(buffer.data[size : size + bounds.batch_bytes])
                some = _decode_all(batch, records[:end], size, positions, count)
                _expect_few_headers(batch, headers + some, count + batch.count)
            except UNREADABLE as error:
                if read:
                    # Perhaps for want of room only: it begins the next part.
                    break
                self._batches.popleft()
                return _unreadable(self._topic, batch, error)
            read.append(batch)
            size, count, headers = end, count + batch.count, headers + some
        for _ in read:
            self._batches.popleft()
        return _part_of(self._topic, read, records[:size], positions[:, :count])

    def _cut_part(self) -> Part | None:
        """The next part of a record batch that is cut; None where it has no more."""
        batch = self._batches[0]
        try:
            if self._cut is None:
                self._cut = _cut(self._topic, batch, self._bounds)
            part = next(self._cut, None)
        except UNREADABLE as error:
            part = _unreadable(self._topic, batch, error)
        except BaseException:
            # A generator that raised is at its end.
            self._cut = None
            raise
        if part is None or part.unreadable:
            self._cut = None
            self._batches.popleft()
        else:
            # It may have to be cut anew, and goes on behind this part then.
            self._batches[0] = replace(batch, first_offset=part.reaches[0].end)
        return part


def _with_records_up_to(batches: Iterable[RecordBatch], most: int) -> Iterator[RecordBatch]:
    """The first batch, and those behind it that have no more records with it."""
    count = 0
    for index, batch in enumerate(batches):
        count += max(batch.count, 0)
        if index and count > most:
            return
        yield batch


def _decode_all(batch: RecordBatch, buffer: Bytes, start: int, positions: Int64s, row: int) -> int:
    """Find the records of a batch in the rest of a buffer; answer how many headers they have.

    Raises MalformedBatch.
    """
    end, headers = _decode(buffer, start, *_bases(batch), -1, positions, row, row + batch.count)
    if end != len(buffer):
        raise batch.malformed(_NO_RECORDS)
    return headers


def _expect_few_headers(batch: RecordBatch, headers: int, count: int) -> None:
    most = _HEADERS_BESIDES + _HEADERS_EACH * count
    if headers > most:
        raise batch.malformed(f"its records have {headers} headers, and {most} are the most")


def _part_of(topic: str, batches: Sequence[RecordBatch], buffer: Bytes, positions: Int64s) -> Part:
    """The records of whole batches, without those that were read before."""
    counts = [batch.count for batch in batches]
    partitions = np.repeat(np.array([batch.partition for batch in batches], np.int32), counts)
    begins = np.repeat(np.array([batch.first_offset for batch in batches], np.int64), counts)
    fresh = positions[_OFFSET] >= begins
    if not fresh.all():
        positions, partitions = np.ascontiguousarray(positions[:, fresh]), partitions[fresh]
    reaches: dict[int, Reach] = {}
    for batch in batches:
        first = reaches.get(batch.partition)
        reaches[batch.partition] = (
            Reach(batch.partition, batch.first_offset, batch.next_offset, batch.base_timestamp)
            if first is None
            else replace(first, end=batch.next_offset)
        )
    return Part(Records(buffer, positions, partitions, topic), list(reaches.values()))


def _cut(topic: str, batch: RecordBatch, bounds: Bounds) -> Iterator[Part]:
    """The records of one batch in several parts. Raises UnreadableBatch, and not behind the first part."""
    room = np.empty(bounds.batch_bytes, np.uint8)
    buffer = _read_only(room[: batch.read_into(room.data)])
    # All of it first: where its end cannot be read, nothing of it is taken.
    for _ in _decoded(batch, buffer, bounds.records):
        pass
    reach = Reach(batch.partition, batch.first_offset, batch.first_offset, batch.base_timestamp)
    for positions, is_last in _decoded(batch, buffer, bounds.records):
        positions = np.ascontiguousarray(positions[:, positions[_OFFSET] >= reach.end])
        count = positions.shape[1]
        if count:
            end = batch.next_offset if is_last else int(positions[_OFFSET, -1]) + 1
            reach = replace(reach, start=reach.end, end=end)
            partitions = np.full(count, batch.partition, np.int32)
            yield Part(Records(buffer, positions, partitions, topic), [reach])


def _decoded(batch: RecordBatch, buffer: Bytes, most: int) -> Iterator[tuple[Int64s, bool]]:
    """Where the batch's records are, so many at a time, and whether they are the last.

    Raises MalformedBatch.
    """
    position, before = 0, -1
    for row in range(0, batch.count, most):
        count = min(most, batch.count - row)
        positions = np.empty((_COLUMNS, count), np.int64)
        position, headers = _decode(buffer, position, *_bases(batch), before, positions, 0, count)
        is_last = row + count == batch.count
        if position < 0 or (is_last and position != len(buffer)):
            raise batch.malformed(_NO_RECORDS)
        _expect_few_headers(batch, headers, count)
        before = int(positions[_OFFSET, -1]) - batch.base_offset
        yield positions, is_last


def _unreadable(topic: str, batch: RecordBatch, error: UnreadableBatch) -> Part:
    nothing = Records(
        _read_only(np.empty(0, np.uint8)), np.empty((_COLUMNS, 0), np.int64), np.empty(0, np.int32), topic
    )
    reach = Reach(batch.partition, batch.first_offset, batch.next_offset, batch.base_timestamp)
    return Part(nothing, [reach], Unreadable(batch, error))


def _bases(batch: RecordBatch) -> tuple[int, int, int, bool]:
    """What `_decode` needs of a batch's header."""
    return batch.base_offset, batch.last_offset_delta, batch.base_timestamp, batch.has_append_time


def _read_only(buffer: Bytes) -> Bytes:
    """As bytes are: for others functions would be compiled once more."""
    view = buffer.view()
    view.flags.writeable = False
    return view


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
    last_delta: int,
    base_timestamp: int,
    fixed: bool,
    before: int,
    positions: Int64s,
    first: int,
    end_row: int,
) -> tuple[int, int]:
    """The position behind the records, and how many headers they have.

    -1 where they are no records, or their offsets do not rise from `before` on.
    """
    position, headers = start, 0
    for row in range(first, end_row):
        length, position = read_varint(buffer, position, len(buffer))
        if position < 0 or length < 1 or length > len(buffer) - position:
            return -1, 0
        end = position + length
        timestamp_delta, position = read_varint(buffer, position + 1, end)
        offset_delta, position = read_varint(buffer, position, end)
        key, key_length, position = read_string(buffer, position, end)
        value, value_length, position = read_string(buffer, position, end)
        if position < 0:
            return -1, 0
        count = _sound_headers(buffer, position, end)
        if count < 0:
            return -1, 0
        headers += count
        # They are what exactly once rests on.
        if offset_delta <= before or offset_delta > last_delta:
            return -1, 0
        before = offset_delta
        positions[0, row] = base_offset + offset_delta
        positions[1, row] = base_timestamp + (0 if fixed else timestamp_delta)
        positions[2, row] = key
        positions[3, row] = key_length
        positions[4, row] = value
        positions[5, row] = value_length
        positions[6, row] = position
        positions[7, row] = end
        position = end
    return position, headers


@compiled
def _sound_headers(buffer: Bytes, position: int, end: int) -> int:
    """How many headers there are; -1 where they are none."""
    count, position = read_varint(buffer, position, end)
    if position < 0 or count < 0:
        return -1
    for _ in range(count):
        _, length, position = read_string(buffer, position, end)
        if position < 0 or length < 0:
            return -1
        _, length, position = read_string(buffer, position, end)
        if position < 0:
            return -1
    return count if position == end else -1
