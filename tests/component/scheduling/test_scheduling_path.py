"""From a dataset version to an ended job, on real parts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.support.scheduling import TRACEPARENT, Process, Scheduling, Stub, a_spec
from tests.support.waiting import eventually

from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.errors import FailedPrecondition, NotFound
from headrace.rpc.convert import to_duration

pytestmark = pytest.mark.broker


async def first_job(stub: Stub, pipeline: str) -> pb.Job:
    async def ask() -> list[pb.Job]:
        return list((await stub.ListJobs(pb.ListJobsRequest(pipeline=pipeline))).jobs)

    return (await eventually(ask, bool))[0]


async def reaches(stub: Stub, job: str, state: str) -> pb.Job:
    async def ask() -> pb.Job:
        return await stub.GetJob(pb.GetJobRequest(id=job))

    wanted = pb.JobState.Value(f"JOB_STATE_{state}")
    return await eventually(ask, lambda job: job.state == wanted)


async def test_a_dataset_version_becomes_a_model(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub, deadline=to_duration(timedelta(minutes=10)))
    node = scheduling.attach(service)
    await scheduling.commit_version(1)
    job = await first_job(stub, scheduling.pipeline)
    task = await node.wants(job.id)

    assert task.pipeline == scheduling.pipeline
    assert task.schema.label.name == "malignant"
    assert task.dataset_version.row_count == 10
    assert task.training.parameters["epochs"] == 5
    assert task.resources.cpu == 1
    assert task.deadline.seconds == 600
    trace = TRACEPARENT.split("-")[1]
    assert job.traceparent.split("-")[1] == trace
    assert task.traceparent.split("-")[1] == trace

    node.set(job.id, 1, "RUNNING", progress=pb.Progress(epoch=2, epochs=5, loss=0.5))
    running = await reaches(stub, job.id, "RUNNING")
    assert running.node == "node-a"
    node.set(job.id, 1, "SUCCEEDED", model_version=3, metrics={"test/accuracy": 0.97})
    done = await reaches(stub, job.id, "SUCCEEDED")
    assert (done.model_version, dict(done.metrics)) == (3, {"test/accuracy": 0.97})
    assert done.start_time.seconds <= done.end_time.seconds
    await node.wants_nothing()

    events = await scheduling.job_events(lambda seen: len(seen) >= 4)
    assert [event.state for event in events] == [
        pb.JOB_STATE_QUEUED,
        pb.JOB_STATE_PLACED,
        pb.JOB_STATE_RUNNING,
        pb.JOB_STATE_SUCCEEDED,
    ]
    assert events[-1].training.recipe == "mlp"


async def test_an_event_that_comes_twice_makes_one_job(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    await scheduling.commit_version(1)
    await scheduling.commit_version(1)
    # The same version told by another event, as after a producer's retry without an outbox.
    await scheduling.commit_version(1, event_id="another")
    await scheduling.commit_version(2)

    async def count() -> int:
        return await scheduling.count_jobs()

    # Events of one key are handled in order: when the last one has its job, all were seen.
    await eventually(count, lambda count: count >= 2)
    jobs = (await stub.ListJobs(pb.ListJobsRequest(pipeline=scheduling.pipeline))).jobs
    assert sorted(job.dataset_version for job in jobs) == [1, 2]


async def test_a_version_that_was_cut_before_its_pipeline_was_stored_is_trained_once(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    # Its event comes when nobody asks for it.
    await scheduling.commit_version(2)
    await scheduling.handled(f"{scheduling.pipeline}-2")
    await scheduling.apply_late(stub)
    job = await first_job(stub, scheduling.pipeline)
    assert job.dataset_version == 2
    assert job.traceparent.split("-")[1] == TRACEPARENT.split("-")[1]
    # Neither another application nor the same version told by another event makes another job.
    await scheduling.apply_late(stub, priority=1)
    await scheduling.commit_version(2, event_id=f"{scheduling.pipeline}-again")
    await scheduling.handled(f"{scheduling.pipeline}-again")
    assert await scheduling.count_jobs() == 1


async def test_a_pipeline_that_does_not_ask_for_it_is_not_retrained(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    spec_without = a_spec()
    spec_without.retrain_on_dataset_version = False
    await stub.ApplyPipeline(pb.ApplyPipelineRequest(name=scheduling.pipeline, spec=spec_without))
    await scheduling.commit_version(1, event_id=f"{scheduling.pipeline}-unwanted")
    await scheduling.handled(f"{scheduling.pipeline}-unwanted")
    assert await scheduling.count_jobs() == 0
    submitted = await stub.SubmitJob(pb.SubmitJobRequest(pipeline=scheduling.pipeline))
    assert submitted.dataset_version == 2
    assert await scheduling.count_jobs() == 1


async def test_a_blocked_version_is_not_trained_on_and_its_job_says_why(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    node = scheduling.attach(service)
    await scheduling.commit_version(1, blocked=True)
    refused = await first_job(stub, scheduling.pipeline)
    assert (refused.state, refused.reason) == (pb.JOB_STATE_FAILED, "DATASET_VERSION_BLOCKED")
    assert refused.message == ("dataset version 1 is blocked by its quality rules: y: half of it is missing")
    assert refused.HasField("end_time")
    why = await stub.WhyPending(pb.WhyPendingRequest(id=refused.id))
    assert (why.reason, why.message) == ("DATASET_VERSION_BLOCKED", refused.message)
    # The next version that is good is trained on; had the first one been wanted, it would go first.
    await scheduling.commit_version(2)

    async def count() -> int:
        return await scheduling.count_jobs()

    await eventually(count, lambda count: count == 2)
    trained = await first_job(stub, scheduling.pipeline)
    assert trained.dataset_version == 2
    await node.wants(trained.id)
    # By job: events are in order within a job only, where the topic has several partitions.
    events = await scheduling.job_events(
        lambda seen: {refused.id, trained.id} <= {event.id for event in seen}
    )
    assert next(event for event in events if event.id == refused.id).reason == "DATASET_VERSION_BLOCKED"


async def test_nobody_can_submit_a_job_on_a_blocked_version(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    scheduling.peers.ingestion.blocked_versions = {1, 2}
    # Applied after the version was cut: the job that would train on it says why it does not.
    await scheduling.apply_late(stub)
    refused = await first_job(stub, scheduling.pipeline)
    assert (refused.state, refused.dataset_version) == (pb.JOB_STATE_FAILED, 2)
    for version in (0, 1, 2):
        with pytest.raises(FailedPrecondition) as caught:
            await stub.SubmitJob(pb.SubmitJobRequest(pipeline=scheduling.pipeline, dataset_version=version))
        assert caught.value.reason == "DATASET_VERSION_BLOCKED"
        assert "y: half of it is missing" in caught.value.message
    assert await scheduling.count_jobs() == 1


async def test_nobody_can_submit_a_job_on_a_version_that_retention_has_forgotten(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    spec_without = a_spec()
    spec_without.retrain_on_dataset_version = False
    await stub.ApplyPipeline(pb.ApplyPipelineRequest(name=scheduling.pipeline, spec=spec_without))
    scheduling.peers.ingestion.expired_versions = {1}
    with pytest.raises(NotFound, match="version 1 was forgotten") as caught:
        await stub.SubmitJob(pb.SubmitJobRequest(pipeline=scheduling.pipeline, dataset_version=1))
    assert caught.value.reason == "VERSION_EXPIRED"
    assert await scheduling.count_jobs() == 0


async def test_runs_events_tell_progress_and_never_a_state(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    node = scheduling.attach(service)
    job = await stub.SubmitJob(pb.SubmitJobRequest(pipeline=scheduling.pipeline))
    await node.wants(job.id)
    node.set(job.id, 1, "RUNNING")
    await reaches(stub, job.id, "RUNNING")
    run = {"id": f"{job.id}-1", "job": job.id, "attempt": 1}
    await scheduling.run_changed(**run, epoch=4, epochs=5, loss=0.25, state="RUN_STATE_FAILED")

    async def epoch() -> int:
        return (await stub.GetJob(pb.GetJobRequest(id=job.id))).progress.epoch

    await eventually(epoch, lambda epoch: epoch == 4)
    assert (await stub.GetJob(pb.GetJobRequest(id=job.id))).state == pb.JOB_STATE_RUNNING
    # A late event of an earlier epoch, then one that is handled after it.
    await scheduling.run_changed(**run, epoch=1, epochs=5, loss=0.9)
    await scheduling.run_changed(**run, epoch=4, epochs=5, loss=0.25, metrics={"validation/loss": 0.3})

    async def metrics() -> dict[str, float]:
        return dict((await stub.GetJob(pb.GetJobRequest(id=job.id))).metrics)

    await eventually(metrics, lambda metrics: "validation/loss" in metrics)
    assert await epoch() == 4
