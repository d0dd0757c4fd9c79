"""An aiokafka consumer whose `getmany` answers with record batches instead of records.

aiokafka has no such option. `Fetcher` makes a `PartitionRecords` of each partition's fetched bytes, and that
iterates over batches, checks their sums, leaves out control batches and aborted transactions, and keeps the
position. Here a subclass takes its place. For consumers made by `batch_consumer_client` each batch is then
handed on whole, as if it were one record at the batch's last offset; all other consumers get what they got.
`max_records` and `getmany`'s lists count batches accordingly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher

from headrace.messaging.client import SESSION_SECONDS, consumer_client
from headrace.messaging.record_batches import RecordBatch

_LENGTH_POSITION: Final = 8
_LENGTH_END: Final = 12


def batch_consumer_client(
    bootstrap: str, *, group: str, client_id: str, session_seconds: float = SESSION_SECONDS
) -> AIOKafkaConsumer:
    """Like `consumer_client`, but what it reads are `RecordBatch`es."""
    return consumer_client(
        bootstrap,
        group=group,
        client_id=client_id,
        session_seconds=session_seconds,
        value_deserializer=_whole,
    )


def _whole(_: bytes) -> bytes:
    """Never called: it marks a consumer of whole batches."""
    raise AssertionError


class _WholeBatch:
    """A batch that iterates over itself: one record, of which aiokafka asks for nothing but the offset."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self.data = data
        self.offset = batch.next_offset - 1

    def __getattr__(self, name: str) -> object:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[_WholeBatch]:
        yield self

    def __next__(self) -> object:
        # Of a control batch, its marker.
        return next(self._batch)


class _WholeBatches:
    """A partition's fetched bytes, batch by batch."""

    def __init__(self, records: _KeptRecords) -> None:
        self._records = records
        self._data = memoryview(records.data)

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> _WholeBatch:
        length = int.from_bytes(self._data[_LENGTH_POSITION:_LENGTH_END], "big")
        data, self._data = self._data[: _LENGTH_END + length], self._data[_LENGTH_END + length :]
        return _WholeBatch(self._records.next_batch(), data)


class _KeptRecords(fetcher.MemoryRecords):  # type: ignore[misc] # aiokafka has no types for it
    """Fetched bytes that can still be asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """aiokafka's own, that hands on whole batches where they are asked for."""

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
        super().__init__(
            partition,
            _WholeBatches(records) if value_deserializer is _whole else records,
            aborted_transactions,
            fetch_offset,
            key_deserializer,
            value_deserializer,
            *others,
        )

    def _consumer_record(self, partition: TopicPartition, record: object) -> object:
        if isinstance(record, _WholeBatch):
            return RecordBatch(partition.topic, partition.partition, self.next_fetch_offset, record.data)
        return super()._consumer_record(partition, record)


fetcher.MemoryRecords = _KeptRecords
fetcher.PartitionRecords = _PartitionRecords
