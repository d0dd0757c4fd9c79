from __future__ import annotations

import socket

import asyncpg
import pytest
from aiokafka import errors as kafka

from headrace.errors import InvalidArgument, Unavailable
from headrace.runtime.outage import is_outage


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        OSError("Multiple exceptions: ..."),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        Unavailable("SERVICE_UNAVAILABLE", "away"),
        asyncpg.ConnectionDoesNotExistError(),
        asyncpg.CannotConnectNowError(),
        asyncpg.AdminShutdownError(),
        asyncpg.TooManyConnectionsError(),
        asyncpg.IdleInTransactionSessionTimeoutError(),
        asyncpg.InterfaceError("cannot call Transaction.__aexit__(): the underlying connection is closed"),
        asyncpg.InterfaceError("cannot call Connection.x(): connection has been released back to the pool"),
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
        asyncpg.InternalClientError('cannot switch to state 12; protocol is in the "failed" state'),
        kafka.KafkaConnectionError(),
        kafka.KafkaTimeoutError(),
    ],
)
def test_a_part_that_is_away_is_waited_for(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        FileNotFoundError(),
        InvalidArgument("INVALID", "wrong"),
        asyncpg.UniqueViolationError(),
        asyncpg.DataError("invalid input for query argument $1"),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        kafka.MessageSizeTooLargeError(),
        kafka.OutOfOrderSequenceNumber(),
    ],
)
def test_a_mistake_is_not(error: Exception) -> None:
    assert not is_outage(error)
