"""What holds when runs, nodes and scheduling itself fail."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.scheduling import LEASE_SECONDS, Process, Scheduling, Stub, stub_of
from tests.support.waiting import eventually

from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.rpc.convert import to_duration

pytestmark = pytest.mark.broker


async def submit(stub: Stub, scheduling: Scheduling) -> pb.Job:
    return await stub.SubmitJob(pb.SubmitJobRequest(pipeline=scheduling.pipeline))


async def reaches(stub: Stub, job: str, state: str) -> pb.Job:
    async def ask() -> pb.Job:
        return await stub.GetJob(pb.GetJobRequest(id=job))

    wanted = pb.JobState.Value(f"JOB_STATE_{state}")
    return await eventually(ask, lambda job: job.state == wanted)


async def test_a_lost_nodes_job_continues_elsewhere(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    first = scheduling.attach(service, "node-a")
    job = await submit(stub, scheduling)
    await first.wants(job.id)
    first.set(job.id, 1, "RUNNING")
    await reaches(stub, job.id, "RUNNING")
    first.fall_silent()
    second = scheduling.attach(service, "node-b")
    task = await second.wants(job.id, attempt=2)
    assert task.attempt == 2
    placed = await reaches(stub, job.id, "PLACED")
    assert (placed.node, placed.attempt, placed.failures) == ("node-b", 2, 0)
    nodes = (await stub.ListNodes(pb.ListNodesRequest())).nodes
    assert [(node.name, node.ready) for node in nodes] == [("node-a", False), ("node-b", True)]
    await first.wants_nothing()


async def test_a_failed_run_is_repeated_as_often_as_allowed(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub, max_retries=1)
    node = scheduling.attach(service)
    job = await submit(stub, scheduling)
    await node.wants(job.id)
    node.set(job.id, 1, "FAILED", reason="RUN_FAILED", message="exit code 1: boom")
    await node.wants(job.id, attempt=2)
    node.set(job.id, 2, "FAILED", reason="RUN_FAILED", message="exit code 1: boom")
    failed = await reaches(stub, job.id, "FAILED")
    assert (failed.reason, failed.failures, failed.attempt) == ("RUN_FAILED", 2, 2)
    assert "boom" in failed.message
    await node.wants_nothing()


async def test_a_queued_job_is_cancelled_at_once(scheduling: Scheduling, stub: Stub) -> None:
    await scheduling.apply(stub)
    job = await submit(stub, scheduling)
    cancelled = await stub.CancelJob(pb.CancelJobRequest(id=job.id))
    assert cancelled.state == pb.JOB_STATE_CANCELLED
    assert await stub.CancelJob(pb.CancelJobRequest(id=job.id)) == cancelled
    events = await scheduling.job_events(lambda seen: len(seen) >= 2)
    assert [event.state for event in events] == [pb.JOB_STATE_QUEUED, pb.JOB_STATE_CANCELLED]


async def test_a_running_job_is_cancelled_once_its_node_stopped_it(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    node = scheduling.attach(service)
    job = await submit(stub, scheduling)
    await node.wants(job.id)
    node.set(job.id, 1, "RUNNING")
    await reaches(stub, job.id, "RUNNING")
    assert (await stub.CancelJob(pb.CancelJobRequest(id=job.id))).state == pb.JOB_STATE_CANCELLING
    await node.wants_nothing()
    # It takes room until it is gone.
    waiting = await submit(stub, scheduling)
    assert (await stub.WhyPending(pb.WhyPendingRequest(id=waiting.id))).nodes[0].verdict == "BUSY"
    node.set(job.id, 1, "STOPPED")
    assert (await reaches(stub, job.id, "CANCELLED")).message == "cancelled"
    await node.wants(waiting.id)


async def test_a_run_past_its_deadline_is_ended_even_if_its_node_does_not(scheduling: Scheduling) -> None:
    process = await scheduling.start_ready(HEADRACE_SCHEDULING_DEADLINE_MARGIN_SECONDS="0.1")
    async with stub_of(process) as stub:
        await scheduling.apply(stub, deadline=to_duration(timedelta(seconds=1)))
        node = scheduling.attach(process)
        job = await submit(stub, scheduling)
        await node.wants(job.id)
        node.set(job.id, 1, "RUNNING")
        await reaches(stub, job.id, "RUNNING")
        failed = await reaches(stub, job.id, "FAILED")
        assert failed.reason == "DEADLINE_EXCEEDED"
        # The run still holds its room until the node has stopped it.
        waiting = await submit(stub, scheduling)
        assert (await stub.WhyPending(pb.WhyPendingRequest(id=waiting.id))).nodes[0].verdict == "BUSY"
        node.drop(job.id)
        await node.wants(waiting.id)


async def test_an_attempt_that_its_node_never_starts_is_ended_and_its_room_is_free(
    scheduling: Scheduling,
) -> None:
    process = await scheduling.start_ready(HEADRACE_SCHEDULING_DEADLINE_MARGIN_SECONDS="0.1")
    async with stub_of(process) as stub:
        await scheduling.apply(stub, deadline=to_duration(timedelta(seconds=0.5)))
        node = scheduling.attach(process)
        job = await submit(stub, scheduling)
        failed = await reaches(stub, job.id, "FAILED")
        assert failed.reason == "DEADLINE_EXCEEDED"
        assert "node-a did not start the attempt within its deadline of 0.5 s" in failed.message
        await node.wants_nothing()


async def test_of_several_attempts_that_a_node_reports_the_current_one_counts(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub, max_retries=1)
    node = scheduling.attach(service)
    job = await submit(stub, scheduling)
    await node.wants(job.id)
    node.set(job.id, 1, "FAILED")
    await node.wants(job.id, attempt=2)
    # As after an agent's restart: what it knows of the job, newest first.
    earlier = node.tasks.pop(job.id)
    node.set(job.id, 2, "SUCCEEDED", model_version=1)
    node.tasks["an earlier attempt"] = earlier
    done = await reaches(stub, job.id, "SUCCEEDED")
    assert (done.attempt, done.failures) == (2, 1)


async def test_a_later_stream_of_a_node_replaces_the_earlier_one(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    first = scheduling.attach(service, "node-a")
    await eventually(lambda: asyncio.sleep(0, first.received), bool)
    second = scheduling.attach(service, "node-a")
    await eventually(lambda: asyncio.sleep(0, first.error), lambda error: error is not None)
    assert first.error is not None
    assert first.error.reason == "NODE_REPLACED"
    job = await submit(stub, scheduling)
    await second.wants(job.id)
    assert second.error is None


async def test_a_restart_of_scheduling_disturbs_no_run(scheduling: Scheduling, service: Process) -> None:
    async with stub_of(service) as stub:
        await scheduling.apply(stub)
        node = scheduling.attach(service)
        job = await submit(stub, scheduling)
        await node.wants(job.id)
        node.set(job.id, 1, "RUNNING")
        await reaches(stub, job.id, "RUNNING")
    await service.kill()
    # Longer than the lease: nobody could renew it.
    await asyncio.sleep(LEASE_SECONDS * 1.5)
    restarted = await scheduling.restart(service)
    async with stub_of(restarted) as stub:
        node.set(job.id, 1, "SUCCEEDED", model_version=1)
        done = await reaches(stub, job.id, "SUCCEEDED")
        assert (done.attempt, done.node) == (1, "node-a")


@pytest.mark.kill
@pytest.mark.parametrize(
    "fault",
    [
        "scheduling.after-job-commit",
        "scheduling.after-placement-commit",
        "outbox.before-publish",
        "outbox.after-publish",
    ],
)
async def test_killed_at_its_worst_moments_it_loses_and_doubles_nothing(
    scheduling: Scheduling, tmp_path: Path, fault: str
) -> None:
    async with stub_of(await scheduling.start_ready()) as stub:
        await scheduling.apply(stub)
    await scheduling.processes[0].stop()

    once = {"HEADRACE_FAULT": fault, "HEADRACE_FAULT_ONCE": str(tmp_path / "died")}
    dying = await scheduling.start_ready(**once)
    node = scheduling.attach(dying)
    await scheduling.commit_version(1)
    assert await dying.ended() == -9
    restarted = await scheduling.restart(dying, **once)
    async with stub_of(restarted) as stub:

        async def jobs() -> list[pb.Job]:
            return list((await stub.ListJobs(pb.ListJobsRequest(pipeline=scheduling.pipeline))).jobs)

        job = (await eventually(jobs, bool))[0]
        await node.wants(job.id)
        node.set(job.id, 1, "RUNNING")
        await reaches(stub, job.id, "RUNNING")
        node.set(job.id, 1, "SUCCEEDED", model_version=1)
        await reaches(stub, job.id, "SUCCEEDED")
        events = await scheduling.job_events(lambda seen: len(seen) >= 4)
        assert [event.state for event in events] == [
            pb.JOB_STATE_QUEUED,
            pb.JOB_STATE_PLACED,
            pb.JOB_STATE_RUNNING,
            pb.JOB_STATE_SUCCEEDED,
        ]
        assert await scheduling.count_jobs() == 1


async def test_of_two_instances_one_decides_and_the_other_takes_over(scheduling: Scheduling) -> None:
    first, second = await asyncio.gather(scheduling.start_ready(), scheduling.start_ready())

    async def leaders() -> list[float]:
        return [await process.metric("headrace_scheduling_leader") for process in (first, second)]

    leading = await eventually(leaders, lambda leading: sum(leading) == 1)
    leader, other = (first, second) if leading[0] else (second, first)
    # The node's stream and the client are at the instance that does not decide.
    node = scheduling.attach(other)
    async with stub_of(other) as stub:
        await scheduling.apply(stub)
        job = await submit(stub, scheduling)
        await node.wants(job.id)
        node.set(job.id, 1, "RUNNING")
        await reaches(stub, job.id, "RUNNING")
        await leader.kill()
        await eventually(lambda: other.metric("headrace_scheduling_leader"), bool)
        node.set(job.id, 1, "SUCCEEDED", model_version=1)
        done = await reaches(stub, job.id, "SUCCEEDED")
        assert done.attempt == 1
        following = await submit(stub, scheduling)
        await node.wants(following.id)


async def test_a_stop_is_clean_with_a_node_attached(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    node = scheduling.attach(service)
    await eventually(lambda: asyncio.sleep(0, node.received), bool)
    assert await service.stop() == 0
