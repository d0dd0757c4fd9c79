"""How long a part that ended waits before it is started again."""

from __future__ import annotations

from headrace.embedded.restarts import Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_a_limit() -> None:
    backoff = Backoff(Clock(), first=0.5, longest=3.0)
    assert [backoff.pause() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_part_that_held_for_a_while_starts_over() -> None:
    clock = Clock()
    backoff = Backoff(clock, first=0.5, holds_after=60.0)
    backoff.pause()
    assert backoff.pause() == 1.0
    backoff.started()
    clock.now = 60.0
    assert backoff.pause() == 0.5
    backoff.started()
    clock.now = 119.0
    assert backoff.pause() == 1.0
