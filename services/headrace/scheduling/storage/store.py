"""Pipelines, jobs and nodes in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.events.scheduling.v1 import events_pb2
from headrace.messaging import topics
from headrace.messaging.events import Event, protobuf_event
from headrace.postgres import Connection, Pool, inbox, outbox, transaction
from headrace.postgres.queries import load_queries
from headrace.runtime.clock import Clock
from headrace.scheduling.domain.job import Job, Progress
from headrace.scheduling.domain.node import Node
from headrace.scheduling.domain.policy import JobView
from headrace.scheduling.domain.resources import Resources
from headrace.scheduling.domain.retraining import Retraining
from headrace.scheduling.domain.why import MAX_AHEAD, Ahead
from headrace.scheduling.storage import rows
from headrace.scheduling.use_cases.documents import JobRecord, Pipeline
from headrace.scheduling.use_cases.messages import to_job
from headrace.scheduling.use_cases.ports import JobChange, JobPosition, NodeState

SQL: Final = load_queries("headrace.scheduling.storage")

CONSUMER: Final = "headrace-scheduling"
SOURCE: Final = "headrace/scheduling"
JOB_CHANGED: Final = "headrace.scheduling.job-changed.v1"


class PostgresTransaction:
    """One unit of work (`use_cases.ports.Transaction`)."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    async def first_delivery(self, event: Event) -> bool:
        """Whether the event has had no effect yet; records that it has."""
        return await inbox.first_delivery(self._connection, CONSUMER, event)

    async def pipeline(self, name: str) -> Pipeline | None:
        """The pipeline, locked."""
        row = await self._connection.fetchrow(SQL["lock_pipeline"], name)
        return rows.read_pipeline(row) if row else None

    async def put_pipeline(self, name: str, spec: pb.PipelineSpec, now: datetime) -> Pipeline:
        """Create or replace a pipeline."""
        row = await self._connection.fetchrow(SQL["put_pipeline"], name, rows.spec_json(spec), now)
        assert row is not None
        return rows.read_pipeline(row)

    async def add_job(self, record: JobRecord, *, automatic: bool, request_id: str) -> bool:
        """Store a new job and queue its event; False where the request or the version has one."""
        job, documents = record.job, record.documents
        inserted = await self._connection.fetchval(
            SQL["insert_job"],
            job.id,
            job.pipeline,
            job.dataset_version,
            automatic,
            request_id,
            job.state.value,
            job.reason,
            job.message,
            job.priority,
            job.resources.cpu_millis,
            job.resources.memory,
            job.resources.gpu,
            job.max_retries,
            job.deadline,
            job.attempt,
            job.failures,
            job.node,
            dict(job.metrics),
            job.model_version,
            job.create_time,
            job.queue_time,
            job.traceparent,
            job.placement_traceparent,
            documents.training.SerializeToString(),
            documents.schema.SerializeToString(),
            documents.dataset_version.SerializeToString(),
            job.version,
            job.end_time,
        )
        if inserted is None:
            return False
        await self._enqueue([record])
        return True

    async def jobs(self, ids: Sequence[str]) -> list[JobRecord]:
        """These jobs, locked, by id."""
        return [rows.read_job(row) for row in await self._connection.fetch(SQL["lock_jobs"], list(ids))]

    async def jobs_on_node(self, node: str) -> list[JobRecord]:
        """The jobs that hold room on a node, locked, by id."""
        return [rows.read_job(row) for row in await self._connection.fetch(SQL["lock_jobs_on_node"], node)]

    async def save_jobs(self, changes: Sequence[JobChange]) -> None:
        """Store jobs that were read here; changes of state also queue their events."""
        if not changes:
            return
        await self._connection.executemany(
            SQL["update_job"], [_job_values(change.before.version, change.after.job) for change in changes]
        )
        await self._enqueue(
            [change.after for change in changes if change.after.job.version != change.before.version]
        )

    async def resources_of(self, ids: Sequence[str]) -> Mapping[str, Resources]:
        """What jobs ask for, by id; unknown ones are left out."""
        found = await self._connection.fetch(SQL["resources_of_jobs"], list(ids))
        return {str(row["id"]): rows.read_resources(row) for row in found}

    async def automatic_job(self, pipeline: str, dataset_version: int) -> JobRecord | None:
        """The job that a dataset version's event, or drift, has made."""
        row = await self._connection.fetchrow(SQL["automatic_job"], pipeline, dataset_version)
        return rows.read_job(row) if row else None

    async def add_retraining(self, retraining: Retraining) -> None:
        """Store what an alert asks for; one that there is stays as it is."""
        await self._connection.execute(SQL["insert_retraining"], *rows.retraining_columns(retraining))

    async def retraining(self, episode: str) -> Retraining | None:
        """What an alert led to, locked."""
        row = await self._connection.fetchrow(SQL["lock_retraining"], episode)
        return rows.read_retraining(row) if row else None

    async def save_retraining(self, retraining: Retraining) -> None:
        """Store one that was read here."""
        await self._connection.execute(
            SQL["update_retraining"],
            retraining.episode,
            retraining.state.value,
            retraining.reason.value if retraining.reason else None,
            retraining.message,
            retraining.job,
            retraining.update_time,
        )

    async def retrained(self, pipeline: str, since: datetime) -> Sequence[datetime]:
        """When drift started the pipeline's jobs since then."""
        return [row["time"] for row in await self._connection.fetch(SQL["retrained"], pipeline, since)]

    async def attach_node(self, node: NodeState) -> None:
        """Store a node whose stream has begun; the session takes over from any other."""
        await self._connection.execute(SQL["attach_node"], *_node_values(node))

    async def report_node(self, node: NodeState) -> bool:
        """Store a node's later report; False where another session has taken over."""
        return await self._connection.fetchval(SQL["report_node"], *_node_values(node)) is not None

    async def still_leads(self, epoch: int) -> bool:
        """Whether nobody else has begun to lead; holds that until the transaction ends."""
        return await self._connection.fetchval(SQL["hold_epoch"], epoch) is not None

    async def _enqueue(self, records: Sequence[JobRecord]) -> None:
        now = self._clock()
        events = [(record.job.id, _job_changed(record, now)) for record in records]
        if events:
            await outbox.enqueue_all(self._connection, topics.JOBS, events)


def _job_changed(record: JobRecord, now: datetime) -> Event:
    job = record.job
    return protobuf_event(
        events_pb2.JobChanged(job=to_job(record)),
        type=JOB_CHANGED,
        source=SOURCE,
        subject=job.id,
        # The same change has the same id, however often it is told.
        id=f"{job.id}-{job.version}",
        time=now,
        traceparent=job.placement_traceparent or job.traceparent,
    )


def _job_values(seen_version: int, job: Job) -> tuple[object, ...]:
    return (
        job.id,
        seen_version,
        job.state.value,
        job.reason,
        job.message,
        job.attempt,
        job.failures,
        job.node,
        rows.progress_json(job.progress),
        dict(job.metrics),
        job.model_version,
        job.queue_time,
        job.start_time,
        job.attempt_start_time,
        job.end_time,
        job.placement_traceparent,
        job.version,
    )


def _node_values(node: NodeState) -> tuple[object, ...]:
    return (
        node.name,
        node.version,
        node.capacity.cpu_millis,
        node.capacity.memory,
        node.capacity.gpu,
        node.session,
        node.lease_until,
        node.last_report_time,
        rows.reported_json(node.reported),
    )


class PostgresStore:
    """Reads, and units of work for writes (`use_cases.ports.Store`)."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """Begin a unit of work."""
        async with transaction(self._pool) as connection:
            yield PostgresTransaction(connection, self._clock)

    async def pipeline(self, name: str) -> Pipeline | None:
        """The pipeline."""
        row = await self._pool.fetchrow(SQL["get_pipeline"], name)
        return rows.read_pipeline(row) if row else None

    async def pipelines(self, after: str, limit: int) -> list[Pipeline]:
        """Pipelines by name, after a name."""
        return [
            rows.read_pipeline(row) for row in await self._pool.fetch(SQL["list_pipelines"], after, limit)
        ]

    async def job(self, job_id: str) -> JobRecord | None:
        """The job."""
        row = await self._pool.fetchrow(SQL["get_job"], job_id)
        return rows.read_job(row) if row else None

    async def job_of_request(self, request_id: str) -> JobRecord | None:
        """The job that a request made."""
        row = await self._pool.fetchrow(SQL["get_job_by_request"], request_id)
        return rows.read_job(row) if row else None

    async def jobs(self, pipeline: str, after: JobPosition | None, limit: int) -> list[JobRecord]:
        """Jobs, newest first; of every pipeline where it is empty."""
        position = (after.create_time, after.id) if after else (None, None)
        found = await self._pool.fetch(SQL["list_jobs"], pipeline, *position, limit)
        return [rows.read_job(row) for row in found]

    async def waiting_retrainings(self) -> Sequence[Retraining]:
        """All that wait, oldest first."""
        return [rows.read_retraining(row) for row in await self._pool.fetch(SQL["waiting_retrainings"])]

    async def retrainings(self, pipeline: str, limit: int) -> Sequence[Retraining]:
        """A pipeline's, newest first."""
        found = await self._pool.fetch(SQL["list_retrainings"], pipeline, limit)
        return [rows.read_retraining(row) for row in found]

    async def living_jobs(self) -> list[JobView]:
        """All jobs that have not ended."""
        return [rows.read_view(row) for row in await self._pool.fetch(SQL["living_jobs"])]

    async def holding_jobs(self) -> list[JobView]:
        """All jobs that take room on a node."""
        return [rows.read_view(row) for row in await self._pool.fetch(SQL["holding_jobs"])]

    async def ahead(self, job: JobView) -> Ahead:
        """The queued jobs that go before this one."""
        key = (job.priority, job.create_time, job.id)
        first, counts = await asyncio.gather(
            self._pool.fetch(SQL["jobs_ahead"], *key, MAX_AHEAD),
            self._pool.fetchrow(SQL["count_ahead"], *key),
        )
        assert counts is not None
        return Ahead(tuple(str(row["id"]) for row in first), counts["count"], counts["able"])

    async def nodes(self) -> list[Node]:
        """All nodes, by name."""
        return [rows.read_node(row) for row in await self._pool.fetch(SQL["list_nodes"])]

    async def forget_nodes(self, silent_since: datetime) -> None:
        """Remove nodes that have long been silent and hold no job."""
        await self._pool.execute(SQL["forget_nodes"], silent_since)

    async def desired(self, node: str) -> list[JobRecord]:
        """All jobs that a node should run."""
        return [rows.read_job(row) for row in await self._pool.fetch(SQL["desired_jobs"], node)]

    async def session(self, node: str) -> str | None:
        """The session that speaks for a node."""
        session = await self._pool.fetchval(SQL["session_of_node"], node)
        return None if session is None else str(session)

    async def record_progress(
        self, job_id: str, attempt: int, progress: Progress | None, metrics: Mapping[str, float]
    ) -> None:
        """Store an attempt's progress and metrics, unless newer ones are there."""
        if progress is not None:
            await self._pool.execute(SQL["update_progress"], job_id, attempt, rows.progress_json(progress))
        if metrics:
            await self._pool.execute(SQL["update_metrics"], job_id, attempt, dict(metrics))

    async def begin_epoch(self) -> int:
        """Begin to lead: earlier leaders' writes fail from now on."""
        epoch = await self._pool.fetchval(SQL["begin_epoch"])
        return int(epoch)
