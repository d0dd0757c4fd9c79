from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

import pyarrow as pa
from numba.core.dispatcher import Dispatcher
from tests.support.avro import framed, text, varint
from tests.support.records import Sent, batch_of, decode

from headrace.ingestion.domain import content_hash, decimals, flat_avro, flat_json, recent_events
from headrace.ingestion.domain.avro import AvroReader
from headrace.ingestion.domain.columnar import ColumnReader
from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.framing import unframed
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.use_cases.deduplicate import Deduplicator
from headrace.ingestion.use_cases.envelopes import open_envelopes
from headrace.ingestion.use_cases.ports import SampleTables, Span
from headrace.ingestion.warm_up import warm_up
from headrace.messaging import attributes, record_columns
from headrace.native import Spans, spans, xxh64

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MODULES = (
    attributes,
    content_hash,
    decimals,
    flat_avro,
    flat_json,
    recent_events,
    record_columns,
    spans,
    xxh64,
)


def compiled() -> dict[str, int]:
    """How many kinds of arguments each function was compiled for."""
    return {
        f"{module.__name__}.{name}": len(function.signatures)
        for module in MODULES
        for name, function in vars(module).items()
        if isinstance(function, Dispatcher)
    }


def test_a_batch_finds_everything_compiled() -> None:
    warm_up()
    before = compiled()
    headers = [("ce_id", b"1"), ("ce_time", b"2026-01-01T00:00:00Z"), ("traceparent", b"x")]
    records = decode("t", [batch_of(*(Sent(offset, headers=headers) for offset in range(3)))])
    open_envelopes(records, attributes.read_attributes(records), {}, 1000)
    schema = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8, nullable=True))
    writer = AvroReader(
        '{"type": "record", "name": "R", "fields": [{"name": "id", "type": "string"}, '
        '{"name": "a", "type": ["null", "float"]}]}',
        schema,
    )
    payloads = unframed(Spans.of([framed(1, text(b"p") + varint(1) + bytes(4))] * 2))
    assert ColumnReader(schema).read_framed(payloads, writer).table.num_rows == 2
    deduplicator = Deduplicator(cast("SampleTables", None), reach=10)
    rows = pa.table(
        {
            "_event_source": ["s", "s"],
            "_event_id": ["a", "a"],
            "_partition": pa.array([0, 0], pa.int32()),
            "_offset": pa.array([0, 1], pa.int64()),
        }
    )
    dataset = Dataset("d", Schema("id", (), Field("y", FieldType.INT8)), Cut(), 1, NOW, NOW)
    deduplicator.fresh(dataset, rows, [Span(SourcePartition("c", "t", 0), 0, 2)]).remember()
    assert compiled() == before
    assert before["headrace.messaging.record_columns._decode"] == 1
    assert before["headrace.ingestion.domain.flat_avro._read_rows"] == 1
