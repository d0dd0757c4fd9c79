from __future__ import annotations

from headrace.messaging.consumer import RetryPolicy


def test_pauses_grow_to_a_limit_and_never_overflow() -> None:
    policy = RetryPolicy(first_seconds=0.1, longest_seconds=10)
    assert [policy.pause(attempt) for attempt in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert policy.pause(1_000_000) == 10
