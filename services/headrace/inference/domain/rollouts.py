"""A rollout's life.

LOADING ──▶ PROGRESSING (step 0, 1, ...) ──▶ SUCCEEDED
   │              │
   ▼              ▼
 FAILED       ROLLED_BACK
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from headrace.errors import FieldViolation, InvalidArgument

# A step is judged only after this many answers of the new version.
MIN_SAMPLES = 20
# More failures than this share, and more than the old version's share, send the traffic back.
MAX_ERROR_RATE = 0.05


class RolloutState(enum.StrEnum):
    """Where a rollout is."""

    LOADING = "LOADING"
    PROGRESSING = "PROGRESSING"
    SUCCEEDED = "SUCCEEDED"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self in {RolloutState.SUCCEEDED, RolloutState.ROLLED_BACK, RolloutState.FAILED}


@dataclass(frozen=True, slots=True)
class Plan:
    """Percentages that the new version gets, rising to 100, and how long each is watched."""

    steps: tuple[int, ...] = (100,)
    hold: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        """Raises InvalidArgument/INVALID_ROLLOUT for steps that do not rise to 100."""
        rising = all(low < high for low, high in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not rising or self.steps[-1] != 100 or self.steps[0] < 1:
            raise InvalidArgument(
                "INVALID_ROLLOUT",
                f"rollout steps must rise and end with 100, not {list(self.steps)}",
                fields=[FieldViolation("rollout.steps", "must rise and end with 100")],
            )


@dataclass(frozen=True, slots=True)
class Rollout:
    """Traffic on its way from one version to the next; `from_version` 0 where there is none yet.

    `superseded`: it ended for a newer version's sake, which says nothing about its own.
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


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Answers of one version since a step began."""

    succeeded: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All answers."""
        return self.succeeded + self.failed

    @property
    def error_rate(self) -> float:
        """Share of failures; 0 where nothing was asked."""
        return self.failed / self.total if self.total else 0.0


def loaded(rollout: Rollout, plan: Plan, now: datetime) -> Rollout:
    """The version answers in Triton: give it its first share."""
    assert rollout.state is RolloutState.LOADING
    # Nothing answers yet, so there is nobody to protect by going slowly.
    step = len(plan.steps) - 1 if rollout.from_version == 0 else 0
    return _at_step(replace(rollout, state=RolloutState.PROGRESSING), plan, step, now)


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


def advance(rollout: Rollout, plan: Plan, new: Outcomes, old: Outcomes, now: datetime) -> Rollout:
    """Judge a step: back where the new version fails more than it may, on when it was held long enough."""
    assert rollout.state is RolloutState.PROGRESSING
    bad = new.total >= MIN_SAMPLES and new.error_rate > max(MAX_ERROR_RATE, old.error_rate)
    if bad and rollout.from_version:
        message = (
            f"version {rollout.to_version} failed {new.failed} of {new.total} requests, "
            f"version {rollout.from_version} {old.failed} of {old.total}"
        )
        return _ended(rollout, RolloutState.ROLLED_BACK, message, now, 0)
    if now - rollout.step_time < plan.hold and rollout.from_version:
        return rollout
    if rollout.step + 1 >= len(plan.steps):
        message = f"version {rollout.to_version} has all traffic"
        return _ended(rollout, RolloutState.SUCCEEDED, message, now, 100)
    return _at_step(rollout, plan, rollout.step + 1, now)


def weights(rollout: Rollout) -> dict[int, int]:
    """Each version's share of the traffic, per cent, versions without one left out."""
    shares = {rollout.from_version: 100 - rollout.weight, rollout.to_version: rollout.weight}
    return {version: weight for version, weight in shares.items() if version and weight}


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


def _at_step(rollout: Rollout, plan: Plan, step: int, now: datetime) -> Rollout:
    weight = plan.steps[step]
    message = f"version {rollout.to_version} has {weight} % of the traffic"
    return replace(rollout, step=step, weight=weight, step_time=now, message=message)


def _ended(rollout: Rollout, state: RolloutState, message: str, now: datetime, weight: int) -> Rollout:
    return replace(rollout, state=state, message=message, end_time=now, step_time=now, weight=weight)
