"""Records as a broker sends them: encoded into record batches, of which `decode` makes columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from headrace.messaging.record_batch import MAX_BATCH_BYTES, RecordBatch
from headrace.messaging.record_columns import Bounds, Part, PartReader, Records

Headers = Sequence[tuple[str, bytes]]


@dataclass
class Sent:
    """What a producer sends, and where it came to stand."""

    offset: int = 0
    value: bytes | None = b"{}"
    headers: Headers = ()
    key: bytes | None = b"k"
    partition: int = 0
    timestamp: int = 0


def batch_of(*sent: Sent, topic: str = "t", codec: int = 0, first_offset: int | None = None) -> RecordBatch:
    """A batch of records at rising offsets of one partition."""
    first = sent[0]
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 30)
    for record in sent:
        builder.append(
            offset=record.offset - first.offset,
            timestamp=record.timestamp,
            key=record.key,
            value=record.value,
            headers=list(record.headers),
        )
    data = bytearray(builder.build())
    # The broker is who says at which offset a batch stands; the checksum does not cover it.
    data[:8] = first.offset.to_bytes(8, "big")
    begin = first.offset if first_offset is None else first_offset
    return RecordBatch(topic, first.partition, begin, memoryview(data))


def parts_of(batches: Sequence[RecordBatch], bounds: Bounds) -> list[Part]:
    """All parts of record batches."""
    reader = PartReader("t", batches, bounds)
    return list(iter(reader.read, None))


def decode(topic: str, batches: Sequence[RecordBatch]) -> Records:
    """The records of batches that fit into one part. Raises MalformedBatch or OversizeBatch."""
    part = PartReader(topic, batches, Bounds(1 << 20, MAX_BATCH_BYTES)).read()
    assert part is not None
    if part.unreadable:
        raise part.unreadable.error
    return part.records


def records_of(sent: Iterable[Sent]) -> Records:
    """Each in a batch of its own, so that their times need not be near each other."""
    return decode("t", [batch_of(record) for record in sent])
