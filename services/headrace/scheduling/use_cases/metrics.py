"""Numbers for operators, named after Kueue's."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from headrace.scheduling.domain.job import Job, JobState
from headrace.telemetry import names

SUBMITTED = Counter(
    names.METRIC_SCHEDULING_SUBMITTED.removesuffix("_total"), "Jobs queued for the first time.", ["trigger"]
)
ADMITTED = Counter(
    names.METRIC_SCHEDULING_ADMITTED.removesuffix("_total"), "Assignments of a job to a node.", []
)
EVICTED = Counter(
    names.METRIC_SCHEDULING_EVICTED.removesuffix("_total"), "Jobs queued again, by reason.", ["reason"]
)
FINISHED = Counter(
    names.METRIC_SCHEDULING_FINISHED.removesuffix("_total"), "Jobs ended, by state.", ["state"]
)
WAIT_SECONDS = Histogram(
    names.METRIC_SCHEDULING_WAIT,
    "Time in the queue until a node was chosen.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43200),
)
ATTEMPT_SECONDS = Histogram(
    names.METRIC_SCHEDULING_ATTEMPT,
    "Time of one round of decisions: load, decide, apply.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
PENDING = Gauge(names.METRIC_SCHEDULING_PENDING, "Jobs that wait for a node.")
ACTIVE = Gauge(names.METRIC_SCHEDULING_ACTIVE, "Jobs that hold room on a node.")
NODES = Gauge(names.METRIC_SCHEDULING_NODES, "Nodes, by readiness.", ["ready"])
LEADER = Gauge(names.METRIC_SCHEDULING_LEADER, "1 where this instance decides.")


def observe_change(before: Job, after: Job) -> None:
    """Count a committed change of a job's state."""
    if after.state is before.state and after.attempt == before.attempt:
        return
    if after.state is JobState.PLACED:
        ADMITTED.inc()
    elif after.state is JobState.QUEUED:
        EVICTED.labels(after.reason).inc()
    elif after.state.ended:
        FINISHED.labels(after.state.value).inc()
