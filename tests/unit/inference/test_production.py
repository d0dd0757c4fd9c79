from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.inference.consumers import Consumers
from headrace.inference.prediction_events import PREDICTION_BATCH
from headrace.inference.use_cases.ports import LoggedPrediction, TrueLabel
from headrace.inference.use_cases.production import MAX_BATCH, Production
from headrace.messaging.events import Event


class Table:
    """Rows and units of work in memory, which refuse a whole batch because of what is called "bad"."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.batches: list[int] = []
        self.looked_at: list[str] = []
        self.away = False

    @property
    def rows(self) -> Table:
        return self

    async def put_predictions(self, predictions: Sequence[LoggedPrediction]) -> None:
        await asyncio.sleep(0)
        ids = [prediction.prediction_id for prediction in predictions]
        if self.away:
            raise ConnectionError("refused")
        if "bad" in ids:
            raise ValueError("refused")
        self.batches.append(len(ids))
        self.stored += ids

    async def put_feedback(self, labels: Sequence[TrueLabel]) -> None:
        await asyncio.sleep(0)
        self.batches.append(len(labels))

    async def erase_late(self, event_ids: Sequence[str]) -> None:
        self.looked_at += event_ids

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        yield self


def a_prediction(prediction_id: str, subject: str = "") -> LoggedPrediction:
    return LoggedPrediction(
        event_id=prediction_id,
        prediction_id=prediction_id,
        deployment="live",
        version=1,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=0.1,
        inputs={},
        outputs={},
        answer=None,
        traceparent="",
        subject=subject,
    )


async def test_predictions_of_one_moment_are_one_transaction() -> None:
    table = Table()
    production = Production(table.begin)
    ids = [f"p{number}" for number in range(MAX_BATCH + 10)]
    await asyncio.gather(*(production.predicted(a_prediction(name)) for name in ids))
    assert table.stored == ids
    assert table.batches == [MAX_BATCH, 10]


async def test_labels_of_one_moment_are_one_transaction() -> None:
    table = Table()
    production = Production(table.begin)
    said = datetime(2026, 1, 1, tzinfo=UTC)
    await asyncio.gather(*(production.labelled(TrueLabel("live", f"p{n}", 1.0, said)) for n in range(10)))
    assert table.batches == [10]


async def test_one_that_cannot_be_stored_takes_no_neighbour_along() -> None:
    table = Table()
    production = Production(table.begin)
    told = await asyncio.gather(
        *(production.predicted(a_prediction(name)) for name in ("a", "bad", "b")), return_exceptions=True
    )
    assert [type(result) for result in told] == [type(None), ValueError, type(None)]
    assert table.stored == ["a", "b"]


async def test_after_a_failure_the_next_one_is_stored() -> None:
    table = Table()
    production = Production(table.begin)
    table.away = True
    with pytest.raises(ConnectionError):
        await production.predicted(a_prediction("a"))
    table.away = False
    await production.predicted(a_prediction("a"))
    assert table.stored == ["a"]


async def test_predictions_that_name_a_subject_may_come_after_its_erasure() -> None:
    table = Table()
    production = Production(table.begin)
    predictions = (a_prediction("a"), a_prediction("b", subject="p1"), a_prediction("c"))
    await asyncio.gather(*map(production.predicted, predictions))
    assert table.stored == ["a", "b", "c"]
    assert table.looked_at == ["b"]


async def test_many_predictions_are_stored_in_parts() -> None:
    table = Table()
    ids = [f"p{number}" for number in range(MAX_BATCH + 10)]
    await Production(table.begin).predicted_together([a_prediction(name) for name in ids])
    assert table.stored == ids
    assert table.batches == [MAX_BATCH, 10]


async def test_one_that_cannot_be_stored_sets_its_batch_aside_and_takes_no_other_along() -> None:
    table = Table()
    names = ["first", "bad", "last"]
    payload = {
        "deployment": "live",
        "version": 1,
        "time": "2026-01-01T00:00:00Z",
        "seconds": 0.1,
        "requests": [{"prediction_id": name, "rows": 1} for name in names],
        "inputs": [],
        "outputs": [],
    }
    event = Event(
        id="e",
        source="headrace/triton",
        type=PREDICTION_BATCH,
        subject="live",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        data=json.dumps(payload).encode(),
        content_type="application/json",
    )
    consumers = Consumers(Production(table.begin), lambda: None)
    with pytest.raises(ValueError, match="refused"):
        await consumers.predictions(event)
    assert table.stored == ["first", "last"]
