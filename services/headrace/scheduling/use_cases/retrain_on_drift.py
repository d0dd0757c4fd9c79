"""Alerts of drift to jobs: one for each alert at most, when the pipeline's bounds allow it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.errors import HeadraceError, one_line
from headrace.messaging.events import Event
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.scheduling.domain.retraining import (
    Obstacle,
    Reason,
    Retraining,
    RetrainingState,
    too_soon,
)
from headrace.scheduling.use_cases import metrics
from headrace.scheduling.use_cases.documents import JobRecord, Pipeline, retrain_rules_of
from headrace.scheduling.use_cases.jobs import blocked_reason
from headrace.scheduling.use_cases.retraining_ports import Datasets, RetrainingStore, RetrainingTransaction
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0
# Each look cuts a version if something is new: not oftener than that makes a difference.
DATA_PAUSE: Final = timedelta(seconds=15)
TOLD: Final = 10

NewJob = Callable[[Pipeline, ingestion_pb2.DatasetVersion, ingestion_pb2.Schema, str], JobRecord]


class RetrainOnDrift:
    """An alert is a wish that stands until its drift is over: it is granted as soon as it may be."""

    def __init__(self, store: RetrainingStore, datasets: Datasets, clock: Clock, new_job: NewJob) -> None:
        self._store = store
        self._datasets = datasets
        self._clock = clock
        self._new_job = new_job
        # When each one is looked at again for new data.
        self._due: dict[str, datetime] = {}

    async def drift_detected(self, event: Event, wish: Retraining) -> None:
        """Remember what an alert asks for; once, however often told. Unknown pipelines ask for nothing."""
        async with self._store.transaction() as transaction:
            if not await transaction.first_delivery(event):
                return
            pipeline = await transaction.pipeline(wish.pipeline)
            if pipeline is None:
                return
            await transaction.add_retraining(
                wish if retrain_rules_of(pipeline.spec) else self._unwanted(wish)
            )

    async def drift_ended(self, event: Event, episode: str) -> None:
        """Take back what was not granted yet."""
        async with self._store.transaction() as transaction:
            if not await transaction.first_delivery(event):
                return
            wish = await transaction.retraining(episode)
            if wish is not None and wish.state is RetrainingState.WAITING:
                await transaction.save_retraining(
                    self._withdrawn(wish, Reason.DRIFT_ENDED, "the drift was over first")
                )

    async def of_pipeline(self, pipeline: str) -> Sequence[Retraining]:
        """What the pipeline's last alerts led to, newest first."""
        return await self._store.retrainings(pipeline, TOLD)

    async def run(self) -> None:
        """Grant what may be granted, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:
                logger.warning("alerts of drift could not be looked at, trying again: %s", one_line(error))
            await asyncio.sleep(ROUND_SECONDS)

    async def look(self) -> None:
        """Look at all alerts that wait."""
        waiting = await self._store.waiting_retrainings()
        self._due = {wish.episode: self._due[wish.episode] for wish in waiting if wish.episode in self._due}
        for wish in waiting:
            try:
                if await self._may_start(wish):
                    await self._start(wish)
            except Exception as error:
                # Of one pipeline, which must not keep the others waiting.
                logger.warning(
                    "pipeline %s could not be retrained, trying again: %s", wish.pipeline, one_line(error)
                )

    async def _may_start(self, wish: Retraining) -> bool:
        """Whether the pipeline's bounds and the time for a look at the data allow it; notes why not."""
        async with self._store.transaction() as transaction:
            obstacle, _ = await self._bounds(transaction, wish)
            if obstacle is not None:
                await self._note(transaction, wish.episode, obstacle)
                return False
        due = self._due.get(wish.episode)
        return due is None or self._clock() >= due

    async def _start(self, wish: Retraining) -> None:
        """Start a job on the newest data, if there is any that is newer than what drifts was trained on."""
        self._due[wish.episode] = self._clock() + DATA_PAUSE
        try:
            version, schema = await self._datasets.newest_data(wish.pipeline)
        except HeadraceError as error:
            unknown = Obstacle(Reason.UNDECIDED, f"the newest data is not to be had: {error.message}")
            async with self._store.transaction() as transaction:
                await self._note(transaction, wish.episode, unknown)
            return
        async with self._store.transaction() as transaction:
            # What was asked before is asked again, now that the pipeline stays as it is.
            obstacle, pipeline = await self._bounds(transaction, wish)
            current = await transaction.retraining(wish.episode)
            if pipeline is None or current is None or current.state is not RetrainingState.WAITING:
                return
            obstacle = obstacle or _unusable(wish, version)
            if obstacle is None:
                obstacle = await self._queue(transaction, current, self._made(pipeline, version, schema))
            if obstacle is not None:
                await self._note(transaction, wish.episode, obstacle)
        fault_point("scheduling.after-retraining-commit")

    def _made(
        self, pipeline: Pipeline, version: ingestion_pb2.DatasetVersion, schema: ingestion_pb2.Schema
    ) -> JobRecord:
        with tracing.span(
            names.SPAN_SCHEDULE_JOB,
            # As for a version that comes as an event: the job belongs to the trace of what it trains on.
            parent=version.traceparent or None,
            attributes={names.PIPELINE: pipeline.name, names.DATASET_VERSION: version.version},
        ) as span:
            traceparent = tracing.current_traceparent() or version.traceparent
            record = self._new_job(pipeline, version, schema, traceparent)
            span.set_attribute(names.JOB, record.job.id)
            return record

    async def _queue(
        self, transaction: RetrainingTransaction, wish: Retraining, record: JobRecord
    ) -> Obstacle | None:
        """Queue the job; a living one that something else has made for the same version will do, too."""
        version = record.job.dataset_version
        added = await transaction.add_job(record, automatic=True, request_id="")
        found = record if added else await transaction.automatic_job(wish.pipeline, version)
        assert found is not None
        job, state = found.job.id, found.job.state
        if state.ended:
            return Obstacle(
                Reason.NO_NEW_DATA,
                f"the newest version, {version}, was trained on by job {job}: {state.value}",
            )
        await transaction.save_retraining(
            replace(
                wish,
                state=RetrainingState.STARTED,
                reason=None,
                message=f"job {job} trains on dataset version {version}",
                job=job,
                update_time=self._clock(),
            )
        )
        if added:
            metrics.SUBMITTED.labels("drift").inc()
        logger.info("pipeline %s: drift of version %d started job %s", wish.pipeline, wish.model_version, job)
        return None

    async def _bounds(
        self, transaction: RetrainingTransaction, wish: Retraining
    ) -> tuple[Obstacle | None, Pipeline | None]:
        """What the pipeline says to one more job now, and the pipeline."""
        pipeline = await transaction.pipeline(wish.pipeline)
        rules = retrain_rules_of(pipeline.spec) if pipeline else None
        if rules is None:
            return Obstacle(Reason.NOT_WANTED, _NOT_WANTED), pipeline
        now = self._clock()
        started = await transaction.retrained(wish.pipeline, now - rules.memory)
        return too_soon(rules, started, now), pipeline

    async def _note(self, transaction: RetrainingTransaction, episode: str, obstacle: Obstacle) -> None:
        """Store what keeps an alert waiting, or that the pipeline no longer wants it."""
        wish = await transaction.retraining(episode)
        if wish is None or wish.state is not RetrainingState.WAITING:
            return
        if obstacle.reason is Reason.NOT_WANTED:
            await transaction.save_retraining(self._unwanted(wish))
        elif (wish.reason, wish.message) != (obstacle.reason, obstacle.message):
            await transaction.save_retraining(
                replace(wish, reason=obstacle.reason, message=obstacle.message, update_time=self._clock())
            )

    def _unwanted(self, wish: Retraining) -> Retraining:
        return self._withdrawn(wish, Reason.NOT_WANTED, _NOT_WANTED)

    def _withdrawn(self, wish: Retraining, reason: Reason, message: str) -> Retraining:
        now = self._clock()
        return replace(wish, state=RetrainingState.WITHDRAWN, reason=reason, message=message, update_time=now)


_NOT_WANTED: Final = "the pipeline does not say retrain.drift"


def _unusable(wish: Retraining, version: ingestion_pb2.DatasetVersion) -> Obstacle | None:
    if version.version <= wish.dataset_version:
        return Obstacle(
            Reason.NO_NEW_DATA,
            f"the newest version, {version.version}, is what model version {wish.model_version} was "
            "trained on",
        )
    if blocked := blocked_reason(version):
        return Obstacle(Reason.DATASET_VERSION_BLOCKED, blocked)
    return None
