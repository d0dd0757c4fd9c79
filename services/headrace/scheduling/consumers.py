"""Events to use cases."""

from __future__ import annotations

import uuid
from typing import Final, TypeVar

from google.protobuf.message import Message

from headrace.api.inference.v1 import drift_pb2
from headrace.events.inference.v1 import events_pb2 as inference_events
from headrace.events.ingestion.v1 import events_pb2 as ingestion_events
from headrace.events.training.v1 import events_pb2 as training_events
from headrace.messaging import topics
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event, MalformedPayload, parse
from headrace.rpc.convert import from_duration, from_timestamp
from headrace.scheduling.domain.job import Progress
from headrace.scheduling.domain.retraining import Retraining
from headrace.scheduling.use_cases.jobs import Jobs
from headrace.scheduling.use_cases.retrain_on_drift import RetrainOnDrift

TOPICS: Final = (topics.DATASET_VERSIONS, topics.RUNS, topics.INFERENCE_ALERTS)

M = TypeVar("M", bound=Message)

_DETECTED: Final = inference_events.DriftDetected
_ENDED: Final = inference_events.DriftEnded


class EventHandler:
    """Handles what scheduling consumes."""

    def __init__(self, jobs: Jobs, retraining: RetrainOnDrift) -> None:
        self._jobs = jobs
        self._retraining = retraining

    async def handle(self, event: Event) -> None:
        """Give an event to its use case; raises PermanentFailure for one that no use case knows."""
        match event.type:
            case "headrace.ingestion.dataset-version-committed.v1":
                await self._dataset_version(event)
            case "headrace.training.run-changed.v1":
                await self._run(event)
            case "headrace.inference.drift-detected.v1":
                await self._retraining.drift_detected(event, _wish(_parse(event, _DETECTED).episode))
            case "headrace.inference.drift-ended.v1":
                ended = _wish(_parse(event, _ENDED).episode)
                await self._retraining.drift_ended(event, ended.episode)
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


def _wish(episode: drift_pb2.DriftEpisode) -> Retraining:
    """What an episode asks for; a pipeline is named like its model."""
    try:
        uuid.UUID(episode.id)
    except ValueError as error:
        raise PermanentFailure("MALFORMED_PAYLOAD", f"{episode.id!r} is not an episode's id") from error
    began = from_timestamp(episode.begin_time)
    return Retraining(
        episode=episode.id,
        pipeline=episode.model,
        deployment=episode.deployment,
        model_version=episode.model_version,
        dataset_version=episode.dataset_version,
        alert_time=began,
        update_time=began,
    )


def _parse(event: Event, kind: type[M]) -> M:
    try:
        return parse(event, kind)
    except MalformedPayload as error:
        raise PermanentFailure("MALFORMED_PAYLOAD", str(error)) from error
