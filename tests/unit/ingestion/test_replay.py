from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from headrace.ingestion.domain.rejection import Reason, Rejection, Verdict
from headrace.ingestion.domain.replay import Correction, Replay, origin_of, replay
from headrace.messaging.events import decode

ENVELOPE = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e1"),
    ("ce_source", b"tests"),
    ("ce_type", b"headrace.ingestion.sample.v1"),
    ("ce_subject", b"known"),
    ("content-type", b"application/json"),
    ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
]


def rejection(headers: Sequence[tuple[str, bytes]] = ENVELOPE) -> Rejection:
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
        payload=b'{"x": -1}',
        headers=headers,
        id=17,
    )


def test_an_event_is_sent_again_as_it_came_and_says_what_it_is_the_replay_of() -> None:
    assert replay(rejection(), Correction()) == Replay(
        b"\xff", [*ENVELOPE, ("ce_replayof", b"17")], b'{"x": -1}'
    )


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


def test_a_replay_of_a_replay_names_the_later_one() -> None:
    once = replay(rejection(), Correction())
    assert origin_of(once.headers) == 17
    twice = replay(rejection([("ce_replayof", b"5"), *ENVELOPE]), Correction())
    assert twice.headers == once.headers


@pytest.mark.parametrize("written", [b"", b"x", b"-1", b"\xff", b"\xd9\xa1", b"1" * 19])
def test_whatever_stands_in_the_header_is_read(written: bytes) -> None:
    assert origin_of([("ce_replayof", written)]) == 0
    assert origin_of([("CE_ReplayOf", b"17")]) == 17
