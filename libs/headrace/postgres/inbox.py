"""Which events had their effect already."""

from __future__ import annotations

from headrace.messaging.events import Event
from headrace.postgres.pool import Connection


async def first_delivery(connection: Connection, consumer: str, event: Event) -> bool:
    """Whether this consumer sees the event for the first time; records it.

    Call it in the transaction that holds the event's effect: if that rolls back, so does the record. An id
    is unique only with its source (CloudEvents): two producers may count alike.
    """
    inserted = await connection.fetchval(
        "INSERT INTO inbox (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
        consumer,
        f"{event.source} {event.id}",
    )
    return inserted is not None
