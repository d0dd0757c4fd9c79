"""`python -m headrace.ingestion.warm_up`: compiles what batches run through, before the first one comes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import numpy as np
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion.domain.content_hash import hash_rows
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.recent_events import RecentEvents, name_hashes
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.use_cases.envelopes import (
    AVRO_TYPE,
    JSON_TYPE,
    PROTOBUF_TYPE,
    SAMPLE_TYPE,
    open_envelopes,
)
from headrace.ingestion.use_cases.judge_batch import Judge
from headrace.ingestion.use_cases.ports import RegisteredSchema
from headrace.messaging.attributes import read_attributes
from headrace.messaging.record_batch import RecordBatch
from headrace.messaging.record_columns import Bounds, PartReader
from headrace.splits import Shares, assign

_MAGIC: Final = 2
_ROOM: Final = 4096
_NOW: Final = datetime.fromtimestamp(0, UTC)
_DATASET: Final = Dataset(
    "warm-up", Schema("key", (), Field("value", FieldType.FLOAT64)), Cut(), 1, _NOW, _NOW
)


_SCHEMA_ID: Final = 1
_WRITER: Final = RegisteredSchema(
    "AVRO",
    '{"type": "record", "name": "Sample", "fields": ['
    '{"name": "key", "type": "string"}, {"name": "value", "type": "double"}]}',
)
# By content type: the same sample as JSON, in Protobuf, and as Avro in its frame.
_SAMPLES: Final = {
    JSON_TYPE: b'{"key": "k", "value": 0.0}',
    PROTOBUF_TYPE: Sample(
        fields={"key": Value(string_value="k"), "value": Value(double_value=0.0)}
    ).SerializeToString(),
    AVRO_TYPE: bytes([0, 0, 0, 0, _SCHEMA_ID, 2]) + b"k" + bytes(8),
}


def warm_up() -> None:
    """Take a made-up sample of each format that is compiled all the way to a row.

    That compiles each function, which takes ten seconds, or loads it from the cache on disk, a part of one.
    """
    headers = {
        "ce_specversion": "1.0",
        "ce_id": "1",
        "ce_source": "warm-up",
        "ce_type": SAMPLE_TYPE,
        "ce_subject": _DATASET.name,
        "ce_time": "1970-01-01T00:00:00Z",
    }
    builder = DefaultRecordBatchBuilder(_MAGIC, 0, False, -1, -1, -1, _ROOM)
    for offset, (content_type, payload) in enumerate(_SAMPLES.items()):
        texts = {**headers, "content-type": content_type}
        builder.append(
            offset=offset,
            timestamp=0,
            key=b"k",
            value=payload,
            headers=[(name, text.encode()) for name, text in texts.items()],
        )
    batch = RecordBatch("warm-up", 0, 0, memoryview(bytes(builder.build())))
    part = PartReader("warm-up", [batch], Bounds(len(_SAMPLES), _ROOM, _ROOM)).read()
    assert part is not None
    records = part.records
    opened = open_envelopes(records, read_attributes(records), {}, _ROOM)
    judged = Judge().judge("warm-up", opened, {_DATASET.name: _DATASET}, {_SCHEMA_ID: _WRITER})
    rows = judged.rows[_DATASET.name]
    hash_rows(rows, ["key", "value"])
    names = name_hashes(rows.column("_event_source"), rows.column("_event_id"))
    recent, offsets = RecentEvents(1), np.zeros(len(_SAMPLES), np.int64)
    recent.repeated(names, offsets)
    recent.add(names, offsets)
    # Of cuts, whose loop must not wait either.
    assign(rows.column("key").combine_chunks(), Shares(1, 0, 0), few=0)


if __name__ == "__main__":
    warm_up()
