from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from headrace.scheduling.domain import job as jobs
from headrace.scheduling.domain.job import (
    TRANSITIONS,
    IllegalTransitionError,
    Job,
    JobState,
    Progress,
    Trigger,
)
from headrace.scheduling.domain.node import TaskPhase, TaskReport, observe, with_progress
from headrace.scheduling.domain.resources import Resources

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


def a_job(**changes: object) -> Job:
    values: dict[str, object] = {
        "id": "job-1",
        "pipeline": "breast-cancer",
        "dataset_version": 1,
        "resources": Resources(0, 1000, 1 << 30),
        "create_time": NOW,
        "queue_time": NOW,
    }
    return Job(**{**values, **changes})  # type: ignore[arg-type]


def placed(**changes: object) -> Job:
    return jobs.place(a_job(**changes), "node-a", NOW)


def running(**changes: object) -> Job:
    return jobs.start(placed(**changes), NOW)


def report(phase: TaskPhase, attempt: int = 1, **changes: object) -> TaskReport:
    return TaskReport("job-1", attempt, phase, **changes)  # type: ignore[arg-type]


def test_an_ended_job_takes_no_trigger() -> None:
    for state, trigger in itertools.product(JobState, Trigger):
        if state.ended:
            assert (state, trigger) not in TRANSITIONS


def test_every_state_is_reachable_and_every_living_one_can_end() -> None:
    reached = {JobState.QUEUED}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in reached} - reached:
        reached |= more
    assert reached == set(JobState)
    can_end = {state for state in JobState if state.ended}
    while more := {before for (before, _), after in TRANSITIONS.items() if after in can_end} - can_end:
        can_end |= more
    assert can_end == set(JobState)


def test_what_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(IllegalTransitionError, match="a QUEUED job cannot take START"):
        jobs.start(a_job(), NOW)


def test_a_job_on_a_blocked_version_has_failed_before_it_began() -> None:
    refused = jobs.refuse(a_job(), "dataset version 1 is blocked", NOW)
    assert (refused.state, refused.reason) == (JobState.FAILED, "DATASET_VERSION_BLOCKED")
    assert (refused.message, refused.end_time, refused.node) == ("dataset version 1 is blocked", NOW, "")
    with pytest.raises(IllegalTransitionError):
        jobs.refuse(placed(), "too late", NOW)


def test_the_happy_path() -> None:
    job = a_job(traceparent="00-1-2-01")
    job = jobs.place(job, "node-a", NOW)
    assert (job.state, job.node, job.placement_traceparent) == (JobState.PLACED, "node-a", "00-1-2-01")
    job = observe(job, report(TaskPhase.STARTING), NOW)
    assert job.state is JobState.PLACED
    job = observe(job, report(TaskPhase.RUNNING, progress=Progress(3, 60, 0.5, timedelta(seconds=9))), NOW)
    assert (job.state, job.start_time) == (JobState.RUNNING, NOW)
    assert job.progress is not None
    assert job.progress.epoch == 3
    job = observe(job, report(TaskPhase.SUCCEEDED, model_version=4, metrics={"test/accuracy": 0.97}), LATER)
    assert (job.state, job.model_version, job.end_time) == (JobState.SUCCEEDED, 4, LATER)
    assert job.metrics == {"test/accuracy": 0.97}
    assert job.version == 4


def test_a_run_that_ended_between_two_reports_is_ended() -> None:
    job = observe(placed(), report(TaskPhase.SUCCEEDED, model_version=1), LATER)
    assert (job.state, job.start_time) == (JobState.SUCCEEDED, LATER)


def test_a_failed_attempt_is_repeated_as_often_as_allowed() -> None:
    job = running(max_retries=1)
    job = observe(job, report(TaskPhase.FAILED, reason="RUN_FAILED", message="exit code 1"), LATER)
    assert (job.state, job.attempt, job.failures, job.node) == (JobState.QUEUED, 2, 1, "")
    assert "retry 1 of 1: exit code 1" in job.message
    job = jobs.start(jobs.place(job, "node-b", LATER), LATER)
    job = observe(job, report(TaskPhase.FAILED, 2, reason="RUN_FAILED", message="exit code 1"), LATER)
    assert (job.state, job.reason, job.failures) == (JobState.FAILED, "RUN_FAILED", 2)
    assert job.message == "attempt 2, the last one: exit code 1"
    assert job.start_time == NOW


@pytest.mark.parametrize("reason", ["DIVERGED", "MODEL_TOO_LARGE", "OUT_OF_MEMORY", "UNUSABLE_DATASET"])
def test_what_the_next_attempt_would_meet_again_is_not_tried_again(reason: str) -> None:
    job = observe(running(max_retries=3), report(TaskPhase.FAILED, reason=reason, message="m"), LATER)
    assert (job.state, job.reason, job.attempt) == (JobState.FAILED, reason, 1)


def test_a_lost_node_is_no_failure() -> None:
    job = jobs.lose(running(), LATER, reason="NODE_LOST", message="node-a was lost")
    assert (job.state, job.attempt, job.failures, job.reason) == (JobState.QUEUED, 2, 0, "NODE_LOST")
    assert job.create_time == NOW


def test_a_node_that_stops_a_wanted_run_gives_it_back() -> None:
    job = observe(running(), report(TaskPhase.STOPPED), LATER)
    assert (job.state, job.attempt, job.failures) == (JobState.QUEUED, 2, 0)


def test_a_report_of_another_attempt_says_nothing() -> None:
    job = placed(attempt=2)
    assert observe(job, report(TaskPhase.FAILED, 1), NOW) is job
    assert observe(job, None, NOW) is job


def test_cancelling_a_queued_job_ends_it_at_once() -> None:
    job = jobs.cancel(a_job(), LATER)
    assert (job.state, job.end_time) == (JobState.CANCELLED, LATER)
    assert jobs.cancel(job, LATER) is job


@pytest.mark.parametrize(
    "seen", [None, report(TaskPhase.STOPPED), report(TaskPhase.FAILED), report(TaskPhase.RUNNING, 7)]
)
def test_cancelling_a_running_job_ends_once_its_node_stopped_it(seen: TaskReport | None) -> None:
    job = jobs.cancel(running(), NOW)
    assert job.state is JobState.CANCELLING
    assert observe(job, report(TaskPhase.RUNNING), NOW).state is JobState.CANCELLING
    assert observe(job, seen, LATER).state is JobState.CANCELLED


def test_a_run_that_succeeded_before_it_was_stopped_has_succeeded() -> None:
    job = observe(jobs.cancel(running(), NOW), report(TaskPhase.SUCCEEDED, model_version=2), LATER)
    assert (job.state, job.model_version) == (JobState.SUCCEEDED, 2)


def test_a_cancelled_job_on_a_lost_node_is_cancelled() -> None:
    job = jobs.lose(jobs.cancel(running(), NOW), LATER, reason="NODE_LOST", message="node-a was lost")
    assert (job.state, job.end_time) == (JobState.CANCELLED, LATER)


def test_progress_never_goes_back() -> None:
    job = with_progress(running(), Progress(5, 10, 0.1, timedelta(0)), {})
    assert with_progress(job, Progress(4, 10, 0.2, timedelta(0)), {}) == job
    assert job.version == running().version
