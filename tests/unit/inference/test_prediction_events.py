from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from headrace.inference.domain.quality import MAX_ID_BYTES, MAX_SEGMENT_BYTES
from headrace.inference.prediction_events import MAX_SUBJECT_LENGTH, parse_prediction
from headrace.messaging.events import Event, MalformedPayload


def an_event(prediction_id: str, source: str, **more: str | bool) -> Event:
    payload = {
        "prediction_id": prediction_id,
        "deployment": "live",
        "version": 1,
        "time": "2026-01-01T00:00:00Z",
        "seconds": 0.5,
        "inputs": [],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "numbers": [1]}],
        **more,
    }
    return Event(
        id="e",
        source=source,
        type="headrace.inference.prediction.v1",
        subject="live",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        data=json.dumps(payload).encode(),
        content_type="application/json",
    )


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_an_id_that_no_index_takes_is_refused(source: str) -> None:
    assert parse_prediction(an_event("x" * MAX_ID_BYTES, source)).answer == 1
    with pytest.raises(MalformedPayload, match="prediction_id is longer than 256 bytes"):
        parse_prediction(an_event("ü" * MAX_ID_BYTES, source))


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_a_segment_is_a_short_text(source: str) -> None:
    assert parse_prediction(an_event("p", source)).segment == ""
    longest = "ü" * (MAX_SEGMENT_BYTES // 2)
    assert parse_prediction(an_event("p", source, segment=longest)).segment == longest
    with pytest.raises(MalformedPayload, match="segment is longer than 64 bytes"):
        parse_prediction(an_event("p", source, segment=longest + "x"))


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_a_subject_that_could_not_be_erased_is_refused(source: str) -> None:
    assert parse_prediction(an_event("p", source)).subject == ""
    longest = "ü" * MAX_SUBJECT_LENGTH
    assert parse_prediction(an_event("p", source, subject=longest)).subject == longest
    with pytest.raises(MalformedPayload, match="subject is longer than 4096 characters") as refused:
        parse_prediction(an_event("p", source, subject=longest + "ü"))
    assert "ü" not in str(refused.value)


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_what_a_shadow_answered_is_told_from_what_callers_got(source: str) -> None:
    live = parse_prediction(an_event("p", source, mirror_id="m", shadow=False))
    assert (live.shadow, live.mirror_id) == (False, "m")
    assert parse_prediction(an_event("p", source, mirror_id="m", shadow=True)).shadow
    plain = parse_prediction(an_event("p", source))
    assert (plain.shadow, plain.mirror_id) == (False, "")
