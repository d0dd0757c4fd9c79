"""Feedback by the topic and by RPC: the same labels are taken, the same are refused, for the same reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headrace.errors import InvalidArgument
from headrace.events.inference.v1 import events_pb2
from headrace.inference.consumers import Consumers
from headrace.inference.use_cases.ports import TrueLabel
from headrace.inference.use_cases.production import Production
from headrace.inference.use_cases.submit_feedback import SubmitFeedback
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event, protobuf_event

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Log:
    """Rows and units of work in memory; the predictions in it are those whose ids are digits."""

    def __init__(self) -> None:
        self.labels: list[TrueLabel] = []

    @property
    def rows(self) -> Log:
        return self

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        yield self

    async def deployment(self, name: str) -> None:
        pass

    async def put_feedback(self, labels: Sequence[TrueLabel]) -> None:
        self.labels += labels

    async def count_logged(self, deployment: str, prediction_ids: Collection[str]) -> int:
        return sum(prediction_id.isdigit() for prediction_id in prediction_ids)


def an_event(message: events_pb2.Feedback) -> Event:
    return protobuf_event(
        message,
        type="headrace.inference.feedback.v1",
        source="tests",
        subject=message.deployment,
        id="e",
        time=NOW,
    )


def by_topic(log: Log) -> Consumers:
    return Consumers(Production(log.begin), lambda: None)


def by_rpc(log: Log) -> SubmitFeedback:
    return SubmitFeedback(log.begin, lambda: NOW)


@pytest.mark.parametrize("label", [1.0, 0.0, "benign", ""])
async def test_a_label_comes_to_the_same_both_ways(label: float | str) -> None:
    first, second = Log(), Log()
    given = {"text": label} if isinstance(label, str) else {"number": label}
    message = events_pb2.Feedback(deployment="live", prediction_id="7", **given)  # type: ignore[arg-type]
    await by_topic(first).feedback(an_event(message))
    assert await by_rpc(second)("live", [("7", label, None)]) == 1
    assert first.labels == second.labels == [TrueLabel("live", "7", label, NOW)]


@pytest.mark.parametrize(
    ("prediction_id", "label", "field"),
    [
        ("7", None, "label"),
        ("", 1.0, "prediction_id"),
        ("ü" * 129, 1.0, "prediction_id"),
        ("a\0b", 1.0, "prediction_id"),
        ("7", float("nan"), "number"),
        ("7", float("inf"), "number"),
        ("7", "a\0b", "text"),
    ],
)
async def test_what_is_wrong_is_refused_both_ways_for_the_same_reason(
    prediction_id: str, label: float | str | None, field: str
) -> None:
    log = Log()
    given = {} if label is None else {"text": label} if isinstance(label, str) else {"number": label}
    message = events_pb2.Feedback(
        deployment="live",
        prediction_id=prediction_id,
        **given,  # type: ignore[arg-type]
    )
    with pytest.raises(PermanentFailure, match=field) as told:
        await by_topic(log).feedback(an_event(message))
    with pytest.raises(InvalidArgument) as answered:
        await by_rpc(log)("live", [("7", 1.0, None), (prediction_id, label, None)])
    assert told.value.reason == answered.value.reason == "INVALID_FEEDBACK"
    assert [violation.field for violation in answered.value.fields] == [f"labels[1].{field}"]
    assert not log.labels


async def test_a_label_has_the_time_that_it_says_and_all_wrong_ones_are_named() -> None:
    log = Log()
    before = NOW - timedelta(days=1)
    assert await by_rpc(log)("live", [("7", 1.0, before), ("late", 1.0, None)]) == 1
    assert [label.time for label in log.labels] == [before, NOW]
    with pytest.raises(InvalidArgument, match=r"and 1 more") as raised:
        await by_rpc(log)("live", [("", 1.0, None), ("7", None, None)])
    assert len(raised.value.fields) == 2
