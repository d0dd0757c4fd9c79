from __future__ import annotations

import asyncpg
import pytest

from headrace.errors import InvalidArgument, Unavailable
from headrace.messaging.consumer import RetryPolicy, is_outage


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        OSError("Multiple exceptions: ..."),
        Unavailable("SERVICE_UNAVAILABLE", "away"),
        asyncpg.ConnectionDoesNotExistError(),
        asyncpg.CannotConnectNowError(),
        asyncpg.AdminShutdownError(),
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
    ],
)
def test_a_mistake_is_not(error: Exception) -> None:
    assert not is_outage(error)


def test_pauses_grow_to_a_limit_and_never_overflow() -> None:
    policy = RetryPolicy(first_seconds=0.1, longest_seconds=10)
    assert [policy.pause(attempt) for attempt in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert policy.pause(1_000_000) == 10
