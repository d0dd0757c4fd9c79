"""What aiokafka makes of fetched bytes, where that is not what is needed here.

`Fetcher` makes a `PartitionRecords` of each partition's fetched bytes, and that iterates over batches, checks
their sums, leaves out control batches and aborted transactions, and keeps the position. There is no way to
choose another, so a subclass takes its place, for two things:

- To consumers that are made with WHOLE_BATCHES each batch is handed on undecoded, as if it were one record at
  the batch's last offset. `max_records` and `getmany`'s lists count batches then.
- aiokafka cannot read a record that has a header whose name is no UTF-8, and neither the ones behind it in
  its batch: such a batch is read here, for all consumers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher

from headrace.messaging.record_batch import RecordBatch, read_records

_LENGTH_POSITION: Final = 8
_LENGTH_END: Final = 12


def WHOLE_BATCHES(_: bytes) -> bytes:  # noqa: N802 - a constant that aiokafka passes on
    """As a consumer's `value_deserializer` it asks for record batches. It is never called."""
    raise AssertionError


@dataclass(frozen=True, slots=True)
class _Whole:
    """A batch in the place of a record."""

    offset: int


@dataclass(frozen=True, slots=True)
class _Lenient:
    """A record that aiokafka could not read, as it would have been."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp_type: int = 0
    checksum: int | None = None


class _Batch:
    """aiokafka's batch, with its bytes."""

    def __init__(self, batch: Any, whole: RecordBatch, *, decoded: bool) -> None:
        self._batch = batch
        self._whole = whole
        self._decoded = decoded

    def __getattr__(self, name: str) -> object:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[object]:
        if not self._decoded:
            yield _Whole(self._whole.next_offset - 1)
            return
        try:
            yield from self._batch
        except UnicodeDecodeError:
            # Once more from the beginning: what was handed on is below the position, and left out.
            for record in read_records(self._whole):
                yield _Lenient(record.offset, record.timestamp, record.key, record.value, record.headers)

    def __next__(self) -> object:
        # Of a control batch, its marker.
        return next(self._batch)


class _Batches:
    """A partition's fetched bytes, batch by batch."""

    def __init__(self, partition: TopicPartition, records: _KeptRecords, *, decoded: bool) -> None:
        self._partition = partition
        self._records = records
        self._decoded = decoded
        self._data = memoryview(records.data)
        self.current: RecordBatch | None = None

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> _Batch:
        length = int.from_bytes(self._data[_LENGTH_POSITION:_LENGTH_END], "big")
        data, self._data = self._data[: _LENGTH_END + length], self._data[_LENGTH_END + length :]
        self.current = RecordBatch(self._partition.topic, self._partition.partition, 0, data)
        return _Batch(self._records.next_batch(), self.current, decoded=self._decoded)


class _KeptRecords(fetcher.MemoryRecords):  # type: ignore[misc] # aiokafka has no types for it
    """Fetched bytes that can still be asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """aiokafka's own, over batches of our own."""

    def __init__(
        self,
        partition: TopicPartition,
        records: _KeptRecords,
        aborted_transactions: object,
        fetch_offset: int,
        key_deserializer: object,
        value_deserializer: object,
        *others: object,
    ) -> None:
        self._batches = _Batches(partition, records, decoded=value_deserializer is not WHOLE_BATCHES)
        super().__init__(
            partition,
            self._batches,
            aborted_transactions,
            fetch_offset,
            key_deserializer,
            value_deserializer,
            *others,
        )

    def _consumer_record(self, partition: TopicPartition, record: object) -> object:
        if isinstance(record, _Whole):
            assert self._batches.current is not None
            return replace(self._batches.current, first_offset=self.next_fetch_offset)
        return super()._consumer_record(partition, record)


fetcher.MemoryRecords = _KeptRecords
fetcher.PartitionRecords = _PartitionRecords
