"""The CloudEvents envelope: what is encoded is what is read, and what is no CloudEvent is refused by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from headrace.events.inference.v1.events_pb2 import Feedback
from headrace.messaging.events import (
    Event,
    InvalidCloudEvent,
    MalformedPayload,
    decode,
    encode,
    parse,
    protobuf_event,
)

RECEIVED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REQUIRED = {
    "ce_specversion": b"1.0",
    "ce_id": b"1",
    "ce_source": b"tests",
    "ce_type": b"tests.thing.v1",
}

words = st.text(min_size=1, max_size=20)
# CloudEvents names attributes in lower-case letters and digits.
extension_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20).filter(
    lambda name: name not in {"specversion", "id", "source", "type", "subject", "time", "datacontenttype"}
)
times = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 - the zone is drawn beside it
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.sampled_from(
        [UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-11, minutes=-30))]
    ),
)
events = st.builds(
    Event,
    id=words,
    source=words,
    type=words,
    subject=st.text(max_size=20),
    time=times,
    data=st.binary(max_size=100),
    content_type=st.sampled_from(["application/protobuf", "application/json", "text/plain; charset=utf-8"]),
    traceparent=st.just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") | st.just(""),
    tracestate=st.text("abc=,", max_size=10),
    extensions=st.dictionaries(extension_names, words, max_size=3),
)


@given(events)
def test_an_event_comes_back_as_it_was_encoded(event: Event) -> None:
    assert decode(*encode(event), received=RECEIVED) == event


@given(st.lists(st.tuples(st.text(max_size=15), st.none() | st.binary(max_size=15))), st.none() | st.binary())
def test_any_headers_are_an_event_or_no_cloudevent(
    headers: list[tuple[str, bytes]], value: bytes | None
) -> None:
    try:
        decode(headers, value, received=RECEIVED)
    except InvalidCloudEvent as error:
        assert str(error).startswith(f"{error.attribute}: ")


@given(st.sampled_from([*REQUIRED, "ce_time"]), st.binary(max_size=12))
def test_any_attribute_is_right_or_the_error_names_it(name: str, raw: bytes) -> None:
    try:
        decode([*{**REQUIRED, name: raw}.items()], b"", received=RECEIVED)
    except InvalidCloudEvent as error:
        assert error.attribute == name


@pytest.mark.parametrize("missing", list(REQUIRED))
def test_a_missing_attribute_is_named(missing: str) -> None:
    headers = [(name, value) for name, value in REQUIRED.items() if name != missing]
    with pytest.raises(InvalidCloudEvent, match=f"{missing}: is missing"):
        decode(headers, b"", received=RECEIVED)


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("ce_specversion", b"0.3", "must be '1.0'"),
        ("ce_id", b"\xff", "is not UTF-8"),
        ("ce_time", b"yesterday", "is not an RFC 3339 time"),
        ("ce_time", b"2026-01-02T03:04:05", "has no time zone"),
        ("ce_time", b"0001-01-01T00:00:00+14:00", "is not an RFC 3339 time"),
    ],
)
def test_a_wrong_attribute_is_named_with_what_is_wrong(header: str, value: bytes, message: str) -> None:
    headers = [*{**REQUIRED, header: value}.items()]
    with pytest.raises(InvalidCloudEvent, match=message) as raised:
        decode(headers, b"", received=RECEIVED)
    assert raised.value.attribute == header


def test_a_foreign_producers_spelling_is_read() -> None:
    headers = [
        *((name.upper(), value) for name, value in REQUIRED.items()),
        ("ce_datacontenttype", b"application/json"),
        ("ce_tenant", b"a"),
        ("other", b"ignored"),
    ]
    event = decode(headers, None, received=RECEIVED)
    assert (event.time, event.data, event.content_type) == (RECEIVED, b"", "application/json")
    assert event.extensions == {"tenant": "a"}


def test_an_extension_cannot_take_an_attributes_place() -> None:
    event = Event("1", "tests", "t", "s", RECEIVED, b"", extensions={"id": "2", "tenant": "a"})
    assert dict(encode(event)[0])["ce_id"] == b"1"


def feedback() -> Feedback:
    return Feedback(deployment="d", prediction_id="p-1")


def json_event(data: bytes, content_type: str = "application/json") -> Event:
    return Event("1", "tests", "t", "s", RECEIVED, data, content_type)


def test_a_payload_is_read_from_protobuf_and_from_json() -> None:
    event = protobuf_event(feedback(), type="t", source="tests", subject="s", id="1", time=RECEIVED)
    assert parse(event, Feedback) == feedback()
    text = json_format.MessageToJson(feedback()).encode()
    assert parse(json_event(text, "application/json; charset=utf-8"), Feedback) == feedback()


def test_the_same_message_has_the_same_bytes() -> None:
    events = [
        protobuf_event(feedback(), type="t", source="tests", subject="s", id="1", time=RECEIVED)
        for _ in range(3)
    ]
    assert len({event.data for event in events}) == 1


@pytest.mark.parametrize(
    "event",
    [
        json_event(b"{"),
        json_event(b'{"no_such_field": 1}'),
        json_event(b"\xff\xfe"),
        json_event(b"[" * 100_000),
        json_event(b"\xff" * 10, "application/protobuf"),
        json_event(b"", "application/xml"),
    ],
    ids=["broken JSON", "unknown field", "no UTF-8", "deep", "broken Protobuf", "unknown content type"],
)
def test_a_payload_that_is_not_what_it_says_is_refused(event: Event) -> None:
    with pytest.raises(MalformedPayload):
        parse(event, Feedback)


def test_an_event_outside_any_span_has_no_trace() -> None:
    event = protobuf_event(feedback(), type="t", source="tests", subject="s", id="1", time=RECEIVED)
    assert event.traceparent == ""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    carried = protobuf_event(
        feedback(), type="t", source="tests", subject="s", id="1", time=RECEIVED, traceparent=traceparent
    )
    assert dict(encode(carried)[0])["traceparent"] == traceparent.encode()
