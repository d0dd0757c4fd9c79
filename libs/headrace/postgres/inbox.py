"""Which events had their effect already."""

from __future__ import annotations

from datetime import timedelta

from headrace.messaging.events import Event
from headrace.postgres.pool import Connection, Pool

# Longer than the topics that are consumed keep an event. Of those that keep it for ever, such as
# dataset-versions, one may come again after this, if its consumer's group was set back by so much: there the
# effect itself is idempotent (a dataset version has one automatic job, a model version one row).
REMEMBERED = timedelta(days=35)
PART = 10_000


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


async def prune(pool: Pool) -> None:
    """Forget what cannot come again; in parts, since there may be much of it."""
    forgotten = PART
    while forgotten == PART:
        forgotten = await pool.fetchval(
            "WITH old AS (SELECT ctid FROM inbox WHERE received_at < now() - $1::interval LIMIT $2),"
            " gone AS (DELETE FROM inbox WHERE ctid IN (SELECT ctid FROM old) RETURNING true)"
            " SELECT count(*) FROM gone",
            REMEMBERED,
            PART,
        )
