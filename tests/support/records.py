"""Records as a broker sends them: encoded into record batches, of which `decode` makes columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from headrace.messaging.record_batch import RecordBatch
from headrace.messaging.record_columns import Records, decode

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


def records_of(sent: Iterable[Sent]) -> Records:
    """Each in a batch of its own, so that their times need not be near each other."""
    return decode("t", [batch_of(record) for record in sent])
