"""What comes back from production: promoted versions, predictions, feedback."""

from __future__ import annotations

import asyncio
import contextvars

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.ports import LoggedPrediction, UnitOfWork
from headrace.messaging.events import Event

MAX_BATCH = 1000

Waiting = tuple[LoggedPrediction, "asyncio.Future[None]"]


class Production:
    """Stores what events tell, once each."""

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work
        self._waiting: list[Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def version_promoted(self, event: Event, version: ServedVersion) -> bool:
        """Remember a promoted version; whether that was news."""
        async with self._work() as work:
            if not await work.first_delivery("model-versions", event):
                return False
            await work.rows.put_served_version(version)
            return True

    async def predicted(self, prediction: LoggedPrediction) -> None:
        """Keep a prediction, in one transaction with those that come at the same time."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((prediction, stored))
        if self._writer is None:
            # In no trace: the batch belongs to many.
            self._writer = asyncio.create_task(self._write(), context=contextvars.Context())
        await stored

    async def labelled(self, event: Event, deployment: str, prediction_id: str, label: float | str) -> None:
        """Keep a true label, whether or not its prediction has arrived yet."""
        async with self._work() as work:
            if not await work.first_delivery("feedback", event):
                return
            await work.rows.put_feedback(deployment, prediction_id, label, event.time)
        metrics.FEEDBACK.inc()

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    await self._store(batch)
                except Exception:
                    # Each by itself: one that cannot be stored must not take its neighbours along.
                    for entry in batch:
                        await self._try(entry)
        finally:
            self._writer = None

    async def _store(self, batch: list[Waiting]) -> None:
        async with self._work() as work:
            await work.rows.put_predictions([prediction for prediction, _ in batch])
            if named := [prediction.event_id for prediction, _ in batch if prediction.subject]:
                await work.rows.erase_late(named)
        metrics.PREDICTIONS.inc(len(batch))
        for _, stored in batch:
            if not stored.done():
                stored.set_result(None)

    async def _try(self, entry: Waiting) -> None:
        try:
            await self._store([entry])
        except Exception as error:
            # Whoever waits for it decides what becomes of it.
            if not entry[1].done():
                entry[1].set_exception(error)
