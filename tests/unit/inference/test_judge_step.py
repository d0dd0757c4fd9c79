"""What a step is judged by is read from where it stands, and no more often than that is cheap."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from headrace.inference.analysis_messages import analysis_from, analysis_message, judgement_message
from headrace.inference.domain.analysis import (
    Analysis,
    Criterion,
    DisagreementBound,
    Outcomes,
    QualityBound,
    QualityMetric,
    Standing,
)
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.quality import Met
from headrace.inference.domain.rollouts import Baseline, Plan, Rollout, RolloutState
from headrace.inference.domain.sequential import Tally
from headrace.inference.domain.trials import Shadow
from headrace.inference.use_cases.judge_step import LOG_SHARE, JudgeStep

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
EVERYTHING = Analysis(
    max_p50_ratio=1.5,
    max_p99_ratio=1.5,
    max_shift=0.1,
    quality=QualityBound(QualityMetric.ACCURACY, 0.05),
    disagreement=DisagreementBound(0.1, 0.01),
    longest_hold=60 * SECOND,
)


class Log:
    """A prediction log that takes a second to be read."""

    def __init__(self) -> None:
        self.now = NOW
        self.reads: list[Mapping[int, datetime]] = []

    def clock(self) -> datetime:
        return self.now

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Any]:
        yield SimpleNamespace(rows=self)

    async def latency_counts(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, dict[int, int]]:
        self.reads.append(since)
        self.now += SECOND
        return {1: {-60: 900}, 2: {-59: 100}}

    async def answers_given(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, dict[float, int]]:
        return {1: {0.0: 450, 1.0: 450}, 2: {0.0: 50, 1.0: 50}}

    async def answer_counts_since(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, list[Met]]:
        return {1: [Met(1.0, 1.0, 300)], 2: [Met(1.0, 1.0, 60), Met(1.0, 0.0, 30)]}

    async def differing_answers(
        self, deployment: str, new: int, old: int, since: datetime, tolerance: float
    ) -> Tally:
        assert (new, old, since, tolerance) == (2, 1, NOW, 0.01)
        return Tally(80, 80)


def a_version(number: int) -> ServedVersion:
    return ServedVersion("m", number, "file:///m", "", (), (), ("0", "1"), b"", "")


def a_rollout(
    from_version: int = 1, step: int = 0, state: RolloutState = RolloutState.PROGRESSING
) -> Rollout:
    baselines = {1: Baseline(NOW - SECOND, Outcomes(1000, 0)), 2: Baseline(NOW, Outcomes())}
    return Rollout("r", "live", from_version, 2, state, "", NOW, NOW, step=step, baselines=baselines)


def a_deployment(analysis: Analysis = EVERYTHING) -> Deployment:
    plan = Plan((10, 100), SECOND, analysis, Shadow(hold=2 * SECOND))
    return Deployment("live", "m", plan, NOW, NOW)


VERSIONS = {1: a_version(1), 2: a_version(2)}
COUNTS = {1: Outcomes(1900, 0), 2: Outcomes(100, 0)}


async def test_every_criterion_is_judged_by_what_the_step_has_seen() -> None:
    log = Log()
    judgement = await JudgeStep(log.work, log.clock)(a_deployment(), a_rollout(), VERSIONS, COUNTS)
    assert judgement is not None
    assert log.reads == [{1: NOW - SECOND, 2: NOW}]
    seen = {found.criterion: (found.new_samples, found.old_samples) for found in judgement.findings}
    assert seen == {
        Criterion.ERROR_RATE: (100, 900),
        Criterion.LATENCY_P50: (100, 900),
        Criterion.LATENCY_P99: (100, 900),
        Criterion.DRIFT: (100, 900),
        Criterion.QUALITY: (90, 300),
    }
    assert judgement.worst is not None
    assert (judgement.worst.criterion, judgement.worst.standing) == (Criterion.QUALITY, Standing.VIOLATED)


async def test_a_shadow_is_judged_by_its_disagreement_too() -> None:
    log = Log()
    shadowing = a_rollout(state=RolloutState.SHADOWING)
    judgement = await JudgeStep(log.work, log.clock)(a_deployment(), shadowing, VERSIONS, COUNTS)
    assert judgement is not None
    found = next(f for f in judgement.findings if f.criterion is Criterion.DISAGREEMENT)
    assert (found.standing, found.new_samples) == (Standing.VIOLATED, 80)


async def test_the_log_is_read_again_when_that_is_cheap_or_another_step_began() -> None:
    log = Log()
    judge = JudgeStep(log.work, log.clock)
    await judge(a_deployment(), a_rollout(), VERSIONS, COUNTS)
    await judge(a_deployment(), a_rollout(), VERSIONS, COUNTS)
    assert len(log.reads) == 1
    await judge(a_deployment(), a_rollout(step=1), VERSIONS, COUNTS)
    assert len(log.reads) == 2
    log.now += LOG_SHARE * SECOND
    await judge(a_deployment(), a_rollout(step=1), VERSIONS, COUNTS)
    assert len(log.reads) == 3
    shadowing = a_rollout(step=1, state=RolloutState.SHADOWING)
    await judge(a_deployment(), shadowing, VERSIONS, COUNTS)
    assert len(log.reads) == 4


async def test_error_rates_alone_need_no_log() -> None:
    log = Log()
    judgement = await JudgeStep(log.work, log.clock)(a_deployment(Analysis()), a_rollout(), VERSIONS, COUNTS)
    assert judgement is not None
    assert log.reads == []


async def test_a_first_version_has_nothing_to_be_compared_with() -> None:
    log = Log()
    first = a_rollout(from_version=0)
    assert await JudgeStep(log.work, log.clock)(a_deployment(), first, VERSIONS, COUNTS) is None


async def test_a_judgement_and_its_plan_are_told_whole() -> None:
    log = Log()
    judgement = await JudgeStep(log.work, log.clock)(a_deployment(), a_rollout(), VERSIONS, COUNTS)
    assert judgement is not None
    message = judgement_message(judgement)
    assert [found.new_samples for found in message.findings] == [f.new_samples for f in judgement.findings]
    assert analysis_from(analysis_message(EVERYTHING), SECOND) == EVERYTHING
    assert analysis_from(analysis_message(Analysis()), SECOND) == Analysis()
