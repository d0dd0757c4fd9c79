from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from tests.support.claims import claim_headers

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.rejection import Reason, Rejection, Verdict
from headrace.ingestion.domain.replay import Correction, Replay, origin_of, replay
from headrace.messaging.claims import claim_of
from headrace.messaging.events import decode

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENVELOPE = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e1"),
    ("ce_source", b"tests"),
    ("ce_type", b"headrace.ingestion.sample.v1"),
    ("ce_subject", b"known"),
    ("content-type", b"application/json"),
    ("traceparent", TRACE.encode()),
]


STRUCTURED = [("content-type", b"application/cloudevents+json"), ("ce_source", b"says nothing"), ("x", b"1")]


def rejection(headers: Sequence[tuple[str, bytes]] = ENVELOPE, payload: bytes = b'{"x": -1}') -> Rejection:
    return Rejection(
        cluster="c",
        topic="t",
        partition=1,
        offset=2,
        verdict=Verdict(Reason.SCHEMA_VIOLATION, "x is -1, below 0", "x", "min"),
        dataset="known",
        event_id="e1",
        traceparent="",
        key=b"\xff",
        payload=payload,
        headers=headers,
        id=17,
    )


def test_an_event_is_sent_again_as_it_came_and_says_what_it_is_the_replay_of() -> None:
    assert replay(rejection(), Correction()) == Replay(
        b"\xff", [*ENVELOPE, ("ce_replayof", b"17")], b'{"x": -1}'
    )


def test_a_corrected_payload_takes_the_place_of_a_claimed_one() -> None:
    claim = [*claim_headers(b"large", "s3://bucket/claims/large"), ("CE_DataRef", b"twice")]
    kept = replay(rejection([*ENVELOPE, *claim], b""), Correction(attributes={"subject": "other"}))
    assert claim_of(decode(kept.headers, kept.payload, received=datetime.now(UTC))) is not None
    sent = replay(rejection([*ENVELOPE, *claim], b""), Correction(b"small"))
    assert sent == Replay(b"\xff", [*ENVELOPE, ("ce_replayof", b"17")], b"small")


def test_a_correction_takes_the_place_of_what_was_there() -> None:
    correction = Correction(b'{"x": 1}', {"subject": "other", "datacontenttype": "application/protobuf"})
    # Names are read without regard to case, and of several the last one counts.
    written = [*ENVELOPE, ("CE_Subject", b"twice")]
    sent = replay(rejection(written), correction)
    event = decode(sent.headers, sent.payload, received=datetime.now(UTC))
    assert (event.id, event.subject, event.data) == ("e1", "other", b'{"x": 1}')
    assert event.content_type == "application/protobuf"
    assert len(sent.headers) == len(ENVELOPE) + 1


def test_an_empty_payload_is_a_correction() -> None:
    assert replay(rejection(), Correction(b"")).payload == b""


@pytest.mark.parametrize(
    "written", [[], [("ce_id", b"")], [("ce_id", b"\xff")], [("ce_id", b"e"), ("CE_ID", b"")]]
)
def test_an_event_without_a_usable_id_gets_the_same_at_each_replay(written: list[tuple[str, bytes]]) -> None:
    headers = [*written, *(header for header in ENVELOPE if header[0] != "ce_id")]
    first, second = (replay(rejection(headers), Correction(payload)) for payload in (None, b"{}"))
    assert first.headers == second.headers
    assert decode(first.headers, b"", received=datetime.now(UTC)).id == "c/t/1/2"


def structured(**changes: object) -> Rejection:
    attributes = {
        "specversion": "1.0",
        "id": "s1",
        "source": "tests",
        "type": "headrace.ingestion.sample.v1",
        "subject": "unknown",
        "traceparent": TRACE,
        "data": {"x": -1},
        **changes,
    }
    written = {name: value for name, value in attributes.items() if value is not None}
    return rejection(STRUCTURED, json.dumps(written).encode())


def test_a_structured_event_is_sent_in_binary_mode_so_that_corrections_count() -> None:
    sent = replay(structured(), Correction(attributes={"subject": "known"}))
    event = decode(sent.headers, sent.payload, received=datetime.now(UTC))
    assert (event.id, event.source, event.subject, event.data) == ("s1", "tests", "known", b'{"x": -1}')
    assert (event.traceparent, event.extensions) == (TRACE, {"replayof": "17"})
    assert ("x", b"1") in sent.headers
    corrected = replay(structured(), Correction(b'{"x": 1}'))
    assert decode(corrected.headers, corrected.payload, received=datetime.now(UTC)).data == b'{"x": 1}'


def test_what_a_structured_event_lacks_can_be_added() -> None:
    sent = replay(structured(id=None, source=None), Correction(attributes={"source": "tests"}))
    event = decode(sent.headers, sent.payload, received=datetime.now(UTC))
    assert (event.id, event.source) == ("c/t/1/2", "tests")


@pytest.mark.parametrize("payload", [b"", b"{", b'{"x": 1}', b'{"specversion": 1}'])
def test_a_structured_event_that_cannot_be_read_is_corrected_as_a_whole(payload: bytes) -> None:
    unread = rejection(STRUCTURED, payload)
    with pytest.raises(InvalidArgument, match="cannot be read") as refused:
        replay(unread, Correction(attributes={"subject": "known"}))
    assert refused.value.reason == "INVALID_CORRECTION"
    whole = structured().payload
    sent = replay(unread, Correction(whole))
    assert sent == Replay(b"\xff", [*STRUCTURED, ("ce_replayof", b"17")], whole)
    assert decode(sent.headers, sent.payload, received=datetime.now(UTC)).id == "s1"


def test_an_event_that_only_says_that_it_is_structured_is_made_a_binary_one() -> None:
    mistaken = rejection([*ENVELOPE, STRUCTURED[0]])
    sent = replay(
        mistaken, Correction(attributes={"datacontenttype": "application/json", "subject": "known"})
    )
    event = decode(sent.headers, sent.payload, received=datetime.now(UTC))
    assert (event.id, event.subject, event.data) == ("e1", "known", b'{"x": -1}')
    with pytest.raises(InvalidArgument):
        replay(rejection(), Correction(attributes={"datacontenttype": "application/cloudevents+json"}))


def test_of_several_content_types_the_last_one_says_how_an_event_is_corrected() -> None:
    sent = replay(rejection([STRUCTURED[0], *ENVELOPE]), Correction(attributes={"subject": "other"}))
    event = decode(sent.headers, sent.payload, received=datetime.now(UTC))
    assert (event.id, event.subject, event.data) == ("e1", "other", b'{"x": -1}')


def test_a_replay_of_a_replay_names_the_later_one() -> None:
    once = replay(rejection(), Correction())
    assert origin_of(once.headers) == 17
    twice = replay(rejection([("ce_replayof", b"5"), *ENVELOPE]), Correction())
    assert twice.headers == once.headers


@pytest.mark.parametrize("written", [b"", b"x", b"-1", b"\xff", b"\xd9\xa1", b"1" * 19])
def test_whatever_stands_in_the_header_is_read(written: bytes) -> None:
    assert origin_of([("ce_replayof", written)]) == 0
    assert origin_of([("CE_ReplayOf", b"17")]) == 17
