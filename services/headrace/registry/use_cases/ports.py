"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from headrace.model_formats import ModelFormat
from headrace.registry.domain.audit import AuditEntry
from headrace.registry.domain.gates import Gate
from headrace.registry.domain.models import Artifact, Model, Version


class Models(Protocol):
    """Models and versions within one transaction; `storage.repository` says what each raises."""

    async def insert_model(self, name: str, gates: Sequence[Gate], now: datetime) -> bool:
        """Create the model; False where there is one already."""

    async def change_gates(self, name: str, gates: Sequence[Gate], now: datetime) -> None:
        """Ask other gates of versions to come."""

    async def model(self, name: str, *, lock: bool = False) -> Model:
        """One model, locked if asked."""

    async def models(self, after: str, limit: int) -> list[Model]:
        """Models by name."""

    async def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias at a version; 0 removes it."""

    async def version_of_request(self, model: str, request_id: str) -> int | None:
        """The version that a request made before."""

    async def insert_version(
        self,
        model: str,
        request_id: str,
        *,
        metrics: Mapping[str, float],
        lineage: bytes,
        signature: bytes,
        form: ModelFormat,
        traceparent: str,
        now: datetime,
    ) -> int:
        """Open the next version."""

    async def version(self, model: str, number: int) -> Version:
        """One version."""

    async def versions(self, model: str, before: int, limit: int) -> list[Version]:
        """Versions below a number, newest first."""

    async def describe_version(self, version: Version) -> None:
        """Store an open version's metrics, lineage, signature and format."""

    async def close_version(self, version: Version) -> None:
        """Store a verdict."""

    async def put_artifact(self, model: str, number: int, artifact: Artifact) -> None:
        """Record an artifact."""

    async def audit(self, entry: AuditEntry) -> None:
        """Record what was done."""


class Events(Protocol):
    """Events that leave when the transaction commits."""

    async def model_changed(self, model: Model) -> None:
        """A model was created, or its gates changed."""

    async def registered(self, version: Version) -> None:
        """A version is complete."""

    async def judged(self, version: Version) -> None:
        """A version was promoted or refused."""

    async def alias_changed(self, model: str, alias: str, version: int, previous: int) -> None:
        """An alias moved; 0 stands for nowhere."""


class Work(Protocol):
    """One transaction: its models, and its events."""

    @property
    def models(self) -> Models:
        """Rows of this transaction."""

    @property
    def events(self) -> Events:
        """Events of this transaction."""


class UnitOfWork(Protocol):
    """Opens transactions."""

    def __call__(self) -> AbstractAsyncContextManager[Work]:
        """Begin one: committed at the block's end, rolled back when it raises."""


class Blobs(Protocol):
    """The object store."""

    def uri(self, path: str) -> str:
        """The address of an object."""

    async def put(self, path: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Write an object, whole or not at all."""

    def stream(self, path: str) -> AsyncIterator[bytes]:
        """Read an object in chunks."""
