"""Nodes, what they report, and what a report means for the jobs assigned to them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from headrace.scheduling.domain import job as jobs
from headrace.scheduling.domain.job import Job, JobState, Progress
from headrace.scheduling.domain.resources import Resources


class TaskPhase(enum.Enum):
    """Where a node is with a task."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def active(self) -> bool:
        """Whether the task takes room on the node."""
        return self in (TaskPhase.STARTING, TaskPhase.RUNNING)


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What a node says about one attempt of a job."""

    job: str
    attempt: int
    phase: TaskPhase
    reason: str = ""
    message: str = ""
    model_version: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """All that a node says about itself, whole each time."""

    node: str
    version: str
    capacity: Resources
    tasks: tuple[TaskReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Occupant:
    """An attempt that takes room on a node."""

    job: str
    attempt: int
    resources: Resources


@dataclass(frozen=True, slots=True)
class Node:
    """A compute node as scheduling knows it.

    `reported` are the attempts that its last report called active. One of them may be no longer assigned
    to the node (it was thought lost, or its job passed its deadline); until the node has stopped it, it
    still takes room.
    """

    name: str
    capacity: Resources
    lease_until: datetime
    last_report_time: datetime
    version: str = ""
    reported: tuple[Occupant, ...] = ()

    def ready(self, now: datetime) -> bool:
        """Whether the node's lease holds."""
        return self.lease_until > now


def observe(job: Job, report: TaskReport | None, now: datetime) -> Job:
    """The job after its node's report, which has `report` about it, or nothing.

    Says nothing new where the job comes back unchanged. Reports about another attempt count as none: the
    node has not caught up yet.
    """
    if report is None or report.attempt != job.attempt:
        # A task that should run and is not there yet will be started; one that should not is gone.
        return jobs.stopped(job, now) if job.state is JobState.CANCELLING else job
    match report.phase:
        case TaskPhase.STARTING:
            return job
        case TaskPhase.RUNNING:
            started = jobs.start(job, now) if job.state is JobState.PLACED else job
            return with_progress(started, report.progress, report.metrics)
        case TaskPhase.SUCCEEDED:
            return jobs.succeed(
                with_progress(job, report.progress, {}),
                now,
                model_version=report.model_version,
                metrics=report.metrics,
                message=report.message,
            )
        case TaskPhase.FAILED:
            if job.state is JobState.CANCELLING:
                return jobs.stopped(job, now)
            return jobs.fail_attempt(
                job, now, reason=report.reason or "RUN_FAILED", message=report.message or "the run failed"
            )
        case TaskPhase.STOPPED:
            if job.state is JobState.CANCELLING:
                return jobs.stopped(job, now)
            return jobs.lose(
                job,
                now,
                reason=report.reason or "RUN_STOPPED",
                message=f"node {job.node} stopped the run; it continues from its last checkpoint",
            )


def with_progress(job: Job, progress: Progress | None, metrics: Mapping[str, float]) -> Job:
    """The job with newer progress and metrics; an older epoch changes nothing. No change of state."""
    if progress is not None and (job.progress is None or progress.epoch >= job.progress.epoch):
        job = replace(job, progress=progress)
    if metrics:
        job = replace(job, metrics=dict(metrics))
    return job
