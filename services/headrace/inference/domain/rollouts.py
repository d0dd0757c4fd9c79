"""A rollout's life.

LOADING ──▶ SHADOWING ──▶ PROGRESSING (step 0, 1, ...) ──▶ SUCCEEDED
   │             │               │
   ▼             ▼               ▼
 FAILED      ROLLED_BACK     ROLLED_BACK

SHADOWING is left out where the plan has no shadow, and where there is no older version to answer meanwhile.
A paused rollout stays where it is, at LOADING, SHADOWING or a step, and is still sent back where its version
does harm.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from headrace.errors import FailedPrecondition
from headrace.inference.domain.analysis import (
    DEFAULT_ANALYSIS,
    Analysis,
    Judgement,
    Outcomes,
    Standing,
    Verdict,
    against,
)
from headrace.inference.domain.trials import Audience, Shadow, Trial, check_header, invalid


class RolloutState(enum.StrEnum):
    """Where a rollout is."""

    LOADING = "LOADING"
    SHADOWING = "SHADOWING"
    PROGRESSING = "PROGRESSING"
    SUCCEEDED = "SUCCEEDED"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self in {RolloutState.SUCCEEDED, RolloutState.ROLLED_BACK, RolloutState.FAILED}

    @property
    def judged(self) -> bool:
        """Whether the new version answers, and is compared with the old one."""
        return self in {RolloutState.SHADOWING, RolloutState.PROGRESSING}


@dataclass(frozen=True, slots=True)
class Plan:
    """Percentages that the new version gets, rising to 100, how long each is watched, and for what.

    `shadow`: what comes before them; None: nothing. `sticky_header` and `audience`: as in a `Trial`. With an
    audience the first step may be 0: nobody else gets the new version then.
    """

    steps: tuple[int, ...] = (100,)
    hold: timedelta = timedelta(0)
    analysis: Analysis = DEFAULT_ANALYSIS
    shadow: Shadow | None = None
    sticky_header: str = ""
    audience: Audience | None = None

    def __post_init__(self) -> None:
        """Raises InvalidArgument/INVALID_ROLLOUT for steps that do not rise to 100, or parts that misfit."""
        rising = all(low < high for low, high in zip(self.steps, self.steps[1:], strict=False))
        least = 0 if self.audience else 1
        if not self.steps or not rising or self.steps[-1] != 100 or self.steps[0] < least:
            raise invalid("rollout.steps", f"must rise and end with 100, not {list(self.steps)}")
        if self.sticky_header:
            check_header("rollout.sticky.header", self.sticky_header)
        if self.analysis.disagreement is not None and self.shadow is None:
            raise invalid("rollout.analysis.disagreement", "needs a shadow, whose answers it compares")

    @property
    def comparisons(self) -> int:
        """How many times a version is judged anew: at each step, and as a shadow."""
        return len(self.steps) + (self.shadow is not None)

    @property
    def watched(self) -> timedelta:
        """How long a step is watched: what it is held for, or else at most."""
        return self.hold or self.analysis.longest_hold

    def hold_of(self, state: RolloutState) -> timedelta:
        """How long a rollout in this state is watched, at least."""
        return self.shadow.hold if self.shadow and state is RolloutState.SHADOWING else self.hold


@dataclass(frozen=True, slots=True)
class Baseline:
    """When a version's answers began to count for a step, and what it had answered until then."""

    time: datetime
    outcomes: Outcomes


@dataclass(frozen=True, slots=True)
class Rollout:
    """Traffic on its way from one version to the next; `from_version` 0 where there is none yet.

    `superseded`: it ended for a newer version's sake, which says nothing about its own. `judgement`: the last
    one of the step, or the one that ended it. `baselines`: of both versions, from the first step on.
    """

    id: str
    deployment: str
    from_version: int
    to_version: int
    state: RolloutState
    traceparent: str
    create_time: datetime
    step_time: datetime
    step: int = 0
    weight: int = 0
    message: str = ""
    end_time: datetime | None = None
    superseded: bool = False
    paused: bool = False
    judgement: Judgement | None = None
    baselines: Mapping[int, Baseline] = field(default_factory=dict)


def loaded(rollout: Rollout, plan: Plan, counts: Mapping[int, Outcomes], now: datetime) -> Rollout:
    """The version answers in Triton, which has counted so far: let it shadow, or give it its first share."""
    assert rollout.state is RolloutState.LOADING
    if plan.shadow is not None and rollout.from_version:
        return replace(
            rollout,
            state=RolloutState.SHADOWING,
            step_time=now,
            message=f"version {rollout.to_version} is asked beside version {rollout.from_version}",
            baselines=_baselines(rollout, counts, now),
        )
    # Nothing answers yet, so there is nobody to protect by going slowly.
    step = len(plan.steps) - 1 if rollout.from_version == 0 else 0
    return _at_step(replace(rollout, state=RolloutState.PROGRESSING), plan, step, counts, now)


def load_failed(rollout: Rollout, why: str, now: datetime) -> Rollout:
    """The version does not load, or not again after Triton restarted; the old one is left alone."""
    return _ended(rollout, _undone(rollout), f"version {rollout.to_version} did not load: {why}", now, 0)


def process_died(rollout: Rollout, now: datetime) -> Rollout:
    """The version's process died of what it was asked: its traffic goes back."""
    return _ended(rollout, _undone(rollout), f"the process of version {rollout.to_version} died", now, 0)


def superseded(rollout: Rollout, newer: int, now: datetime) -> Rollout:
    """A newer version was promoted: this one's traffic goes back, and the newer one's rollout begins."""
    ended = _ended(rollout, _undone(rollout), f"version {newer} was promoted meanwhile", now, 0)
    return replace(ended, superseded=True)


def aborted(rollout: Rollout, now: datetime) -> Rollout:
    """An operator took the traffic back."""
    return _ended(rollout, _undone(rollout), "aborted by an operator", now, 0)


def promoted(rollout: Rollout, now: datetime) -> Rollout:
    """An operator gives the version all traffic. Raises FailedPrecondition/ROLLOUT_LOADING."""
    if rollout.state is RolloutState.LOADING:
        raise FailedPrecondition(
            "ROLLOUT_LOADING",
            f"version {rollout.to_version} is still being loaded; promote it when it has its first share",
        )
    return _ended(rollout, RolloutState.SUCCEEDED, "promoted by an operator", now, 100)


def advance(
    rollout: Rollout, plan: Plan, judgement: Judgement | None, counts: Mapping[int, Outcomes], now: datetime
) -> Rollout:
    """Do what the judgement says; None where there is no version to compare with.

    `counts` are Triton's, from which the next step's answers are counted.
    """
    assert rollout.state.judged
    rollout = replace(rollout, judgement=judgement)
    if judgement is not None and judgement.verdict is Verdict.ROLL_BACK:
        return _ended(rollout, RolloutState.ROLLED_BACK, _harm(rollout, judgement), now, 0)
    if judgement is not None and (rollout.paused or judgement.verdict is Verdict.HOLD):
        return rollout
    if rollout.state is RolloutState.SHADOWING:
        return _at_step(replace(rollout, state=RolloutState.PROGRESSING), plan, 0, counts, now)
    if rollout.step + 1 >= len(plan.steps):
        message = f"version {rollout.to_version} has all traffic"
        return _ended(rollout, RolloutState.SUCCEEDED, message, now, 100)
    return _at_step(rollout, plan, rollout.step + 1, counts, now)


def outcomes_since(counts: Mapping[int, Outcomes], rollout: Rollout, version: int) -> Outcomes:
    """A version's answers that count for the step, from Triton's counts."""
    now = counts.get(version, Outcomes())
    baseline = rollout.baselines.get(version)
    then = baseline.outcomes if baseline else now
    if now.succeeded < then.succeeded or now.failed < then.failed:
        # Triton was restarted and counts from zero.
        return now
    return Outcomes(now.succeeded - then.succeeded, now.failed - then.failed)


def weights(rollout: Rollout) -> dict[int, int]:
    """Each version's share of the traffic, per cent, versions without one left out."""
    shares = {rollout.from_version: 100 - rollout.weight, rollout.to_version: rollout.weight}
    return {version: weight for version, weight in shares.items() if version and weight}


def trial(rollout: Rollout | None, plan: Plan) -> Trial | None:
    """What the data plane does for the version that is being rolled out; None where that is nothing."""
    if rollout is None or not rollout.state.judged or not rollout.from_version:
        return None
    if rollout.state is RolloutState.SHADOWING:
        return Trial(rollout.to_version, mirrored=plan.shadow.share) if plan.shadow else None
    if not plan.sticky_header and plan.audience is None:
        return None
    return Trial(rollout.to_version, sticky_header=plan.sticky_header, audience=plan.audience)


def wanted_versions(traffic: Mapping[int, int], rollout: Rollout | None) -> set[int]:
    """Versions that Triton must have loaded: those with traffic, and the one that a rollout brings."""
    wanted = set(traffic)
    if rollout is not None and not rollout.state.ended:
        wanted |= {rollout.to_version, rollout.from_version} - {0}
    return wanted


def next_rollout(
    promoted: Collection[int], stable: int, last: Rollout | None, *, rolled_out: Collection[int]
) -> int | None:
    """The version that a new rollout should bring: the newest promoted one that was not tried already.

    Where the newest was tried and does not do, that is the one before it; nothing goes back below `stable`.
    """
    newest = max(
        (version for version in promoted if version > stable and version not in rolled_out), default=0
    )
    if last is not None and not last.state.ended and last.to_version >= newest:
        return None
    return newest or None


def _undone(rollout: Rollout) -> RolloutState:
    """FAILED for one that never had traffic, ROLLED_BACK for one that had."""
    return RolloutState.FAILED if rollout.state is RolloutState.LOADING else RolloutState.ROLLED_BACK


def _harm(rollout: Rollout, judgement: Judgement) -> str:
    worst = judgement.worst
    assert worst is not None
    found = against(worst, rollout.to_version, rollout.from_version)
    if worst.standing is Standing.VIOLATED:
        return found
    return f"{found}; it was held as long as it may be, and more did not tell whether that was chance"


def _at_step(
    rollout: Rollout, plan: Plan, step: int, counts: Mapping[int, Outcomes], now: datetime
) -> Rollout:
    weight = plan.steps[step]
    message = f"version {rollout.to_version} has {weight} % of the traffic"
    baselines = _baselines(rollout, counts, now)
    if weight == 100 and rollout.from_version:
        # It is asked no more: what it answered in the step before is what is left to compare with; or else
        # what it answered just before, for as long as this one is watched.
        earlier = Baseline(now - plan.watched, counts.get(rollout.from_version, Outcomes()))
        baselines[rollout.from_version] = rollout.baselines.get(rollout.from_version, earlier)
    return replace(rollout, step=step, weight=weight, step_time=now, message=message, baselines=baselines)


def _baselines(rollout: Rollout, counts: Mapping[int, Outcomes], now: datetime) -> dict[int, Baseline]:
    return {
        version: Baseline(now, counts.get(version, Outcomes()))
        for version in (rollout.from_version, rollout.to_version)
        if version
    }


def _ended(rollout: Rollout, state: RolloutState, message: str, now: datetime, weight: int) -> Rollout:
    return replace(rollout, state=state, message=message, end_time=now, step_time=now, weight=weight)
