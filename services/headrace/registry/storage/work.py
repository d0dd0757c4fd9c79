"""The unit of work: rows and events of one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from google.protobuf.message import Message

from headrace.events.registry.v1 import events_pb2
from headrace.messaging.events import protobuf_event
from headrace.messaging.topics import MODEL_VERSIONS
from headrace.postgres import Connection, Pool, transaction
from headrace.postgres.outbox import enqueue
from headrace.registry.domain.models import Model, Version, VersionState
from headrace.registry.messages import model_message, version_message
from headrace.registry.storage.repository import Repository
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id

SOURCE = "headrace/registry"


class OutboxEvents:
    """Queues the registry's events."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def model_changed(self, model: Model) -> None:
        """A model was created, or its gates changed."""
        message = events_pb2.ModelChanged(model=model_message(model))
        await self._enqueue("model-changed", model.name, message)

    async def registered(self, version: Version) -> None:
        """A version is complete."""
        message = events_pb2.ModelVersionRegistered(model_version=version_message(version))
        await self._enqueue("model-version-registered", version.model, message)

    async def judged(self, version: Version) -> None:
        """A version was promoted or refused."""
        told = version_message(version)
        if version.state is VersionState.PROMOTED:
            promoted = events_pb2.ModelVersionPromoted(model_version=told)
            await self._enqueue("model-version-promoted", version.model, promoted)
        else:
            refused = events_pb2.ModelVersionRefused(model_version=told)
            await self._enqueue("model-version-refused", version.model, refused)

    async def alias_changed(self, model: str, alias: str, version: int, previous: int) -> None:
        """An alias moved."""
        message = events_pb2.AliasChanged(
            model=model, alias=alias, version=version, previous_version=previous
        )
        await self._enqueue("alias-changed", model, message)

    async def _enqueue(self, what: str, model: str, message: Message) -> None:
        event = protobuf_event(
            message,
            type=f"headrace.registry.{what}.v1",
            source=SOURCE,
            subject=model,
            id=new_id(),
            time=utc_now(),
        )
        await enqueue(self._connection, MODEL_VERSIONS, model, event)


@dataclass(frozen=True)
class TransactionalWork:
    """Rows and events that are committed together."""

    models: Repository
    events: OutboxEvents


class PostgresUnitOfWork:
    """Opens transactions on a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __call__(self) -> AbstractAsyncContextManager[TransactionalWork]:
        """Begin one."""
        return self._begin()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[TransactionalWork]:
        async with transaction(self._pool) as connection:
            yield TransactionalWork(Repository(connection), OutboxEvents(connection))
