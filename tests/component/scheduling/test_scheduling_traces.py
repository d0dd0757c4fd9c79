from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.otlp import collecting
from tests.support.proxy import proxied
from tests.support.scheduling import LEASE_SECONDS, TRACEPARENT, Scheduling, stub_of
from tests.support.waiting import eventually

from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.messaging import topics

pytestmark = pytest.mark.broker


async def test_one_trace_leads_from_the_version_to_the_task(scheduling: Scheduling) -> None:
    _, trace, sample, _ = TRACEPARENT.split("-")
    async with collecting() as collector:
        process = await scheduling.start_ready(HEADRACE_OTLP_ENDPOINT=collector.endpoint)
        async with stub_of(process) as stub:
            await scheduling.apply(stub)
            node = scheduling.attach(process)
            await scheduling.commit_version(1)
            await scheduling.job_events(lambda seen: len(seen) >= 2)
            task = await eventually(lambda: _task(node), bool)
            assert task is not None
        assert await process.stop() == 0
        processed = [
            span
            for span in await collector.named(f"process {topics.DATASET_VERSIONS}")
            if span.trace_id == trace
        ]
        [schedule] = await collector.named("schedule job")
        [wait] = await collector.named("wait in queue")
        [place] = await collector.named("place job")
    assert {span.service for span in (schedule, wait, place)} == {"headrace-scheduling"}
    assert {span.trace_id for span in (schedule, wait, place)} == {trace}
    # The topic is shared with other tests: theirs have the same trace.
    assert schedule.parent_id in {span.span_id for span in processed}
    assert {span.parent_id for span in processed} == {sample}
    assert wait.parent_id == place.parent_id == schedule.span_id
    assert task.traceparent == f"00-{trace}-{place.span_id}-01"


async def _task(node: object) -> pb.Task | None:
    desired: list[pb.Task] = node.desired  # type: ignore[attr-defined]
    return desired[0] if desired else None


async def test_while_postgresql_is_away_no_run_is_disturbed_and_no_event_lost(
    scheduling: Scheduling,
) -> None:
    async with proxied(scheduling.dsn) as (proxy, dsn):
        behind = replace(scheduling, dsn=dsn)
        process = await behind.start_ready()
        scheduling.processes, scheduling.background = behind.processes, behind.background
        async with stub_of(process) as stub:
            await behind.apply(stub)
            node = behind.attach(process, cpu=2)
            job = await stub.SubmitJob(pb.SubmitJobRequest(pipeline=behind.pipeline))
            await node.wants(job.id)
            node.set(job.id, 1, "RUNNING")

            async def ask() -> pb.Job:
                return await stub.GetJob(pb.GetJobRequest(id=job.id))

            await eventually(ask, lambda job: job.state == pb.JOB_STATE_RUNNING)
            await proxy.cut()
            await behind.commit_version(7)
            # Longer than a lease: what cannot be written is no silence of the node's.
            with pytest.raises(AssertionError):
                await eventually(lambda: _ended(process), bool, LEASE_SECONDS * 2)
            await proxy.open()
            node.set(job.id, 1, "SUCCEEDED", model_version=1)
            done = await eventually(ask, lambda job: job.state == pb.JOB_STATE_SUCCEEDED)
            assert done.attempt == 1

            async def versions() -> list[int]:
                jobs = (await stub.ListJobs(pb.ListJobsRequest(pipeline=behind.pipeline))).jobs
                return [job.dataset_version for job in jobs]

            assert sorted(await eventually(versions, lambda versions: len(versions) == 2)) == [2, 7]
        assert await process.stop() == 0


async def _ended(process: object) -> bool:
    return process.process.returncode is not None  # type: ignore[attr-defined]
