from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument
from headrace.inference.domain.rollouts import (
    Outcomes,
    Plan,
    Rollout,
    RolloutState,
    aborted,
    advance,
    load_failed,
    loaded,
    next_rollout,
    superseded,
    wanted_versions,
    weights,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOLD = timedelta(seconds=10)
GOOD = Outcomes(succeeded=100)


def a_rollout(from_version: int = 1) -> Rollout:
    return Rollout("r", "live", from_version, 2, RolloutState.LOADING, "", NOW, NOW)


@pytest.mark.parametrize("steps", [(), (0, 100), (50,), (50, 50, 100), (100, 50), (10, 101)])
def test_steps_that_do_not_rise_to_all_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="must rise and end with 100"):
        Plan(steps)


@given(st.sets(st.integers(1, 99), max_size=8))
def test_a_good_version_gets_every_step_and_then_all(shares: set[int]) -> None:
    plan = Plan((*sorted(shares), 100), HOLD)
    rollout, now, seen = loaded(a_rollout(), plan, NOW), NOW, []
    while not rollout.state.ended:
        seen.append(rollout.weight)
        assert sum(weights(rollout).values()) == 100
        assert advance(rollout, plan, GOOD, GOOD, now + HOLD / 2) == rollout
        now += HOLD
        rollout = advance(rollout, plan, GOOD, GOOD, now)
    assert tuple(seen) == plan.steps
    assert rollout.state is RolloutState.SUCCEEDED
    assert weights(rollout) == {2: 100}


def test_the_first_version_of_all_gets_everything_at_once() -> None:
    rollout = loaded(a_rollout(from_version=0), Plan((10, 100), HOLD), NOW)
    assert weights(rollout) == {2: 100}


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_a_version_goes_back_only_when_it_is_worse_than_the_old_one(
    succeeded: int, failed: int, old_succeeded: int, old_failed: int
) -> None:
    plan = Plan((50, 100), HOLD)
    new, old = Outcomes(succeeded, failed), Outcomes(old_succeeded, old_failed)
    after = advance(loaded(a_rollout(), plan, NOW), plan, new, old, NOW)
    worse = new.total >= 20 and new.error_rate > 0.05 and new.error_rate > old.error_rate
    assert (after.state is RolloutState.ROLLED_BACK) == worse
    if worse:
        assert weights(after) == {1: 100}
        assert f"failed {failed} of {succeeded + failed} requests" in after.message


def test_nobody_but_the_new_version_is_harmed_by_what_ends_a_rollout() -> None:
    progressing = loaded(a_rollout(), Plan((50, 100), HOLD), NOW)
    for ended, state in (
        (load_failed(a_rollout(), "no file", NOW), RolloutState.FAILED),
        (load_failed(progressing, "no file", NOW), RolloutState.ROLLED_BACK),
        (superseded(progressing, 3, NOW), RolloutState.ROLLED_BACK),
        (aborted(progressing, NOW), RolloutState.ROLLED_BACK),
    ):
        assert ended.state is state
        assert weights(ended) == {1: 100}
        assert ended.end_time == NOW
        assert wanted_versions({1: 100}, ended) == {1}


def test_only_a_newer_version_that_was_not_tried_is_rolled_out() -> None:
    assert next_rollout([], 0, None, rolled_out=[]) is None
    assert next_rollout([1, 2], 0, None, rolled_out=[]) == 2
    assert next_rollout([1, 2], 2, None, rolled_out=[1, 2]) is None
    assert next_rollout([1, 2], 1, None, rolled_out=[1, 2]) is None
    going_on = a_rollout()
    assert next_rollout([1, 2], 1, going_on, rolled_out=[1]) is None
    assert next_rollout([1, 2, 3], 1, going_on, rolled_out=[1, 2]) == 3


def test_after_a_newest_version_that_does_not_do_comes_the_one_before_it() -> None:
    failed = load_failed(replace(a_rollout(), to_version=3), "no file", NOW)
    assert next_rollout([1, 2, 3], 1, failed, rolled_out=[1, 3]) == 2
    assert next_rollout([1, 2, 3], 2, failed, rolled_out=[1, 3]) is None
    loading = replace(a_rollout(), to_version=3)
    assert next_rollout([1, 2, 3], 1, loading, rolled_out=[1, 3]) is None


def test_what_gave_way_to_a_newer_version_is_marked() -> None:
    assert superseded(a_rollout(), 3, NOW).superseded
    assert not aborted(a_rollout(), NOW).superseded
