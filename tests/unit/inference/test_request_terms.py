"""What a request's attributes ask for, and what a failed call means for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from headrace.inference.domain.requests import (
    InvalidTerms,
    Priority,
    RequestState,
    Terms,
    Verdict,
    after_failure,
    cause_of,
    read_terms,
)

SENT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def terms(**attributes: str) -> Terms:
    return read_terms(attributes, SENT, reply_topic="responses", reply_topics=["mine"], retries=3)


def test_a_silent_request_has_the_defaults() -> None:
    assert terms() == Terms("responses", Priority.NORMAL, None, 3, "")


def test_every_attribute_is_read() -> None:
    assert terms(
        priority="HIGH",
        deadline="2026-01-01T13:00:05+01:00",
        retries="0",
        replyto="mine",
        ordered="true",
        partitionkey="k",
    ) == Terms("mine", Priority.HIGH, SENT + timedelta(seconds=5), 0, "k")


def test_a_deadline_may_be_milliseconds_after_the_events_time() -> None:
    assert terms(deadline="1500").deadline == SENT + timedelta(seconds=1.5)


def test_a_partition_key_alone_orders_nothing() -> None:
    assert terms(partitionkey="k").order == ""
    assert terms(partitionkey="k", ordered="false").order == ""


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"priority": "urgent"}, "INVALID_ATTRIBUTE"),
        ({"deadline": "soon"}, "INVALID_ATTRIBUTE"),
        ({"deadline": "2026-01-01T13:00:05"}, "INVALID_ATTRIBUTE"),
        ({"deadline": "999999999999999"}, "INVALID_ATTRIBUTE"),
        ({"deadline": "-1"}, "INVALID_ATTRIBUTE"),
        ({"retries": "101"}, "INVALID_ATTRIBUTE"),
        ({"retries": "-1"}, "INVALID_ATTRIBUTE"),
        ({"ordered": "yes"}, "INVALID_ATTRIBUTE"),
        ({"ordered": "true"}, "INVALID_ATTRIBUTE"),
        ({"replyto": "somebody-elses"}, "REPLY_TOPIC_NOT_ALLOWED"),
    ],
)
def test_a_wrong_attribute_is_named(attributes: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidTerms) as raised:
        terms(**attributes)
    assert raised.value.reason == reason
    assert next(iter(attributes)) in str(raised.value)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "PERMISSION_DENIED"])
def test_a_wrong_request_is_given_up(code: str) -> None:
    assert after_failure(cause_of(code), 1, 100) is Verdict.GIVE_UP


def test_whoever_is_away_is_waited_for() -> None:
    assert after_failure(cause_of("UNAVAILABLE"), 0, 0) is Verdict.WAIT


@pytest.mark.parametrize(
    "code", ["INTERNAL", "UNKNOWN", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"]
)
def test_another_failure_is_tried_again_within_the_retries(code: str) -> None:
    assert [after_failure(cause_of(code), failures, 2) for failures in (1, 2, 3)] == [
        Verdict.AGAIN,
        Verdict.AGAIN,
        Verdict.GIVE_UP,
    ]


def test_only_what_is_received_has_not_ended() -> None:
    assert [state for state in RequestState if not state.ended] == [RequestState.RECEIVED]
