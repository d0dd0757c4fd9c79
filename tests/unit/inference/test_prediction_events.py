from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from headrace.inference.domain.quality import MAX_ID_BYTES, MAX_SEGMENT_BYTES
from headrace.inference.prediction_events import MAX_SUBJECT_LENGTH, PREDICTION_BATCH, parse_predictions
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.messaging.events import Event, MalformedPayload

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-00"


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


def parse_one(event: Event) -> LoggedPrediction:
    (prediction,) = parse_predictions(event)
    return prediction


def a_batch(source: str, **more: object) -> Event:
    """Of two requests, with two rows and one."""
    payload = {
        "deployment": "live",
        "version": 3,
        "time": "2026-01-01T00:00:00Z",
        "seconds": 0.5,
        "requests": [
            {
                "prediction_id": "a",
                "rows": 2,
                "subject": "ann",
                "segment": "w",
                "traceparent": TRACEPARENT,
            },
            {"prediction_id": "b", "rows": 1, "mirror_id": "m", "shadow": True},
        ],
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [3, 2], "numbers": [1, 2, 3, "NaN", 5, 6]},
            {"name": "word", "datatype": "BYTES", "shape": [3], "strings": ["k", "l", "m"]},
        ],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [3], "numbers": [7, 8, 9]}],
        **more,
    }
    return replace(an_event("", source), type=PREDICTION_BATCH, data=json.dumps(payload).encode())


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_each_request_of_a_batch_has_its_own_rows(source: str) -> None:
    first, second = parse_predictions(a_batch(source))
    assert (first.event_id, first.prediction_id, second.event_id, second.prediction_id) == (
        "e-0",
        "a",
        "e-1",
        "b",
    )
    for one in (first, second):
        assert (one.deployment, one.version, one.seconds) == ("live", 3, 0.5)
        assert one.time == datetime(2026, 1, 1, tzinfo=UTC)
    assert (first.subject, first.segment, first.mirror_id, first.shadow) == ("ann", "w", "", False)
    assert (second.subject, second.segment, second.mirror_id, second.shadow) == ("", "", "m", True)
    assert (first.traceparent, second.traceparent) == (TRACEPARENT, "")
    assert first.inputs == {
        "x": {"datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, "NaN"]},
        "word": {"datatype": "BYTES", "shape": [2], "data": ["k", "l"]},
    }
    assert second.inputs == {
        "x": {"datatype": "FP32", "shape": [1, 2], "data": [5, 6]},
        "word": {"datatype": "BYTES", "shape": [1], "data": ["m"]},
    }
    # Of one row there is an answer that feedback is compared with.
    assert (first.answer, second.answer) == (None, 9)


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"outputs": [{"name": "label", "datatype": "INT64", "shape": [2], "numbers": [7, 8]}]},
        {"outputs": [{"name": "label", "datatype": "INT64", "shape": [3], "numbers": [7, 8]}]},
        {"outputs": [{"name": "label", "datatype": "INT64", "shape": [], "numbers": [7, 8, 9]}]},
        {
            "requests": [{"prediction_id": "a", "rows": -1}, {"prediction_id": "b", "rows": 4}],
        },
    ],
)
def test_a_batch_whose_rows_are_not_its_requests_is_refused(source: str, wrong: dict[str, object]) -> None:
    with pytest.raises(MalformedPayload):
        parse_predictions(a_batch(source, **wrong))


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_what_is_wrong_with_one_request_is_said_of_its_batch(source: str) -> None:
    long = [
        {"prediction_id": "a", "rows": 1},
        {"prediction_id": "x" * (MAX_ID_BYTES + 1), "rows": 2},
    ]
    with pytest.raises(MalformedPayload, match="prediction_id is longer than 256 bytes"):
        parse_predictions(a_batch(source, requests=long))


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_an_id_that_no_index_takes_is_refused(source: str) -> None:
    assert parse_one(an_event("x" * MAX_ID_BYTES, source)).answer == 1
    with pytest.raises(MalformedPayload, match="prediction_id is longer than 256 bytes"):
        parse_one(an_event("ü" * MAX_ID_BYTES, source))


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_a_segment_is_a_short_text(source: str) -> None:
    assert parse_one(an_event("p", source)).segment == ""
    longest = "ü" * (MAX_SEGMENT_BYTES // 2)
    assert parse_one(an_event("p", source, segment=longest)).segment == longest
    with pytest.raises(MalformedPayload, match="segment is longer than 64 bytes"):
        parse_one(an_event("p", source, segment=longest + "x"))


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_a_subject_that_could_not_be_erased_is_refused(source: str) -> None:
    assert parse_one(an_event("p", source)).subject == ""
    longest = "ü" * MAX_SUBJECT_LENGTH
    assert parse_one(an_event("p", source, subject=longest)).subject == longest
    with pytest.raises(MalformedPayload, match="subject is longer than 4096 characters") as refused:
        parse_one(an_event("p", source, subject=longest + "ü"))
    assert "ü" not in str(refused.value)


@pytest.mark.parametrize("source", ["headrace/triton", "somebody"])
def test_what_a_shadow_answered_is_told_from_what_callers_got(source: str) -> None:
    live = parse_one(an_event("p", source, mirror_id="m", shadow=False))
    assert (live.shadow, live.mirror_id) == (False, "m")
    assert parse_one(an_event("p", source, mirror_id="m", shadow=True)).shadow
    plain = parse_one(an_event("p", source))
    assert (plain.shadow, plain.mirror_id) == (False, "")
