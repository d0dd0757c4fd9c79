"""How often drift may start a job."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduling.test_scheduling_pipeline import RULES as PIPELINE

from headrace.errors import InvalidArgument
from headrace.scheduling.domain.pipeline import check_pipeline
from headrace.scheduling.domain.retraining import DAY, Reason, RetrainRules, too_soon

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
RULES = RetrainRules(HOUR, 3)


def hours_ago(*hours: float) -> list[datetime]:
    return [NOW - hour * HOUR for hour in hours]


@pytest.mark.parametrize(
    ("started", "reason"),
    [
        ([], None),
        (hours_ago(1), None),
        (hours_ago(0.9), Reason.COOLING_DOWN),
        (hours_ago(2, 5), None),
        (hours_ago(5, 2, 9), Reason.DAILY_LIMIT),
        (hours_ago(2, 9, 24), None),
        (hours_ago(0.5, 2, 9), Reason.COOLING_DOWN),
    ],
)
def test_a_job_waits_for_the_last_one_and_for_the_day(started: list[datetime], reason: Reason | None) -> None:
    obstacle = too_soon(RULES, started, NOW)
    assert (obstacle.reason if obstacle else None) == reason


def test_it_is_said_until_when() -> None:
    for started, until in ((hours_ago(0.5), "12:30:00"), (hours_ago(2, 5, 9), "2026-01-03 03:00:00")):
        obstacle = too_soon(RULES, started, NOW)
        assert obstacle is not None
        assert obstacle.message.endswith(f"{until} UTC")


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=60),
    st.integers(0, 120),
    st.integers(1, 5),
)
def test_no_day_has_more_jobs_and_no_two_are_closer_whatever_alerts_come(
    pauses: list[int], cooldown: int, most: int
) -> None:
    rules = RetrainRules(timedelta(minutes=cooldown), most)
    now, started = NOW, list[datetime]()
    for pause in pauses:
        now += timedelta(minutes=pause)
        remembered = [moment for moment in started if moment >= now - rules.memory]
        if too_soon(rules, remembered, now) is None:
            started.append(now)
    assert started
    for place, moment in enumerate(started):
        assert sum(moment <= other < moment + DAY for other in started) <= most
        assert all(other - moment >= rules.cooldown for other in started[place + 1 :])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"retraining": RetrainRules(-HOUR)}, "spec.retrain_on_drift.cooldown"),
        ({"retraining": RetrainRules(31 * DAY)}, "spec.retrain_on_drift.cooldown"),
        ({"retraining": RetrainRules(max_per_day=-1)}, "spec.retrain_on_drift.max_per_day"),
        ({"retraining": RULES, "deployed": False}, "spec.retrain_on_drift"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(change: dict[str, RetrainRules], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_pipeline(replace(PIPELINE, **{"deployed": True, **change}))
    assert [violation.field for violation in caught.value.fields] == [field]
