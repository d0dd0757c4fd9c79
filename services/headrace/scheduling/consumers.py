"""Events to use cases."""

from __future__ import annotations

import uuid
from typing import Final, TypeVar

from google.protobuf.message import Message

from headrace.events.ingestion.v1 import events_pb2 as ingestion_events
from headrace.events.training.v1 import events_pb2 as training_events
from headrace.messaging import topics
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event, MalformedPayload, parse
from headrace.rpc.convert import from_duration
from headrace.scheduling.domain.job import Progress
from headrace.scheduling.use_cases.jobs import Jobs

TOPICS: Final = (topics.DATASET_VERSIONS, topics.RUNS)

M = TypeVar("M", bound=Message)


class EventHandler:
    """Handles what scheduling consumes."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def handle(self, event: Event) -> None:
        """Give an event to its use case; raises PermanentFailure for one that no use case knows."""
        match event.type:
            case "headrace.ingestion.dataset-version-committed.v1":
                await self._dataset_version(event)
            case "headrace.training.run-changed.v1":
                await self._run(event)
            case _:
                raise PermanentFailure("UNKNOWN_EVENT_TYPE", f"scheduling knows no {event.type!r}")

    async def _dataset_version(self, event: Event) -> None:
        committed = _parse(event, ingestion_events.DatasetVersionCommitted)
        version = committed.dataset_version
        if not version.dataset or version.version < 1:
            raise PermanentFailure("MALFORMED_PAYLOAD", "the event names no dataset version")
        traceparent = event.traceparent or version.traceparent
        await self._jobs.retrain(event, version, committed.schema, traceparent)

    async def _run(self, event: Event) -> None:
        run = _parse(event, training_events.RunChanged).run
        progress = (
            Progress(run.epoch, run.epochs, run.loss, from_duration(run.remaining)) if run.epochs else None
        )
        try:
            uuid.UUID(run.job)
        except ValueError as error:
            raise PermanentFailure("MALFORMED_PAYLOAD", f"{run.job!r} is not a job's id") from error
        await self._jobs.record_progress(run.job, run.attempt, progress, dict(run.metrics))


def _parse(event: Event, kind: type[M]) -> M:
    try:
        return parse(event, kind)
    except MalformedPayload as error:
        raise PermanentFailure("MALFORMED_PAYLOAD", str(error)) from error
