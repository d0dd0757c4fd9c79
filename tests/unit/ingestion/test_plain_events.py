"""Events of a dataset's own topic, which have no envelope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import cast

import pytest
from tests.support.avro import framed
from tests.support.claims import FakePayloads, claims_of
from tests.support.records import Headers, Sent, batch_of, decode
from tests.unit.ingestion.test_judge_batch import DATASETS, GOOD, HEADERS
from tests.unit.ingestion.test_store_batch import NOW, World

from headrace.errors import InvalidArgument
from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.domain.replay import Correction, replay
from headrace.ingestion.domain.source_topic import (
    Feed,
    SourceFormat,
    SourceTopic,
    changes_format,
    check_source,
)
from headrace.ingestion.use_cases.judge_batch import Batch, Judge, Judged
from headrace.ingestion.use_cases.plain_events import PlainEvents
from headrace.ingestion.use_cases.ports import Catalogue, Place, SampleTables, Span
from headrace.ingestion.use_cases.store_batch import StoreBatch
from headrace.messaging.attributes import read_attributes
from headrace.messaging.events import decode as decode_event
from headrace.messaging.record_columns import Records

TOPIC = "clinic.scans"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BAD = b'{"id": "p", "a": "no"}'


def records_of(*sent: Sent) -> Records:
    return decode(TOPIC, [batch_of(each, topic=TOPIC) for each in sent])


def judged(
    *sent: Sent,
    source_format: SourceFormat = SourceFormat.JSON,
    rejected: Mapping[Place, int] = MappingProxyType({}),
    most: int = 1000,
) -> Judged:
    records = records_of(*sent)
    plain = PlainEvents("c", Feed("known", SourceTopic(TOPIC, source_format)))
    opened = plain.open(records, read_attributes(records), rejected, most)
    return Judge().judge("c", opened, DATASETS)


def test_an_event_is_named_by_its_place_and_dated_by_its_record() -> None:
    rows = judged(
        Sent(7, GOOD, (), None, partition=2, timestamp=1000), Sent(8, GOOD, [("traceparent", TRACE)])
    ).rows["known"]
    names = ("_event_id", "_event_source", "_event_time", "_topic", "_partition", "_offset", "_traceparent")
    assert [tuple(row.values()) for row in rows.select(names).to_pylist()] == [
        (f"c/{TOPIC}/2/7", TOPIC, datetime.fromtimestamp(1, UTC), TOPIC, 2, 7, None),
        (f"c/{TOPIC}/0/8", TOPIC, datetime.fromtimestamp(0, UTC), TOPIC, 0, 8, TRACE.decode()),
    ]


@pytest.mark.parametrize(
    "headers",
    [
        HEADERS,
        [("ce_subject", b"other"), ("ce_time", b"never"), ("CE_ID", b"\xff")],
        [("content-type", b"application/cloudevents+json")],
        [("traceparent", b"\xff")],
    ],
)
def test_headers_say_nothing(headers: Headers) -> None:
    [row] = judged(Sent(7, GOOD, headers)).rows["known"].to_pylist()
    assert (row["_event_id"], row["_event_source"], row["_traceparent"]) == (f"c/{TOPIC}/0/7", TOPIC, None)


def test_each_event_ends_as_a_row_or_a_rejection() -> None:
    found = judged(Sent(0, GOOD), Sent(1, None), Sent(2, BAD), Sent(3, b"[" * 900), Sent(4, GOOD), most=200)
    assert found.rows["known"].column("_offset").to_pylist() == [0, 4]
    assert sorted((r.offset, r.dataset, r.event_id, r.verdict.reason.value) for r in found.rejections) == [
        (1, "known", f"c/{TOPIC}/0/1", "MALFORMED_PAYLOAD"),
        (2, "known", f"c/{TOPIC}/0/2", "SCHEMA_VIOLATION"),
        (3, "known", f"c/{TOPIC}/0/3", "OVERSIZE_EVENT"),
    ]


def test_what_was_rejected_before_is_not_judged_again() -> None:
    found = judged(Sent(0, BAD), Sent(1, GOOD), rejected={(TOPIC, 0, 0): 1})
    assert (found.rejections, found.rows["known"].num_rows) == ([], 1)
    assert judged(Sent(0, BAD), rejected={(TOPIC, 0, 0): 1}) == Judged()


def test_the_dataset_says_what_values_are() -> None:
    sample = Sample(fields={"id": Value(string_value="q"), "a": Value(int_value=2)})
    protobuf = judged(Sent(0, sample.SerializeToString()), source_format=SourceFormat.PROTOBUF)
    assert protobuf.rows["known"].column("id").to_pylist() == ["q"]
    [rejection] = judged(Sent(0, framed(7, b"")), source_format=SourceFormat.AVRO).rejections
    assert rejection.verdict.rule == "registry"


@pytest.mark.parametrize("headers", [[("origin", b"scanner"), ("ce_id", b"theirs")], []])
def test_a_rejected_event_is_kept_as_what_it_was_read_as_and_sent_again_so(headers: Headers) -> None:
    [rejection] = judged(Sent(7, BAD, headers, b"k", timestamp=1000)).rejections
    assert rejection.headers[: len(headers)] == headers
    again = replay(rejection, Correction(payload=GOOD))
    event = decode_event(again.headers, again.payload, received=NOW)
    assert (event.id, event.source, event.subject) == (f"c/{TOPIC}/0/7", TOPIC, "known")
    assert (event.time, event.content_type) == (datetime.fromtimestamp(1, UTC), "application/json")
    assert (again.key, again.payload) == (b"k", GOOD)


async def test_a_topics_events_are_stored_without_a_look_for_repetitions() -> None:
    class Tables(World):
        def stored_events(self, dataset: Dataset, spans: Sequence[Span]) -> object:
            raise AssertionError("two places are two events")

    world = Tables(declared=DATASETS["known"])
    store = StoreBatch(
        cast("Catalogue", world),
        cast("SampleTables", world),
        world,
        clock=lambda: NOW,
        max_event_bytes=1000,
        deduplicate_events=1000,
        registry=None,
        claims=claims_of(FakePayloads(), max_bytes=0),
    )
    records = records_of(Sent(10, GOOD), Sent(11, BAD), Sent(12, GOOD))
    spans = [Span(SourcePartition("c", TOPIC, 0), 10, 13)]
    feed = Feed("known", SourceTopic(TOPIC))
    stored = await store(Batch("c", records, read_attributes(records), spans, feed))
    assert (stored.rows, stored.repeated) == ({"known": 2}, {"known": 0})
    [kept] = [row.rejection for row in world.kept.values()]
    assert isinstance(kept, Rejection)
    assert (kept.topic, kept.offset) == (TOPIC, 11)


@pytest.mark.parametrize("topic", ["", "a b", ".", "..", "x" * 250, "headrace.ingestion.samples.v1", "__x"])
def test_not_every_topic_can_be_a_datasets(topic: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_source(SourceTopic(topic))
    assert raised.value.reason == "INVALID_SOURCE"
    assert raised.value.fields[0].field == "source.topic"


def test_a_topic_of_the_owners_can_be_a_datasets() -> None:
    check_source(SourceTopic("Clinic_scans.v1-eu"))
    check_source(None)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (None, SourceTopic("a"), False),
        (SourceTopic("a"), None, False),
        (SourceTopic("a"), SourceTopic("a"), False),
        (SourceTopic("a"), SourceTopic("b", SourceFormat.AVRO), False),
        (SourceTopic("a"), SourceTopic("a", SourceFormat.AVRO), True),
    ],
)
def test_another_format_makes_other_rows_of_the_same_events(
    before: SourceTopic | None, after: SourceTopic | None, *, changed: bool
) -> None:
    assert changes_format(before, after) == changed
