"""The CloudEvents envelope: what is encoded is what is read, and what is no CloudEvent is refused by name."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from headrace.events.inference.v1.events_pb2 import Feedback
from headrace.messaging.events import (
    Event,
    Headers,
    InvalidCloudEvent,
    MalformedPayload,
    decode,
    encode,
    parse,
    protobuf_event,
)
from headrace.messaging.json_members import json_members

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


STRUCTURED_HEADERS = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
ENVELOPE = {"specversion": "1.0", "id": "1", "source": "tests", "type": "tests.thing.v1"}


def structured(text: str | bytes, headers: Headers = STRUCTURED_HEADERS) -> Event:
    return decode(headers, text.encode() if isinstance(text, str) else text, received=RECEIVED)


@given(events)
def test_a_structured_event_is_the_same_event(event: Event) -> None:
    members = {
        **event.extensions,
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time.isoformat(),
        "datacontenttype": event.content_type,
        "traceparent": event.traceparent,
        "tracestate": event.tracestate,
        "data_base64": base64.b64encode(event.data).decode(),
    }
    assert structured(json.dumps(members)) == event


@pytest.mark.parametrize(
    ("data", "content_type", "expected"),
    [
        # As it was written: 1.0 is no integer, and a name that is there twice is for whoever reads it.
        ('{"a": 1.0,"a":2}', None, b'{"a": 1.0,"a":2}'),
        ('"text"', "application/json", b'"text"'),
        ('"text"', "text/plain", b"text"),
        ("[1]", "application/vnd.x+json", b"[1]"),
        ("null", None, b""),
    ],
)
def test_structured_data_is_what_its_content_type_says(
    data: str, content_type: str | None, expected: bytes
) -> None:
    attributes = ENVELOPE if content_type is None else {**ENVELOPE, "datacontenttype": content_type}
    event = structured(json.dumps(attributes)[:-1] + f', "data": {data}}}')
    assert (event.data, event.content_type) == (expected, content_type or "application/json")


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        ({"id": None}, "ce_id"),
        ({"id": ""}, "ce_id"),
        ({"id": 7}, "ce_id"),
        ({"type": ["a"]}, "ce_type"),
        ({"specversion": "0.3"}, "ce_specversion"),
        ({"time": "noon"}, "ce_time"),
        ({"source": "\ud800"}, "ce_source"),
        ({"Id": "1"}, "ce_Id"),
        ({"\ud800": 1}, "ce_\\ud800"),
        ({"datacontenttype": 1}, "ce_datacontenttype"),
        ({"extension": {"a": 1}}, "ce_extension"),
        ({"extension": 1.5}, "ce_extension"),
        ({"data": 1, "data_base64": "MQ=="}, "data"),
        ({"data_base64": "M"}, "data_base64"),
        ({"data_base64": 1}, "data_base64"),
    ],
)
def test_a_structured_event_that_is_wrong_is_refused_by_name(
    change: dict[str, object], attribute: str
) -> None:
    with pytest.raises(InvalidCloudEvent) as caught:
        structured(json.dumps({**ENVELOPE, **change}))
    assert caught.value.attribute == attribute


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        "[]",
        "{",
        "{}{}",
        '{"id": "1",}',
        '{"id": "1" "type": "t"}',
        '{"id": "1", "id": "2"}',
        "{1: 2}",
        '{"id"}',
        '{"data": ' + "[" * 100_000,
    ],
)
def test_what_is_no_json_object_is_no_structured_event(text: str | bytes) -> None:
    with pytest.raises(InvalidCloudEvent) as caught:
        structured(text)
    assert caught.value.attribute == "content-type"


@pytest.mark.parametrize("kind", ["application/cloudevents-batch+json", "application/cloudevents+protobuf"])
def test_other_forms_of_structured_events_are_refused(kind: str) -> None:
    with pytest.raises(InvalidCloudEvent, match=r"send application/cloudevents\+json"):
        structured("{}", [("content-type", kind.encode())])


def test_extensions_may_be_numbers_and_the_headers_of_a_trace_count() -> None:
    headers = [*STRUCTURED_HEADERS, ("traceparent", b"00-a-b-01"), ("ce_id", b"other")]
    event = structured(json.dumps({**ENVELOPE, "count": 5, "last": True, "none": None}), headers)
    assert (event.id, event.extensions) == ("1", {"count": "5", "last": "true"})
    assert (event.traceparent, event.time) == ("00-a-b-01", RECEIVED)


JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
).map(json.dumps)


@given(st.dictionaries(st.text(max_size=5), JSON_TEXTS, max_size=4), st.sampled_from(["", " ", "\n\t "]))
def test_an_object_is_taken_apart_into_what_it_is_made_of(members: dict[str, str], space: str) -> None:
    inner = f"{space},{space}".join(
        f"{json.dumps(name)}{space}:{space}{text}" for name, text in members.items()
    )
    assert json_members(f"{space}{{{space}{inner}{space}}}{space}") == members


@given(st.binary(max_size=60) | st.text('{}[]":,0 \\ntrue', max_size=30).map(str.encode))
def test_any_bytes_are_a_structured_event_or_none(payload: bytes) -> None:
    try:
        structured(payload)
    except InvalidCloudEvent as error:
        assert error.attribute


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
