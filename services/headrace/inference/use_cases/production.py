"""What comes back from production: promoted versions, predictions, feedback."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.batching import Batches
from headrace.inference.use_cases.ports import LoggedPrediction, TrueLabel, UnitOfWork
from headrace.messaging.events import Event

MAX_BATCH = 1000


class Production:
    """Stores what events tell, once each."""

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work
        self._predictions = Batches[LoggedPrediction, None](self._store_predictions, most=MAX_BATCH)
        self._labels = Batches[TrueLabel, None](self._store_labels, most=MAX_BATCH)

    async def version_promoted(self, event: Event, version: ServedVersion) -> bool:
        """Remember a promoted version; whether that was news."""
        async with self._work() as work:
            if not await work.first_delivery("model-versions", event):
                return False
            await work.rows.put_served_version(version)
            return True

    async def predicted(self, prediction: LoggedPrediction) -> None:
        """Keep a prediction, in one transaction with those that come at the same time."""
        await self._predictions(prediction)

    async def predicted_together(self, predictions: Sequence[LoggedPrediction]) -> None:
        """Keep all of the predictions or, where that fails, perhaps some; whoever repeats it doubles none."""
        for first in range(0, len(predictions), MAX_BATCH):
            await self._store_predictions(predictions[first : first + MAX_BATCH])

    async def labelled(self, label: TrueLabel) -> None:
        """Keep a true label, whether or not its prediction has arrived yet; so, too."""
        await self._labels(label)

    async def labelled_together(self, labels: Sequence[TrueLabel]) -> None:
        """Keep all of the labels or, where that fails, none."""
        await self._store_labels(labels)

    async def _store_predictions(self, predictions: Sequence[LoggedPrediction]) -> Sequence[None]:
        async with self._work() as work:
            await work.rows.put_predictions(predictions)
            if named := [prediction.event_id for prediction in predictions if prediction.subject]:
                await work.rows.erase_late(named)
        metrics.PREDICTIONS.inc(len(predictions))
        return [None] * len(predictions)

    async def _store_labels(self, labels: Sequence[TrueLabel]) -> Sequence[None]:
        async with self._work() as work:
            await work.rows.put_feedback(labels)
        metrics.FEEDBACK.inc(len(labels))
        return [None] * len(labels)
