from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FailedPrecondition, InvalidArgument
from headrace.inference.domain.analysis import (
    Analysis,
    DisagreementBound,
    Judgement,
    Observed,
    Outcomes,
    Verdict,
    judge,
)
from headrace.inference.domain.rollouts import (
    Baseline,
    Plan,
    Rollout,
    RolloutState,
    aborted,
    advance,
    load_failed,
    loaded,
    next_rollout,
    outcomes_since,
    promoted,
    superseded,
    trial,
    wanted_versions,
    weights,
)
from headrace.inference.domain.trials import Audience, Shadow, Trial

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOLD = timedelta(seconds=10)
GOOD = Outcomes(succeeded=100)
PLAN = Plan((50, 100), HOLD)
AUDIENCE = Audience("x-cohort", frozenset({"beta"}))


def a_rollout(from_version: int = 1) -> Rollout:
    return Rollout("r", "live", from_version, 2, RolloutState.LOADING, "", NOW, NOW)


def progressing(plan: Plan = PLAN) -> Rollout:
    return loaded(a_rollout(), plan, {}, NOW)


def judged(rollout: Rollout, plan: Plan, new: Outcomes, old: Outcomes, now: datetime) -> Judgement:
    return judge(
        plan.analysis,
        plan.comparisons,
        Observed(new),
        Observed(old),
        held=now - rollout.step_time,
        hold=plan.hold_of(rollout.state),
        now=now,
    )


def after(rollout: Rollout, plan: Plan, new: Outcomes, old: Outcomes, now: datetime) -> Rollout:
    return advance(rollout, plan, judged(rollout, plan, new, old, now), {}, now)


@pytest.mark.parametrize("steps", [(), (0, 100), (50,), (50, 50, 100), (100, 50), (10, 101)])
def test_steps_that_do_not_rise_to_all_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="must rise and end with 100"):
        Plan(steps)


@given(st.sets(st.integers(1, 99), max_size=8))
def test_a_good_version_gets_every_step_and_then_all(shares: set[int]) -> None:
    plan = Plan((*sorted(shares), 100), HOLD)
    rollout, now, seen = progressing(plan), NOW, []
    while not rollout.state.ended:
        seen.append(rollout.weight)
        assert sum(weights(rollout).values()) == 100
        held = after(rollout, plan, GOOD, GOOD, now + HOLD / 2)
        assert held == replace(rollout, judgement=held.judgement)
        now += HOLD
        rollout = after(held, plan, GOOD, GOOD, now)
    assert tuple(seen) == plan.steps
    assert rollout.state is RolloutState.SUCCEEDED
    assert weights(rollout) == {2: 100}


def test_the_first_version_of_all_gets_everything_at_once() -> None:
    rollout = loaded(a_rollout(from_version=0), PLAN, {}, NOW)
    assert weights(rollout) == {2: 100}
    assert advance(rollout, PLAN, None, {}, NOW).state is RolloutState.SUCCEEDED


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_a_version_goes_back_where_the_judgement_says_so(
    succeeded: int, failed: int, old_succeeded: int, old_failed: int
) -> None:
    new, old = Outcomes(succeeded, failed), Outcomes(old_succeeded, old_failed)
    judgement = judged(progressing(), PLAN, new, old, NOW + HOLD)
    rollout = advance(progressing(), PLAN, judgement, {}, NOW + HOLD)
    went_back = rollout.state is RolloutState.ROLLED_BACK
    assert went_back == (judgement.verdict is Verdict.ROLL_BACK)
    if went_back:
        assert weights(rollout) == {1: 100}
        assert f"failed {failed} of {succeeded + failed} requests" in rollout.message
        assert rollout.judgement == judgement


def test_a_version_that_goes_back_for_want_of_proof_is_said_to() -> None:
    rollout = after(progressing(), PLAN, Outcomes(56, 4), Outcomes(60), NOW + HOLD)
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "did not tell whether that was chance" in rollout.message


def test_a_paused_rollout_stays_and_still_goes_back() -> None:
    paused = replace(progressing(), paused=True)
    assert after(paused, PLAN, GOOD, GOOD, NOW + HOLD).step == 0
    assert after(paused, PLAN, Outcomes(0, 100), GOOD, NOW).state is RolloutState.ROLLED_BACK


def test_an_operator_promotes_what_has_traffic() -> None:
    assert weights(promoted(progressing(), NOW)) == {2: 100}
    assert promoted(progressing(), NOW).state is RolloutState.SUCCEEDED
    with pytest.raises(FailedPrecondition) as raised:
        promoted(a_rollout(), NOW)
    assert raised.value.reason == "ROLLOUT_LOADING"


def test_a_step_counts_from_where_it_began() -> None:
    counts = {1: Outcomes(1000, 10), 2: Outcomes(5, 1)}
    rollout = loaded(a_rollout(), PLAN, counts, NOW)
    later = {1: Outcomes(1100, 12), 2: Outcomes(25, 1)}
    assert outcomes_since(later, rollout, 1) == Outcomes(100, 2)
    assert outcomes_since(later, rollout, 2) == Outcomes(20, 0)
    # Triton was restarted.
    assert outcomes_since({2: Outcomes(3, 0)}, rollout, 2) == Outcomes(3, 0)
    assert outcomes_since({}, rollout, 3) == Outcomes()


def test_the_last_step_is_compared_with_what_the_old_version_answered_before_it() -> None:
    plan = Plan((10, 50, 100), HOLD, Analysis())
    rollout = loaded(a_rollout(), plan, {}, NOW)
    for step in (1, 2):
        counts = {1: Outcomes(100 * step), 2: Outcomes(50 * step)}
        now = NOW + step * HOLD
        rollout = advance(rollout, plan, judged(rollout, plan, GOOD, GOOD, now), counts, now)
    assert rollout.weight == 100
    assert rollout.baselines == {
        1: Baseline(NOW + HOLD, Outcomes(100)),
        2: Baseline(NOW + 2 * HOLD, Outcomes(100)),
    }


@pytest.mark.parametrize(
    ("hold", "longest_hold", "watched"),
    [(HOLD, timedelta(0), HOLD), (HOLD, 3 * HOLD, HOLD), (timedelta(0), 3 * HOLD, 3 * HOLD)],
)
def test_a_version_that_gets_all_at_once_is_compared_with_what_the_old_one_answered_just_before(
    hold: timedelta, longest_hold: timedelta, watched: timedelta
) -> None:
    counts = {1: Outcomes(100), 2: Outcomes(1)}
    rollout = loaded(a_rollout(), Plan((100,), hold, Analysis(longest_hold=longest_hold)), counts, NOW)
    assert rollout.baselines == {
        1: Baseline(NOW - watched, Outcomes(100)),
        2: Baseline(NOW, Outcomes(1)),
    }


def test_nobody_but_the_new_version_is_harmed_by_what_ends_a_rollout() -> None:
    for ended, state in (
        (load_failed(a_rollout(), "no file", NOW), RolloutState.FAILED),
        (load_failed(progressing(), "no file", NOW), RolloutState.ROLLED_BACK),
        (superseded(progressing(), 3, NOW), RolloutState.ROLLED_BACK),
        (aborted(progressing(), NOW), RolloutState.ROLLED_BACK),
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


def test_a_shadow_is_asked_before_its_first_share_and_answers_nobody() -> None:
    plan = Plan((50, 100), HOLD, shadow=Shadow(30, 2 * HOLD))
    shadowing = progressing(plan)
    assert shadowing.state is RolloutState.SHADOWING
    assert weights(shadowing) == {1: 100}
    assert wanted_versions({1: 100}, shadowing) == {1, 2}
    assert trial(shadowing, plan) == Trial(2, mirrored=30)
    # It has a hold of its own.
    assert after(shadowing, plan, GOOD, GOOD, NOW + HOLD).state is RolloutState.SHADOWING
    first = after(shadowing, plan, GOOD, GOOD, NOW + 2 * HOLD)
    assert (first.state, weights(first)) == (RolloutState.PROGRESSING, {1: 50, 2: 50})
    assert trial(first, plan) is None


def test_a_shadow_that_does_harm_never_gets_a_share() -> None:
    plan = Plan((50, 100), HOLD, shadow=Shadow())
    back = after(progressing(plan), plan, Outcomes(0, 100), GOOD, NOW)
    assert (back.state, weights(back)) == (RolloutState.ROLLED_BACK, {1: 100})
    assert trial(back, plan) is None


def test_an_operator_may_promote_a_shadow_or_take_it_back() -> None:
    plan = Plan((50, 100), HOLD, shadow=Shadow())
    assert weights(promoted(progressing(plan), NOW)) == {2: 100}
    assert aborted(progressing(plan), NOW).state is RolloutState.ROLLED_BACK


def test_there_is_nothing_that_a_first_version_could_shadow() -> None:
    plan = Plan((50, 100), HOLD, shadow=Shadow())
    assert loaded(a_rollout(from_version=0), plan, {}, NOW).state is RolloutState.PROGRESSING


def test_a_shadow_whose_plan_has_none_any_more_is_no_longer_asked() -> None:
    shadowing = progressing(Plan((50, 100), HOLD, shadow=Shadow(hold=HOLD)))
    assert trial(shadowing, PLAN) is None
    assert after(shadowing, PLAN, GOOD, GOOD, NOW + HOLD).state is RolloutState.PROGRESSING


def test_who_gets_the_new_version_is_said_while_there_are_two() -> None:
    plan = Plan((0, 100), HOLD, sticky_header="x-user-id", audience=AUDIENCE)
    rollout = progressing(plan)
    assert weights(rollout) == {1: 100}
    assert trial(rollout, plan) == Trial(2, sticky_header="x-user-id", audience=AUDIENCE)
    assert trial(promoted(rollout, NOW), plan) is None
    assert trial(a_rollout(), plan) is None
    assert trial(None, plan) is None
    first = loaded(a_rollout(from_version=0), plan, {}, NOW)
    assert trial(first, plan) is None


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Shadow(0), "rollout.shadow.share"),
        (lambda: Shadow(101), "rollout.shadow.share"),
        (lambda: Shadow(hold=-HOLD), "rollout.shadow.hold"),
        (lambda: Audience("X-Cohort", frozenset({"beta"})), "rollout.audience.header"),
        (lambda: Audience("x-cohort", frozenset()), "rollout.audience.values"),
        (lambda: Plan(sticky_header="no header"), "rollout.sticky.header"),
        (lambda: Plan((0, 0, 100), audience=AUDIENCE), "rollout.steps"),
        (
            lambda: Plan(analysis=Analysis(disagreement=DisagreementBound(0.1))),
            "rollout.analysis.disagreement",
        ),
    ],
)
def test_a_plan_that_no_rollout_could_follow_is_refused(make: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        make()
    assert raised.value.reason == "INVALID_ROLLOUT"
    assert [violation.field for violation in raised.value.fields] == [field]
