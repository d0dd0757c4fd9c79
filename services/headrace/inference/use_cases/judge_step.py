"""Judging a rollout's step by what its two versions have answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from headrace.inference.domain.analysis import Analysis, Judgement, Observed, Outcomes, judge
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.quality import Cell, in_answers_terms
from headrace.inference.domain.rollouts import Rollout, RolloutState, outcomes_since
from headrace.inference.domain.sequential import Tally
from headrace.inference.use_cases.ports import UnitOfWork
from headrace.runtime.clock import Clock

# Reading the log of a long step takes its time; no more than one part in so many is spent on it.
LOG_SHARE = 20

# A rollout, its state and its step.
_Stage = tuple[str, RolloutState, int]


@dataclass(frozen=True, slots=True)
class _Log:
    """What the prediction log said of a step's versions, and when it is asked again."""

    at: _Stage
    due: datetime
    latencies: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    answers: Mapping[int, Mapping[float, int]] = field(default_factory=dict)
    feedback: Mapping[int, tuple[Cell, ...]] = field(default_factory=dict)
    differing: Tally | None = None


class JudgeStep:
    """Compares a rollout's versions by Triton's counts, the prediction log and the feedback to it."""

    def __init__(self, work: UnitOfWork, clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._logs: dict[str, _Log] = {}

    async def __call__(
        self,
        deployment: Deployment,
        rollout: Rollout,
        versions: Mapping[int, ServedVersion],
        counts: Mapping[int, Outcomes],
    ) -> Judgement | None:
        """Judge the step that the rollout is at, by Triton's counts; None where there is no older version."""
        if not rollout.from_version:
            return None
        plan = deployment.plan
        log = await self._read(plan.analysis, rollout, versions)
        new, old = (
            Observed(
                outcomes=outcomes_since(counts, rollout, version),
                latencies=log.latencies.get(version, {}),
                answers=log.answers.get(version, {}),
                feedback=log.feedback.get(version, ()),
                classes=_classes(versions, version),
                differing=log.differing if version == rollout.to_version else None,
            )
            for version in (rollout.to_version, rollout.from_version)
        )
        now = self._clock()
        # Some ten milliseconds of arithmetic, during which everything else goes on.
        return await asyncio.to_thread(
            judge,
            plan.analysis,
            plan.comparisons,
            new,
            old,
            held=now - rollout.step_time,
            hold=plan.hold_of(rollout.state),
            now=now,
        )

    async def _read(
        self, analysis: Analysis, rollout: Rollout, versions: Mapping[int, ServedVersion]
    ) -> _Log:
        """What the log says of the step now, or said not long ago."""
        began = self._clock()
        name = rollout.deployment
        known = self._logs.get(name)
        at = (rollout.id, rollout.state, rollout.step)
        if known is not None and known.at == at and began < known.due:
            return known
        if not analysis.needs_log:
            return _Log(at, began)
        since = {version: baseline.time for version, baseline in rollout.baselines.items()}
        classes = _classes(versions, rollout.to_version) > 0
        async with self._work() as work:
            latencies = await work.rows.latency_counts(name, since)
            # A model that answers with numbers has as many answers as requests.
            answers = await work.rows.answers_given(name, since) if classes else {}
            met = await work.rows.answer_counts_since(name, since) if analysis.quality else {}
            differing = None
            if analysis.disagreement and rollout.state is RolloutState.SHADOWING:
                differing = await work.rows.differing_answers(
                    name,
                    rollout.to_version,
                    rollout.from_version,
                    rollout.step_time,
                    analysis.disagreement.tolerance,
                )
        now = self._clock()
        log = _Log(
            at,
            due=now + LOG_SHARE * (now - began),
            latencies=latencies,
            answers=answers,
            feedback={
                version: tuple(in_answers_terms(counts, versions[version].classes))
                for version, counts in met.items()
                if version in versions
            },
            differing=differing,
        )
        self._logs[name] = log
        return log


def _classes(versions: Mapping[int, ServedVersion], version: int) -> int:
    known = versions.get(version)
    return len(known.classes) if known else 0
