"""Whether a failure is a part's absence, which is waited for, or a mistake, which is not."""

from __future__ import annotations

import socket

from aiokafka.errors import KafkaError, KafkaTimeoutError
from asyncpg.exceptions import InterfaceError, InternalClientError

from headrace.errors import DeadlineExceeded, Unavailable

# PostgreSQL's classes "connection exception", "insufficient resources" and "operator intervention", and
# what ends a session that was paused within a transaction.
_SQL_STATES = ("08", "53", "57P", "25P03")
# asyncpg says in words alone that a connection was lost under its user's hands.
_CONNECTION_LOST = (
    "connection is closed",
    "connection has been released back to the pool",
    "pool is clos",
    # Its state where a query meets the server's last word on an idle connection.
    "cannot switch to state",
)


def is_outage(error: BaseException) -> bool:
    """Whether a part that is needed is away: a service, the database, the broker, the store, the network."""
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | Unavailable | DeadlineExceeded):
        return True
    if isinstance(error, KafkaError):
        return bool(error.retriable) or isinstance(error, KafkaTimeoutError)
    # asyncio raises a bare OSError where several addresses of one host refuse.
    if type(error) is OSError:
        return True
    return is_database_outage(error)


def is_database_outage(error: BaseException) -> bool:
    """Whether PostgreSQL, or the connection to it, is what is away."""
    if isinstance(error, InterfaceError | InternalClientError):
        # Not by the type: that has the mistakes of a caller too.
        return any(words in str(error) for words in _CONNECTION_LOST)
    return str(getattr(error, "sqlstate", None) or "").startswith(_SQL_STATES)
