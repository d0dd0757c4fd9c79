"""What follows from an alert that a pipeline's model drifts: one job at most, and not too often."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from headrace.errors import FieldViolation

DEFAULT_COOLDOWN: Final = timedelta(hours=1)
DEFAULT_MAX_PER_DAY: Final = 3
MAX_COOLDOWN: Final = timedelta(days=30)
MAX_PER_DAY: Final = 1000
DAY: Final = timedelta(days=1)


class RetrainingState(enum.Enum):
    """Where an alert stands. WAITING is the only state that something follows from."""

    WAITING = "WAITING"
    STARTED = "STARTED"
    WITHDRAWN = "WITHDRAWN"


class Reason(enum.Enum):
    """What keeps it waiting, or why it was withdrawn."""

    UNDECIDED = "UNDECIDED"
    COOLING_DOWN = "COOLING_DOWN"
    DAILY_LIMIT = "DAILY_LIMIT"
    NO_NEW_DATA = "NO_NEW_DATA"
    DATASET_VERSION_BLOCKED = "DATASET_VERSION_BLOCKED"
    DRIFT_ENDED = "DRIFT_ENDED"
    NOT_WANTED = "NOT_WANTED"


@dataclass(frozen=True, slots=True)
class RetrainRules:
    """How often drift may start a job of one pipeline."""

    cooldown: timedelta = DEFAULT_COOLDOWN
    max_per_day: int = DEFAULT_MAX_PER_DAY

    @property
    def memory(self) -> timedelta:
        """What was started longer ago than this does not matter."""
        return max(self.cooldown, DAY)


@dataclass(frozen=True, slots=True)
class Retraining:
    """An alert and what it led to.

    `dataset_version` is what the drifting `model_version` was trained on. `reason` is None where a job was
    started.
    """

    episode: str
    pipeline: str
    deployment: str
    model_version: int
    dataset_version: int
    alert_time: datetime
    update_time: datetime
    state: RetrainingState = RetrainingState.WAITING
    reason: Reason | None = Reason.UNDECIDED
    message: str = "not decided yet"
    job: str = ""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why no job is started now."""

    reason: Reason
    message: str


def too_soon(rules: RetrainRules, started: Sequence[datetime], now: datetime) -> Obstacle | None:
    """Whether the pipeline has to wait, given when drift started its last jobs; until when, for people."""
    if started and now < (until := max(started) + rules.cooldown):
        return Obstacle(
            Reason.COOLING_DOWN,
            f"drift started a job at {_text(max(started))}, and the next one may start at {_text(until)}",
        )
    today = sorted(moment for moment in started if now < moment + DAY)
    if len(today) >= rules.max_per_day:
        until = today[-rules.max_per_day] + DAY
        return Obstacle(
            Reason.DAILY_LIMIT,
            f"drift started {len(today)} jobs in 24 hours, and the next one may start at {_text(until)}",
        )
    return None


def retraining_violations(rules: RetrainRules, *, deployed: bool) -> Iterator[FieldViolation]:
    """Say what makes no sense in a pipeline."""
    path = "spec.retrain_on_drift"
    if not deployed:
        yield FieldViolation(path, "needs a deployment, whose drift starts a job")
    if not timedelta(0) <= rules.cooldown <= MAX_COOLDOWN:
        yield FieldViolation(f"{path}.cooldown", "must be from 0 to 30 days")
    if not 1 <= rules.max_per_day <= MAX_PER_DAY:
        yield FieldViolation(f"{path}.max_per_day", f"must be from 1 to {MAX_PER_DAY}")


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
