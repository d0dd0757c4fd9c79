from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.inference.use_cases.production import MAX_BATCH, Production


class Table:
    """Rows and units of work in memory, which refuse a whole batch because of what is called "bad"."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.batches: list[int] = []
        self.away = False

    @property
    def rows(self) -> Table:
        return self

    async def put_predictions(self, predictions: Sequence[LoggedPrediction]) -> None:
        await asyncio.sleep(0)
        ids = [prediction.prediction_id for prediction in predictions]
        if self.away or "bad" in ids:
            raise ConnectionError("refused")
        self.batches.append(len(ids))
        self.stored += ids

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        yield self


def a_prediction(prediction_id: str) -> LoggedPrediction:
    return LoggedPrediction(
        prediction_id, prediction_id, "live", 1, datetime(2026, 1, 1, tzinfo=UTC), 0.1, {}, {}, None, ""
    )


async def test_predictions_of_one_moment_are_one_transaction() -> None:
    table = Table()
    production = Production(table.begin)
    ids = [f"p{number}" for number in range(MAX_BATCH + 10)]
    await asyncio.gather(*(production.predicted(a_prediction(name)) for name in ids))
    assert table.stored == ids
    assert table.batches == [MAX_BATCH, 10]


async def test_one_that_cannot_be_stored_takes_no_neighbour_along() -> None:
    table = Table()
    production = Production(table.begin)
    told = await asyncio.gather(
        *(production.predicted(a_prediction(name)) for name in ("a", "bad", "b")), return_exceptions=True
    )
    assert [type(result) for result in told] == [type(None), ConnectionError, type(None)]
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
