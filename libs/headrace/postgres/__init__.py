"""PostgreSQL for services: pool, unit of work, migrations, named queries, outbox, inbox, leadership.

One schema for each service, named like it; no service reads another's.
"""

from headrace.postgres.pool import Connection, Pool, connect, snapshot, transaction

__all__ = ["Connection", "Pool", "connect", "snapshot", "transaction"]
