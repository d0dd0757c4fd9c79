"""What retraining on drift needs from outside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.messaging.events import Event
from headrace.scheduling.domain.retraining import Retraining
from headrace.scheduling.use_cases.documents import JobRecord, Pipeline


class RetrainingTransaction(Protocol):
    """One unit of work."""

    async def first_delivery(self, event: Event) -> bool:
        """Whether the event has had no effect yet; records that it has."""

    async def pipeline(self, name: str) -> Pipeline | None:
        """The pipeline, locked."""

    async def add_job(self, record: JobRecord, *, automatic: bool, request_id: str) -> bool:
        """Store a new job and queue its event; False where the request or the version has one."""

    async def automatic_job(self, pipeline: str, dataset_version: int) -> JobRecord | None:
        """The job that a dataset version's event, or drift, has made."""

    async def add_retraining(self, retraining: Retraining) -> None:
        """Store what an alert asks for; one that there is stays as it is."""

    async def retraining(self, episode: str) -> Retraining | None:
        """What an alert led to, locked."""

    async def save_retraining(self, retraining: Retraining) -> None:
        """Store one that was read here."""

    async def retrained(self, pipeline: str, since: datetime) -> Sequence[datetime]:
        """When drift started the pipeline's jobs since then."""


class RetrainingStore(Protocol):
    """Where it is kept."""

    def transaction(self) -> AbstractAsyncContextManager[RetrainingTransaction]:
        """Begin a unit of work."""

    async def waiting_retrainings(self) -> Sequence[Retraining]:
        """All that wait, oldest first."""

    async def retrainings(self, pipeline: str, limit: int) -> Sequence[Retraining]:
        """A pipeline's, newest first."""


class Datasets(Protocol):
    """The ingestion service."""

    async def newest_data(self, dataset: str) -> tuple[ingestion_pb2.DatasetVersion, ingestion_pb2.Schema]:
        """A version of all that the dataset has, cut now if need be, and its schema. Raises HeadraceError."""
