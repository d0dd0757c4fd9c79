"""Jobs: made by users and by new dataset versions, watched, cancelled, explained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2, quality_pb2
from headrace.errors import AlreadyExists, FailedPrecondition, NotFound
from headrace.messaging.events import Event
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.scheduling.domain.job import BLOCKED_VERSION, Job, Progress, cancel, refuse
from headrace.scheduling.domain.policy import JobView, occupied_resources
from headrace.scheduling.domain.why import Reason, Why, room_of, why_pending
from headrace.scheduling.use_cases import metrics
from headrace.scheduling.use_cases.documents import (
    JobDocuments,
    JobRecord,
    Pipeline,
    deadline_of,
    resources_of,
)
from headrace.scheduling.use_cases.pipelines import pipeline_not_found
from headrace.scheduling.use_cases.ports import ChangeFeed, JobChange, JobPosition, Peers, Store
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

# A notification that was lost costs a watcher this much.
WATCH_SECONDS: Final = 1.0


class Jobs:
    """What clients and events do with jobs."""

    def __init__(
        self, store: Store, peers: Peers, changes: ChangeFeed, clock: Clock, new_id: Callable[[], str]
    ) -> None:
        self._store = store
        self._peers = peers
        self._changes = changes
        self._clock = clock
        self._new_id = new_id

    async def submit(self, pipeline_name: str, dataset_version: int, request_id: str) -> JobRecord:
        """Queue a job on a version of the pipeline's dataset, 0 for the newest.

        The same request_id answers the same job. Raises NotFound PIPELINE_NOT_FOUND or
        DATASET_VERSION_NOT_FOUND, FailedPrecondition DATASET_VERSION_BLOCKED, AlreadyExists
        REQUEST_ID_REUSED.
        """
        if request_id and (known := await self._store.job_of_request(request_id)):
            return _same_request(known, pipeline_name, dataset_version, request_id)
        pipeline = await self._store.pipeline(pipeline_name)
        if pipeline is None:
            raise pipeline_not_found(pipeline_name)
        version, schema = await self._peers.dataset_version(pipeline_name, dataset_version)
        if blocked := blocked_reason(version):
            raise FailedPrecondition(
                BLOCKED_VERSION, f"{blocked}; name another version, or change the rule and cut a new one"
            )
        traceparent = tracing.current_traceparent() or version.traceparent
        with _schedule_span(pipeline_name, version.version, traceparent, link=version.traceparent) as span:
            record = self.new_job(pipeline, version, schema, tracing.current_traceparent() or traceparent)
            span.set_attribute(names.JOB, record.job.id)
            async with self._store.transaction() as transaction:
                added = await transaction.add_job(record, automatic=False, request_id=request_id)
            fault_point("scheduling.after-job-commit")
        if added:
            metrics.SUBMITTED.labels("user").inc()
            return record
        # The same request, at the same time, on another connection.
        first = await self._store.job_of_request(request_id)
        assert first is not None
        return _same_request(first, pipeline_name, dataset_version, request_id)

    async def retrain(
        self,
        event: Event,
        version: ingestion_pb2.DatasetVersion,
        schema: ingestion_pb2.Schema,
        traceparent: str,
    ) -> None:
        """Queue a job for a new dataset version if its pipeline asks for one; once, however often told.

        For a version that its quality rules block, the job is one that has failed, and says why.
        """
        async with self._store.transaction() as transaction:
            if not await transaction.first_delivery(event):
                return
            pipeline = await transaction.pipeline(version.dataset)
            if pipeline is None or not pipeline.spec.retrain_on_dataset_version:
                return
            with _schedule_span(version.dataset, version.version, traceparent) as span:
                record = self.new_job(pipeline, version, schema, tracing.current_traceparent() or traceparent)
                span.set_attribute(names.JOB, record.job.id)
                added = await transaction.add_job(record, automatic=True, request_id="")
        _added_automatically(record, added)

    async def train_newest(self, pipeline: Pipeline) -> None:
        """Queue a job on the newest version of the dataset, if the pipeline asks for retraining and has none.

        For a blocked version as in `retrain`.

        A version that was cut before the pipeline was stored came when nobody asked for it; one that is cut
        later comes as an event. Where both are told of the same version, it gets one job.
        """
        if not pipeline.spec.retrain_on_dataset_version or await self._store.jobs(pipeline.name, None, 1):
            return
        try:
            version, schema = await self._peers.dataset_version(pipeline.name, 0)
        except NotFound:
            return
        with tracing.span(
            names.SPAN_SCHEDULE_JOB,
            # As for a version that comes as an event: the job belongs to the trace of what it trains on.
            parent=version.traceparent or None,
            links=[tracing.current_traceparent()],
            attributes={names.PIPELINE: pipeline.name, names.DATASET_VERSION: version.version},
        ) as span:
            traceparent = tracing.current_traceparent() or version.traceparent
            record = self.new_job(pipeline, version, schema, traceparent)
            span.set_attribute(names.JOB, record.job.id)
            async with self._store.transaction() as transaction:
                added = await transaction.add_job(record, automatic=True, request_id="")
        _added_automatically(record, added)

    async def record_progress(
        self, job_id: str, attempt: int, progress: Progress | None, values: Mapping[str, float]
    ) -> None:
        """Store what a run's event says about an attempt; its state is for the node's report to tell."""
        await self._store.record_progress(job_id, attempt, progress, values)

    async def get(self, job_id: str) -> JobRecord:
        """The job. Raises NotFound JOB_NOT_FOUND."""
        record = await self._store.job(job_id)
        if record is None:
            raise _job_not_found(job_id)
        return record

    async def list(self, pipeline: str, after: JobPosition | None, limit: int) -> list[JobRecord]:
        """Jobs, newest first."""
        return await self._store.jobs(pipeline, after, limit)

    async def watch(self, job_id: str) -> AsyncIterator[JobRecord]:
        """The job as it is, then after every change, until it has ended."""
        with self._changes.of_job(job_id) as wake:
            seen: Job | None = None
            while True:
                record = await self.get(job_id)
                if record.job != seen:
                    yield record
                    seen = record.job
                if record.job.state.ended:
                    return
                await wake.wait(WATCH_SECONDS)

    async def cancel(self, job_id: str) -> JobRecord:
        """Cancel the job; one that has ended stays as it is. Raises NotFound JOB_NOT_FOUND."""
        async with self._store.transaction() as transaction:
            records = await transaction.jobs([job_id])
            if not records:
                raise _job_not_found(job_id)
            record = records[0]
            after = replace(record, job=cancel(record.job, self._clock()))
            if after.job != record.job:
                await transaction.save_jobs([JobChange(record.job, after)])
        metrics.observe_change(record.job, after.job)
        return after

    async def why(self, job_id: str) -> Why:
        """Explain why the job waits. Raises NotFound JOB_NOT_FOUND."""
        job = (await self.get(job_id)).job
        if job.reason == BLOCKED_VERSION:
            return Why(job.state, Reason.DATASET_VERSION_BLOCKED, job.message)
        view = view_of(job)
        nodes, holding, ahead = await asyncio.gather(
            self._store.nodes(), self._store.holding_jobs(), self._store.ahead(view)
        )
        rooms = room_of(nodes, occupied_resources(nodes, holding))
        return why_pending(view, rooms, ahead, self._clock())

    def new_job(
        self,
        pipeline: Pipeline,
        version: ingestion_pb2.DatasetVersion,
        schema: ingestion_pb2.Schema,
        traceparent: str,
    ) -> JobRecord:
        """A job of the pipeline on a version; for a blocked one, one that has failed and says why."""
        spec, now = pipeline.spec, self._clock()
        job = Job(
            id=self._new_id(),
            pipeline=pipeline.name,
            dataset_version=version.version,
            resources=resources_of(spec),
            create_time=now,
            queue_time=now,
            priority=spec.priority,
            max_retries=spec.max_retries,
            deadline=deadline_of(spec),
            message="waits for a node",
            traceparent=traceparent,
        )
        if blocked := blocked_reason(version):
            job = refuse(job, blocked, now)
        return JobRecord(job, JobDocuments(spec.training, schema, version))


def view_of(job: Job) -> JobView:
    """What decisions need of a job."""
    return JobView(
        id=job.id,
        version=job.version,
        state=job.state,
        priority=job.priority,
        resources=job.resources,
        attempt=job.attempt,
        node=job.node,
        create_time=job.create_time,
        attempt_start_time=job.attempt_start_time,
        deadline=job.deadline,
    )


def _added_automatically(record: JobRecord, added: bool) -> None:
    """What follows the commit of a job for a dataset version, where it was the version's first."""
    fault_point("scheduling.after-job-commit")
    if not added:
        return
    job = record.job
    metrics.SUBMITTED.labels("dataset_version").inc()
    if job.state.ended:
        metrics.FINISHED.labels(job.state.value).inc()
        # Why is for the job to say: it may name values of samples, which no log does.
        logger.warning("job %s: version %d of %s is blocked", job.id, job.dataset_version, job.pipeline)
    else:
        logger.info("job %s trains %s on version %d", job.id, job.pipeline, job.dataset_version)


def blocked_reason(version: ingestion_pb2.DatasetVersion) -> str:
    """Why no job may train on the version; "" where one may."""
    if version.verdict != quality_pb2.VERDICT_BLOCK:
        return ""
    reasons = [item.message for item in version.findings if item.verdict == quality_pb2.VERDICT_BLOCK]
    return f"dataset version {version.version} is blocked by its quality rules: {'; '.join(reasons)}"


def _schedule_span(
    pipeline: str, version: int, traceparent: str, link: str = ""
) -> AbstractContextManager[tracing.Span]:
    return tracing.span(
        names.SPAN_SCHEDULE_JOB,
        parent=None if tracing.current_traceparent() else traceparent,
        links=[link] if link else [],
        attributes={names.PIPELINE: pipeline, names.DATASET_VERSION: version},
    )


def _same_request(known: JobRecord, pipeline: str, version: int, request_id: str) -> JobRecord:
    job = known.job
    if job.pipeline != pipeline or version not in (0, job.dataset_version):
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            f'request_id "{request_id}" made job {job.id} of pipeline "{job.pipeline}" on dataset version '
            f"{job.dataset_version}; use a new one for another job",
        )
    return known


def _job_not_found(job_id: str) -> NotFound:
    return NotFound("JOB_NOT_FOUND", f"there is no job {job_id}; list the jobs to see which exist")
