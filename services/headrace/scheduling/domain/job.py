"""A job's life: one table of transitions, and a function for each thing that can happen to a job."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from headrace.scheduling.domain.resources import Resources


class JobState(enum.Enum):
    """Where a job is in its life."""

    QUEUED = "QUEUED"
    PLACED = "PLACED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing happens to the job any more."""
        return self in ENDED

    @property
    def holds_node(self) -> bool:
        """Whether the job takes room on its node."""
        return self in HOLDING


ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
DESIRED: Final = frozenset({JobState.PLACED, JobState.RUNNING})
# Failures that the next attempt would meet again: data, parameters and limits are the same.
FINAL_REASONS: Final = frozenset({"DIVERGED", "MODEL_TOO_LARGE", "OUT_OF_MEMORY", "UNUSABLE_DATASET"})
# Of a job that was never tried.
BLOCKED_VERSION: Final = "DATASET_VERSION_BLOCKED"
HOLDING: Final = DESIRED | {JobState.CANCELLING}


class Trigger(enum.Enum):
    """What can happen to a job."""

    PLACE = "a node was chosen"
    START = "the node runs it"
    SUCCEED = "the run succeeded"
    RETRY = "the attempt failed and another one is allowed"
    FAIL = "the attempt failed and no other one is allowed"
    LOSE = "the node was lost or gave it up"
    CANCEL = "the user cancelled it"
    STOP = "the node no longer runs it"
    REFUSE = "its dataset version is not to be trained on"


TRANSITIONS: Final[Mapping[tuple[JobState, Trigger], JobState]] = {
    (JobState.QUEUED, Trigger.PLACE): JobState.PLACED,
    (JobState.QUEUED, Trigger.CANCEL): JobState.CANCELLED,
    (JobState.QUEUED, Trigger.REFUSE): JobState.FAILED,
    (JobState.PLACED, Trigger.START): JobState.RUNNING,
    (JobState.PLACED, Trigger.SUCCEED): JobState.SUCCEEDED,
    (JobState.PLACED, Trigger.RETRY): JobState.QUEUED,
    (JobState.PLACED, Trigger.FAIL): JobState.FAILED,
    (JobState.PLACED, Trigger.LOSE): JobState.QUEUED,
    (JobState.PLACED, Trigger.CANCEL): JobState.CANCELLING,
    (JobState.RUNNING, Trigger.SUCCEED): JobState.SUCCEEDED,
    (JobState.RUNNING, Trigger.RETRY): JobState.QUEUED,
    (JobState.RUNNING, Trigger.FAIL): JobState.FAILED,
    (JobState.RUNNING, Trigger.LOSE): JobState.QUEUED,
    (JobState.RUNNING, Trigger.CANCEL): JobState.CANCELLING,
    # The run may end by itself before it is stopped: then its model is there, and saying otherwise would lie.
    (JobState.CANCELLING, Trigger.SUCCEED): JobState.SUCCEEDED,
    (JobState.CANCELLING, Trigger.STOP): JobState.CANCELLED,
    (JobState.CANCELLING, Trigger.LOSE): JobState.CANCELLED,
}
"""From (state, trigger) to the next state. What is not here cannot happen."""


class IllegalTransitionError(Exception):
    """A trigger that the job's state does not allow: a mistake in the caller."""

    def __init__(self, state: JobState, trigger: Trigger) -> None:
        super().__init__(f"a {state.value} job cannot take {trigger.name}")
        self.state = state
        self.trigger = trigger


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `loss` is the last epoch's on the training split."""

    epoch: int
    epochs: int
    loss: float
    remaining: timedelta


@dataclass(frozen=True, slots=True)
class Job:
    """Training of a pipeline's model on one version of its dataset.

    `version` grows by one with each change of state; a write names the version that it saw.
    """

    id: str
    pipeline: str
    dataset_version: int
    resources: Resources
    create_time: datetime
    queue_time: datetime
    state: JobState = JobState.QUEUED
    priority: int = 0
    max_retries: int = 0
    # Longest time that one attempt may run, or may take to be started; none: no limit.
    deadline: timedelta | None = None
    attempt: int = 1
    # Attempts that failed by themselves; a lost node is not the job's fault.
    failures: int = 0
    node: str = ""
    reason: str = ""
    message: str = ""
    progress: Progress | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_version: int = 0
    start_time: datetime | None = None
    # When the attempt was placed and, once its node has reported it running, when that was.
    attempt_start_time: datetime | None = None
    end_time: datetime | None = None
    # The trace that the job belongs to, and the span of its latest placement.
    traceparent: str = ""
    placement_traceparent: str = ""
    version: int = 1


def refuse(job: Job, message: str, now: datetime) -> Job:
    """The job, ended before it began, because its dataset version is blocked."""
    return replace(_move(job, Trigger.REFUSE), reason=BLOCKED_VERSION, message=message, end_time=now)


def place(job: Job, node: str, now: datetime, *, traceparent: str = "") -> Job:
    """The job, assigned to a node."""
    return replace(
        _move(job, Trigger.PLACE),
        node=node,
        reason="",
        message=f"assigned to node {node}",
        progress=None,
        attempt_start_time=now,
        placement_traceparent=traceparent or job.traceparent,
    )


def start(job: Job, now: datetime) -> Job:
    """The job, reported running by its node."""
    return replace(
        _move(job, Trigger.START),
        message=f"running on node {job.node}",
        start_time=job.start_time or now,
        attempt_start_time=now,
    )


def succeed(
    job: Job, now: datetime, *, model_version: int, metrics: Mapping[str, float], message: str = ""
) -> Job:
    """The job, ended with a registered model version."""
    return replace(
        _move(job, Trigger.SUCCEED),
        reason="",
        message=message or f"model version {model_version} is registered",
        model_version=model_version,
        metrics=dict(metrics),
        start_time=job.start_time or now,
        end_time=now,
    )


def fail_attempt(job: Job, now: datetime, *, reason: str, message: str) -> Job:
    """The job after an attempt that failed by itself: queued again while retries are left and can help."""
    failures = job.failures + 1
    if failures <= job.max_retries and reason not in FINAL_REASONS:
        return replace(
            _requeue(job, Trigger.RETRY, now),
            failures=failures,
            reason=reason,
            message=f"attempt {job.attempt} failed, retry {failures} of {job.max_retries}: {message}",
        )
    return replace(
        _move(job, Trigger.FAIL),
        failures=failures,
        reason=reason,
        message=message if not job.max_retries else f"attempt {job.attempt}, the last one: {message}",
        start_time=job.start_time or now,
        end_time=now,
    )


def lose(job: Job, now: datetime, *, reason: str, message: str) -> Job:
    """The job after its node was lost or gave it up: queued again, and no failure is counted."""
    if job.state is JobState.CANCELLING:
        return replace(_move(job, Trigger.LOSE), reason="", message=f"cancelled; {message}", end_time=now)
    return replace(_requeue(job, Trigger.LOSE, now), reason=reason, message=message)


def cancel(job: Job, now: datetime) -> Job:
    """The job after the user cancelled it. One that has ended, or is being cancelled, stays as it is."""
    if job.state.ended or job.state is JobState.CANCELLING:
        return job
    moved = _move(job, Trigger.CANCEL)
    if moved.state is JobState.CANCELLED:
        return replace(moved, reason="", message="cancelled before it ran", end_time=now)
    return replace(moved, reason="", message=f"node {job.node} is stopping the run")


def stopped(job: Job, now: datetime) -> Job:
    """A cancelled job, no longer run by its node."""
    return replace(_move(job, Trigger.STOP), message="cancelled", end_time=now)


def _requeue(job: Job, trigger: Trigger, now: datetime) -> Job:
    return replace(
        _move(job, trigger),
        attempt=job.attempt + 1,
        node="",
        queue_time=now,
        attempt_start_time=None,
    )


def _move(job: Job, trigger: Trigger) -> Job:
    state = TRANSITIONS.get((job.state, trigger))
    if state is None:
        raise IllegalTransitionError(job.state, trigger)
    return replace(job, state=state, version=job.version + 1)
