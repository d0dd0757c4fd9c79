from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.records import Headers, Sent, records_of

from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion import translation
from headrace.ingestion.domain.columnar import Malformed
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.rejection import Reason, Verdict
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Role, Schema
from headrace.ingestion.rejected_events import rejected_event
from headrace.ingestion.settings import MAX_PUBLISHED_BYTES, MIN_PUBLISHED_BYTES, Settings
from headrace.ingestion.use_cases.envelopes import Opened, open_envelopes
from headrace.ingestion.use_cases.judge_batch import Judge, Judged, parse_sample
from headrace.ingestion.use_cases.ports import Place
from headrace.messaging.attributes import read_attributes
from headrace.messaging.events import encode
from headrace.postgres.outbox import MAX_EVENT_BYTES

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SCHEMA = Schema("id", (Field("a", FieldType.FLOAT32),), Field("y", FieldType.INT8, nullable=True))
DATASETS = {"known": Dataset("known", SCHEMA, Cut(), 1, NOW, NOW)}
GOOD = orjson.dumps({"id": "p", "a": 1, "y": 0})
ENVELOPE = {
    "ce_specversion": b"1.0",
    "ce_id": b"e1",
    "ce_source": b"tests",
    "ce_type": b"headrace.ingestion.sample.v1",
    "ce_subject": b"known",
    "ce_time": b"2026-01-02T00:00:00Z",
    "content-type": b"application/json",
}
HEADERS: Headers = list(ENVELOPE.items())


def sent(
    offset: int = 0,
    value: bytes | None = GOOD,
    headers: Headers = HEADERS,
    key: bytes | None = b"p",
    timestamp: int = 0,
) -> Sent:
    return Sent(offset, value, headers, key, timestamp=timestamp)


def opened(
    records: Sequence[Sent], rejected: Mapping[Place, int] = MappingProxyType({}), most: int = 1000
) -> Opened:
    decoded = records_of(records)
    return open_envelopes(decoded, read_attributes(decoded), rejected, most)


def judge(records: Sequence[Sent], *, max_event_bytes: int = 1000) -> Judged:
    return Judge().judge("cluster", opened(records, most=max_event_bytes), DATASETS)


def offsets_of(judged: Judged) -> list[int]:
    stored = [offset for rows in judged.rows.values() for offset in rows.column("_offset").to_pylist()]
    return sorted([*stored, *(rejection.offset for rejection in judged.rejections)])


def test_what_was_rejected_before_is_not_judged_again() -> None:
    records = [sent(0), sent(1), sent(2)]
    [samples] = opened(records, {("t", 0, 1): 2}).samples
    assert samples.indexes.tolist() == [0, 2]


def test_what_was_rejected_as_a_whole_is_not_judged_once_it_can_be_read() -> None:
    records = [sent(offset) for offset in range(3, 8)] + [replace(sent(5), partition=1)]
    [samples] = opened(records, {("t", 0, 2): 5, ("t", 0, 6): 7, ("t", 1, 6): 9}).samples
    assert samples.indexes.tolist() == [2, 4, 5]


@pytest.mark.parametrize("size", [1000, 1001])
def test_an_event_is_too_large_by_key_payload_and_headers_together(size: int) -> None:
    overhead = sum(len(name) + len(value) for name, value in ENVELOPE.items()) + len(GOOD)
    judged = judge([sent(key=b"k" * (size - overhead))])
    assert [rejection.verdict.reason.value for rejection in judged.rejections] == (
        ["OVERSIZE_EVENT"] if size > 1000 else []
    )


def test_an_event_without_a_time_has_that_of_its_record_even_where_that_is_senseless() -> None:
    headers = [(name, value) for name, value in ENVELOPE.items() if name != "ce_time"]
    judged = judge([sent(0, headers=headers, timestamp=1000), sent(1, headers=headers, timestamp=2**62)])
    times = judged.rows["known"].column("_event_time").to_pylist()
    assert times == [datetime.fromtimestamp(1, UTC), datetime.fromtimestamp(0, UTC)]


def test_json_and_protobuf_stand_side_by_side() -> None:
    sample = Sample(fields={"id": Value(string_value="q"), "a": Value(int_value=2)})
    headers = list({**ENVELOPE, "content-type": b"application/protobuf"}.items())
    judged = judge([sent(0), sent(1, sample.SerializeToString(), headers), sent(2, b"{")])
    assert sorted(judged.rows["known"].column("id").to_pylist()) == ["p", "q"]
    assert [rejection.offset for rejection in judged.rejections] == [2]


def test_structured_events_of_both_formats_stand_beside_others() -> None:
    headers: Headers = [("content-type", b"application/cloudevents+json")]
    envelope = {name.removeprefix("ce_"): text.decode() for name, text in ENVELOPE.items() if "ce_" in name}
    sample = Sample(fields={"id": Value(string_value="r"), "a": Value(int_value=2)}).SerializeToString()
    protobuf = {"datacontenttype": "application/protobuf", "data_base64": base64.b64encode(sample).decode()}
    judged = judge(
        [
            sent(0),
            sent(1, orjson.dumps({**envelope, "data": {"id": "q", "a": 1.5}}), headers),
            sent(2, orjson.dumps({**envelope, **protobuf}), headers),
            sent(3, orjson.dumps({**envelope, "data": {"id": "s", "a": "no"}}), headers),
            sent(4, orjson.dumps({**envelope, "id": 1, "data": {}}), headers),
        ]
    )
    assert sorted(judged.rows["known"].column("id").to_pylist()) == ["p", "q", "r"]
    found = {rejection.offset: rejection for rejection in judged.rejections}
    assert [(found[n].verdict.reason.value, found[n].verdict.field) for n in (3, 4)] == [
        ("SCHEMA_VIOLATION", "a"),
        ("INVALID_CLOUDEVENT", "ce_id"),
    ]
    # What is kept is what was sent.
    assert found[3].payload.startswith(b'{"specversion"')
    assert (found[3].dataset, found[3].event_id) == ("known", "e1")


def test_a_protobuf_double_that_is_no_number_is_rejected_by_its_rule() -> None:
    sample = Sample(fields={"id": Value(string_value="q"), "a": Value(double_value=float("nan"))})
    headers = list({**ENVELOPE, "content-type": b"application/protobuf"}.items())
    [rejection] = judge([sent(0, sample.SerializeToString(), headers)]).rejections
    assert (rejection.verdict.field, rejection.verdict.rule) == ("a", "finite")


def test_a_row_without_a_time_of_its_own_has_that_of_its_envelope() -> None:
    taken = Field("taken", FieldType.TIMESTAMP, nullable=True, role=Role.TIME)
    dataset = replace(DATASETS["known"], schema=replace(SCHEMA, attributes=(taken,)))
    timely = orjson.dumps({"id": "p", "a": 1, "y": 0, "taken": "2025-06-07T08:09:10Z"})
    judged = Judge().judge("cluster", opened([sent(0, timely), sent(1)]), {"known": dataset})
    assert judged.rows["known"].column("_event_time").to_pylist() == [
        datetime(2025, 6, 7, 8, 9, 10, tzinfo=UTC),
        NOW,
    ]


HEADER = st.tuples(
    st.one_of(st.sampled_from([*ENVELOPE, "traceparent", "ce_x"]), st.text(max_size=5)),
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            [
                *ENVELOPE.values(),
                b"application/protobuf",
                b"application/cloudevents+json",
                b"0001-01-01T00:00:00+01:00",
                b"\0",
            ]
        ),
    ),
)
RECORD = st.builds(
    sent,
    value=st.one_of(st.none(), st.binary(max_size=40), st.just(GOOD)),
    key=st.one_of(st.none(), st.binary(max_size=5)),
    headers=st.lists(HEADER, max_size=4).map(lambda extra: [*ENVELOPE.items(), *extra]),
    timestamp=st.integers(-(2**63), 2**63 - 1),
)


@given(st.lists(RECORD, min_size=1, max_size=20))
def test_every_record_ends_as_one_row_or_one_rejection(records: list[Sent]) -> None:
    for offset, record in enumerate(records):
        record.offset = offset
    judged = judge(records)
    assert offsets_of(judged) == list(range(len(records)))
    for rejection in judged.rejections:
        # Whatever somebody sent, it can be published and listed.
        whole = translation.rejected_to_message(rejection, NOW)
        assert whole.payload == rejection.payload
        whole.SerializeToString()


@pytest.mark.parametrize(
    "text",
    ['{"\\ud800": 1}', '{"id": "\\udfff"}', '{"\\ud800": 1, "specversion": "1.0"', '{"data": "\\ud800"}'],
)
@pytest.mark.parametrize("media_type", [b"application/cloudevents+json", b"application/json"])
def test_half_a_character_in_an_event_stops_nothing(text: str, media_type: bytes) -> None:
    headers = list({**ENVELOPE, "content-type": media_type}.items())
    [rejection] = judge([sent(0, text.encode(), headers)]).rejections
    rejected_event(rejection, NOW, MAX_PUBLISHED_BYTES)


def test_what_a_verdict_says_is_text_whatever_it_quotes() -> None:
    verdict = Verdict(Reason.INVALID_CLOUDEVENT, "\ud800 is no name", field="ce_\ud800")
    batch = replace(opened([sent(0)]), samples=(), refused=[(0, verdict)])
    [rejection] = Judge().judge("c", batch, DATASETS).rejections
    assert (rejection.verdict.field, rejection.verdict.message) == ("ce_?", "? is no name")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_sample_or_malformed(data: bytes) -> None:
    assert isinstance(parse_sample(data), dict | Malformed)


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 300))
def test_what_is_published_of_a_rejected_event_has_a_bound(payload: int, key: int, headers: int) -> None:
    # Protobuf adds more to such a header than it holds itself.
    extra = [(f"{number}", b"") for number in range(headers)]
    record = sent(0, b"x" * payload, [*ENVELOPE.items(), *extra], b"k" * key)
    [rejection] = judge([record], max_event_bytes=10_000).rejections
    message = translation.rejected_to_message(rejection, NOW, 1500)
    assert message.ByteSize() <= 1500
    assert rejection.payload.startswith(message.payload)
    assert rejection.key.startswith(message.key)
    assert dict(message.headers) in ({}, dict(rejection.headers))
    whole = (rejection.key, rejection.payload) == (message.key, message.payload) and bool(message.headers)
    assert whole == ("stands whole in ListRejected" not in message.message)


@pytest.mark.parametrize("headers", [[], [(f"{number}", b"") for number in range(150_000)]])
def test_an_event_about_the_largest_rejected_one_fits_into_a_record(headers: list[tuple[str, bytes]]) -> None:
    longest = "\N{PILE OF POO}" * 100_000
    attributes = {**ENVELOPE, "ce_subject": longest.encode(), "traceparent": longest.encode()}
    record = sent(0, b"x" * 10_000_000, [*attributes.items(), *headers], b"\xff" * 1_000_000)
    [rejection] = judge([record]).rejections
    key, event = rejected_event(rejection, NOW, MAX_PUBLISHED_BYTES)
    names_and_values, value = encode(event)
    size = len(key) + len(value) + sum(len(name) + len(text) for name, text in names_and_values)
    assert size <= MAX_EVENT_BYTES
    # The judgement is never what is cut off.
    smallest = translation.rejected_to_message(rejection, NOW, MIN_PUBLISHED_BYTES)
    assert smallest.ByteSize() <= MIN_PUBLISHED_BYTES


@pytest.mark.parametrize("bytes_", [MIN_PUBLISHED_BYTES - 1, MAX_PUBLISHED_BYTES + 1])
def test_no_more_may_be_published_than_a_record_takes(bytes_: int) -> None:
    with pytest.raises(ValidationError):
        Settings(max_published_bytes=bytes_)
