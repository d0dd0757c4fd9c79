"""What a step's observations lead to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument
from headrace.inference.domain.analysis import (
    Analysis,
    Criterion,
    DisagreementBound,
    Finding,
    Judgement,
    Observed,
    Outcomes,
    QualityBound,
    QualityMetric,
    Standing,
    Verdict,
    against,
    judge,
)
from headrace.inference.domain.quality import Cell
from headrace.inference.domain.sequential import Tally

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOLD = timedelta(seconds=10)
LONGEST = 10 * HOLD
EVERYTHING = Analysis(
    max_error_increase=0.01,
    max_p50_ratio=1.5,
    max_p99_ratio=1.5,
    max_shift=0.1,
    quality=QualityBound(QualityMetric.RECALL, 0.02),
    disagreement=DisagreementBound(0.05),
    min_samples=200,
    longest_hold=LONGEST,
)
LATENCIES = {-60: 200, -59: 600, -58: 900, -57: 280, -50: 20}
GOOD = Observed(
    outcomes=Outcomes(1980, 20),
    latencies=LATENCIES,
    answers={0.0: 1200, 1.0: 800},
    feedback=(Cell(1, 1, 760), Cell(0, 1, 40), Cell(0, 0, 1190), Cell(1, 0, 10)),
    classes=2,
    differing=Tally(20, 2000),
)


def judged(
    new: Observed, old: Observed = GOOD, analysis: Analysis = EVERYTHING, held: timedelta = HOLD
) -> Judgement:
    return judge(analysis, 3, new, old, held=held, hold=HOLD, now=NOW)


def finding(judgement: Judgement, criterion: Criterion) -> Finding:
    return next(found for found in judgement.findings if found.criterion is criterion)


def test_a_version_that_does_as_well_goes_on_when_it_was_held_long_enough() -> None:
    assert judged(GOOD, held=HOLD / 2).verdict is Verdict.HOLD
    judgement = judged(GOOD)
    assert judgement.verdict is Verdict.ADVANCE
    assert [found.criterion for found in judgement.findings] == list(Criterion)
    assert judgement.worst is None


@pytest.mark.parametrize(
    ("criterion", "bad", "text"),
    [
        (
            Criterion.ERROR_RATE,
            replace(GOOD, outcomes=Outcomes(1800, 200)),
            "version 2 failed 200 of 2000 requests, version 1 20 of 2000; 1.0% more are allowed",
        ),
        (
            Criterion.LATENCY_P50,
            replace(GOOD, latencies={bucket + 12: count for bucket, count in LATENCIES.items()}),
            "version 2 takes 18.6 ms, version 1 6.57 ms (LATENCY_P50): 2.83 times as long",
        ),
        (
            Criterion.LATENCY_P99,
            replace(GOOD, latencies={**LATENCIES, -30: 400}),
            "version 2 takes 74.3 ms, version 1 7.16 ms (LATENCY_P99): 10.4 times as long",
        ),
        (
            Criterion.DRIFT,
            replace(GOOD, answers={0.0: 600, 1.0: 1400}),
            "version 2 gives an answer in 70.0% of its answers, version 1 in 40.0%",
        ),
        (
            Criterion.QUALITY,
            replace(GOOD, feedback=(Cell(1, 1, 600), Cell(0, 1, 200), Cell(0, 0, 1200))),
            "version 2 was wrong in 25.0% of 800 labelled answers, version 1 in 5.0% of 800",
        ),
        (
            Criterion.DISAGREEMENT,
            replace(GOOD, differing=Tally(200, 2000)),
            "version 2 answered 10.0% of 2000 requests otherwise than version 1; 5.0% are allowed",
        ),
    ],
)
def test_harm_is_seen_by_its_own_criterion_before_the_hold_is_over(
    criterion: Criterion, bad: Observed, text: str
) -> None:
    judgement = judged(bad, held=timedelta(0))
    assert judgement.verdict is Verdict.ROLL_BACK
    violated = [found for found in judgement.findings if found.standing is Standing.VIOLATED]
    assert violated[0].criterion is criterion
    assert judgement.worst == finding(judgement, criterion)
    assert against(violated[0], 2, 1).startswith(text)
    assert violated[0].low is not None
    assert violated[0].limit < violated[0].low <= violated[0].effect


observations = st.builds(
    Observed,
    st.builds(Outcomes, st.integers(0, 49), st.integers(0, 49)),
    st.dictionaries(st.integers(-80, 0), st.integers(1, 20), max_size=4),
    st.dictionaries(st.sampled_from([0.0, 1.0]), st.integers(0, 90), max_size=2),
    st.lists(
        st.builds(Cell, st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]), st.integers(0, 40))
    ).map(lambda cells: tuple(cells[:4])),
    st.just(2),
    st.integers(0, 49).map(lambda hits: Tally(hits, 49)),
)


@given(observations)
def test_nothing_is_decided_below_the_least_number_of_samples(new: Observed) -> None:
    judgement = judged(new, held=LONGEST / 2)
    assert {found.standing for found in judgement.findings} == {Standing.INSUFFICIENT}
    assert judgement.verdict is Verdict.HOLD


def test_what_nobody_asked_goes_on_when_it_was_held_as_long_as_it_may_be() -> None:
    assert judged(Observed(classes=2), held=LONGEST / 2).verdict is Verdict.HOLD
    assert judged(Observed(classes=2), held=LONGEST).verdict is Verdict.ADVANCE


def test_what_looks_worse_but_may_be_chance_waits_and_then_goes_back() -> None:
    worse = replace(GOOD, outcomes=Outcomes(242, 8))
    assert finding(judged(worse), Criterion.ERROR_RATE).standing is Standing.SUSPECT
    assert judged(worse).verdict is Verdict.HOLD
    assert judged(worse, held=LONGEST).verdict is Verdict.ROLL_BACK
    unwatched = replace(EVERYTHING, longest_hold=timedelta(0))
    assert judged(worse, analysis=unwatched).verdict is Verdict.ROLL_BACK


def test_an_old_version_that_fails_as_often_excuses_the_new_one() -> None:
    failing = replace(GOOD, outcomes=Outcomes(1000, 1000))
    assert judged(failing, failing).verdict is Verdict.ADVANCE
    assert judged(failing, replace(failing, outcomes=Outcomes(0, 10))).verdict is Verdict.ROLL_BACK


def test_without_an_old_version_to_compare_with_the_limit_is_that_of_the_failures() -> None:
    found = finding(judged(replace(GOOD, outcomes=Outcomes(1800, 200)), Observed()), Criterion.ERROR_RATE)
    assert found.standing is Standing.VIOLATED
    assert found.effect == found.new == 0.1


def test_what_a_model_does_not_have_is_said_and_decides_nothing() -> None:
    number = judged(replace(GOOD, classes=0), replace(GOOD, classes=0))
    for criterion in (Criterion.DRIFT, Criterion.QUALITY):
        assert finding(number, criterion).standing is Standing.NOT_APPLICABLE
    assert number.verdict is Verdict.ADVANCE
    three = judged(replace(GOOD, classes=3), replace(GOOD, classes=3))
    assert finding(three, Criterion.QUALITY).standing is Standing.NOT_APPLICABLE
    assert finding(three, Criterion.DRIFT).standing is Standing.WITHIN
    no_shadow = judged(replace(GOOD, differing=None))
    assert Criterion.DISAGREEMENT not in {found.criterion for found in no_shadow.findings}


def test_quality_counts_what_its_metric_is_a_share_of() -> None:
    counted = {
        metric: finding(judged(GOOD, analysis=Analysis(quality=QualityBound(metric, 0.5))), Criterion.QUALITY)
        for metric in QualityMetric
    }
    assert {metric: (found.new_samples, round(found.new, 4)) for metric, found in counted.items()} == {
        QualityMetric.ACCURACY: (2000, 0.025),
        QualityMetric.RECALL: (800, 0.05),
        QualityMetric.PRECISION: (770, 0.013),
    }


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"max_error_increase": 1.0}, "error_rate.max_increase"),
        ({"max_p50_ratio": 0.5}, "latency_p50.max_ratio"),
        ({"max_p99_ratio": float("nan")}, "latency_p99.max_ratio"),
        ({"max_shift": -0.1}, "drift.max_shift"),
        ({"quality": QualityBound(QualityMetric.ACCURACY, 2.0)}, "quality.max_drop"),
        ({"disagreement": DisagreementBound(1.0)}, "disagreement.max_share"),
        ({"disagreement": DisagreementBound(0.1, -1.0)}, "disagreement.tolerance"),
        ({"min_samples": 0}, "min_samples"),
        ({"confidence": 1.0}, "confidence"),
        ({"longest_hold": timedelta(seconds=-1)}, "longest_hold"),
    ],
)
def test_what_nothing_could_be_judged_by_is_refused(wish: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        replace(Analysis(), **wish)  # type: ignore[arg-type]
    assert raised.value.reason == "INVALID_ROLLOUT"
    assert [violation.field for violation in raised.value.fields] == [f"rollout.analysis.{field}"]
