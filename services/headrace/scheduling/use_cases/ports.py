"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.messaging.events import Event
from headrace.scheduling.domain.job import Job, Progress
from headrace.scheduling.domain.node import Node, Occupant
from headrace.scheduling.domain.policy import JobView
from headrace.scheduling.domain.resources import Resources
from headrace.scheduling.domain.why import Ahead
from headrace.scheduling.use_cases.documents import JobRecord, Pipeline


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node's row, as a report makes it."""

    name: str
    version: str
    capacity: Resources
    session: str
    lease_until: datetime
    last_report_time: datetime
    reported: tuple[Occupant, ...]


@dataclass(frozen=True, slots=True)
class JobPosition:
    """Where a page of jobs ends."""

    create_time: datetime
    id: str


@dataclass(frozen=True, slots=True)
class JobChange:
    """A job as it was read, and as it is to be."""

    before: Job
    after: JobRecord


class Transaction(Protocol):
    """One unit of work. Jobs that it reads are locked until it ends."""

    async def first_delivery(self, event: Event) -> bool:
        """Whether the event has had no effect yet; records that it has."""

    async def pipeline(self, name: str) -> Pipeline | None:
        """The pipeline, locked."""

    async def put_pipeline(self, name: str, spec: pb.PipelineSpec, now: datetime) -> Pipeline:
        """Create or replace a pipeline."""

    async def add_job(self, record: JobRecord, *, automatic: bool, request_id: str) -> bool:
        """Store a new job and queue its event; False where the request or the version has one."""

    async def jobs(self, ids: Sequence[str]) -> list[JobRecord]:
        """These jobs, locked, by id."""

    async def jobs_on_node(self, node: str) -> list[JobRecord]:
        """The jobs that hold room on a node, locked, by id."""

    async def save_jobs(self, changes: Sequence[JobChange]) -> None:
        """Store jobs that were read here; changes of state also queue their events."""

    async def resources_of(self, ids: Sequence[str]) -> Mapping[str, Resources]:
        """What jobs ask for, by id; unknown ones are left out."""

    async def attach_node(self, node: NodeState) -> None:
        """Store a node whose stream has begun; the session takes over from any other."""

    async def report_node(self, node: NodeState) -> bool:
        """Store a node's later report; False where another session has taken over."""

    async def still_leads(self, epoch: int) -> bool:
        """Whether nobody else has begun to lead; holds that until the transaction ends."""


class Store(Protocol):
    """Where pipelines, jobs and nodes are kept."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a unit of work."""

    async def pipeline(self, name: str) -> Pipeline | None:
        """The pipeline."""

    async def pipelines(self, after: str, limit: int) -> list[Pipeline]:
        """Pipelines by name, after a name."""

    async def job(self, job_id: str) -> JobRecord | None:
        """The job."""

    async def job_of_request(self, request_id: str) -> JobRecord | None:
        """The job that a request made."""

    async def jobs(self, pipeline: str, after: JobPosition | None, limit: int) -> list[JobRecord]:
        """Jobs, newest first; of every pipeline where it is empty."""

    async def living_jobs(self) -> list[JobView]:
        """All jobs that have not ended."""

    async def holding_jobs(self) -> list[JobView]:
        """All jobs that take room on a node."""

    async def ahead(self, job: JobView) -> Ahead:
        """The queued jobs that go before this one."""

    async def nodes(self) -> list[Node]:
        """All nodes, by name."""

    async def forget_nodes(self, silent_since: datetime) -> None:
        """Remove nodes that have long been silent and hold no job."""

    async def desired(self, node: str) -> list[JobRecord]:
        """All jobs that a node should run."""

    async def session(self, node: str) -> str | None:
        """The session that speaks for a node."""

    async def record_progress(
        self, job_id: str, attempt: int, progress: Progress | None, metrics: Mapping[str, float]
    ) -> None:
        """Store an attempt's progress and metrics, unless newer ones are there."""

    async def begin_epoch(self) -> int:
        """Begin to lead: earlier leaders' writes fail from now on."""


class Wake(Protocol):
    """Something changed, or may have."""

    async def wait(self, seconds: float) -> None:
        """Return at the first change since the last call, or after so many seconds."""


class ChangeFeed(Protocol):
    """Tells of changes, whichever instance made them. It may tell too often, and rarely too seldom."""

    def any_change(self) -> AbstractContextManager[Wake]:
        """Of any job or node."""

    def of_job(self, job_id: str) -> AbstractContextManager[Wake]:
        """Of one job."""

    def of_node(self, node: str) -> AbstractContextManager[Wake]:
        """Of one node, or of the jobs assigned to it."""


class Peers(Protocol):
    """The services that a pipeline spans. Errors are HeadraceErrors; Unavailable names the service."""

    async def apply_dataset(self, name: str, spec: pb.PipelineSpec) -> None:
        """Create or change the dataset."""

    async def apply_model(self, name: str, spec: pb.PipelineSpec) -> None:
        """Create or change the model and its gates."""

    async def apply_deployment(self, name: str, spec: pb.PipelineSpec) -> None:
        """Create or change the deployment."""

    async def dataset_version(
        self, dataset: str, version: int
    ) -> tuple[ingestion_pb2.DatasetVersion, ingestion_pb2.Schema]:
        """A version (0: the newest) and its schema; NotFound DATASET_VERSION_NOT_FOUND."""
