"""The unit of work: rows, the inbox and the outbox of one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from headrace.events.inference.v1 import events_pb2
from headrace.inference.messages import deployment_message
from headrace.inference.storage.known import Known
from headrace.inference.storage.repository import Repository
from headrace.messaging.events import Event, protobuf_event
from headrace.messaging.topics import DEPLOYMENTS
from headrace.postgres import Connection, Pool, snapshot, transaction
from headrace.postgres.inbox import first_delivery
from headrace.postgres.outbox import enqueue
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id


class TransactionalWork:
    """What one transaction reads, writes and tells."""

    def __init__(self, connection: Connection, address: str, known: Known) -> None:
        self._connection = connection
        self._address = address
        self.rows = Repository(connection, known)

    async def first_delivery(self, consumer: str, event: Event) -> bool:
        """Whether the consumer sees the event for the first time."""
        return await first_delivery(self._connection, consumer, event)

    async def changed(self, deployment: str) -> None:
        """Queue the event that tells of a deployment as it now is."""
        known = await self.rows.deployment(deployment, lock=True)
        versions = await self.rows.served_versions(known.model)
        message = events_pb2.DeploymentChanged(deployment=deployment_message(known, versions, self._address))
        event = protobuf_event(
            message,
            type="headrace.inference.deployment-changed.v1",
            source="headrace/inference",
            subject=deployment,
            id=new_id(),
            time=utc_now(),
        )
        await enqueue(self._connection, DEPLOYMENTS, deployment, event)


class PostgresUnitOfWork:
    """Opens transactions on a pool."""

    def __init__(self, pool: Pool, address: str) -> None:
        self._pool = pool
        self._address = address
        self._known = Known()

    def __call__(self) -> AbstractAsyncContextManager[TransactionalWork]:
        """Begin one."""
        return self._in(transaction(self._pool))

    def reading(self) -> AbstractAsyncContextManager[TransactionalWork]:
        """Begin one that changes nothing, and sees everything as of one moment."""
        return self._in(snapshot(self._pool))

    @asynccontextmanager
    async def _in(self, begun: AbstractAsyncContextManager[Connection]) -> AsyncIterator[TransactionalWork]:
        async with begun as connection:
            yield TransactionalWork(connection, self._address, self._known)
