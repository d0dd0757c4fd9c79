"""What clients ask of scheduling, and the errors that they get."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from tests.support.scheduling import GIBIBYTE, Process, Scheduling, Stub, a_spec
from tests.support.waiting import PATIENCE_SECONDS, eventually

from headrace import errors
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.errors import FieldViolation, HeadraceError
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker


async def refused(stub: Stub, pipeline: str, spec: pb.PipelineSpec) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await stub.ApplyPipeline(pb.ApplyPipelineRequest(name=pipeline, spec=spec))
    return caught.value


async def submit(stub: Stub, scheduling: Scheduling, **fields: Any) -> pb.Job:
    return await stub.SubmitJob(pb.SubmitJobRequest(pipeline=scheduling.pipeline, **fields))


async def why(stub: Stub, job: pb.Job) -> pb.WhyPendingResponse:
    return await stub.WhyPending(pb.WhyPendingRequest(id=job.id))


async def test_a_pipeline_is_applied_everywhere_once(scheduling: Scheduling, stub: Stub) -> None:
    applied = await scheduling.apply(stub)
    again = await scheduling.apply(stub)
    assert (applied.generation, again.generation) == (1, 1)
    assert applied.update_time == again.update_time
    peers = scheduling.peers
    assert peers.ingestion.applied[0].name == scheduling.pipeline
    assert peers.ingestion.applied[0].cut.rows == 10
    assert peers.ingestion.applied[0].rejects.hold_cut
    assert peers.ingestion.applied[0].retention.versions.seconds == 86_400
    assert peers.ingestion.applied[0].split.train == 0.7
    assert peers.registry.applied[0].gates[0].metric == "accuracy"
    assert (peers.inference.applied[0].name, peers.inference.applied[0].model) == (
        "live",
        scheduling.pipeline,
    )
    changed = await scheduling.apply(stub, priority=5)
    assert (changed.generation, changed.spec.priority) == (2, 5)
    assert await stub.GetPipeline(pb.GetPipelineRequest(name=scheduling.pipeline)) == changed
    listed = (await stub.ListPipelines(pb.ListPipelinesRequest())).pipelines
    assert [pipeline.name for pipeline in listed] == [scheduling.pipeline]


async def test_what_a_pipeline_leaves_out_has_a_default(scheduling: Scheduling, stub: Stub) -> None:
    spec = a_spec()
    spec.deployment.ClearField("rollout")
    spec.ClearField("resources")
    await stub.ApplyPipeline(pb.ApplyPipelineRequest(name=scheduling.pipeline, spec=spec))
    assert list(scheduling.peers.inference.applied[0].rollout.steps) == [100]
    job = await submit(stub, scheduling)
    assert (job.resources.cpu, job.resources.memory_bytes) == (1, GIBIBYTE)
    assert job.state == pb.JOB_STATE_QUEUED


async def test_a_bad_pipeline_is_refused_before_anything_is_applied(
    scheduling: Scheduling, stub: Stub
) -> None:
    unknown_recipe = a_spec()
    unknown_recipe.training.recipe = "mpl"
    error = await refused(stub, scheduling.pipeline, unknown_recipe)
    assert (error.reason, error.fields[0].field) == ("UNKNOWN_RECIPE", "spec.training.recipe")
    assert "mlp" in error.message

    unknown_parameter = a_spec()
    unknown_parameter.training.parameters["hiden"] = 3
    error = await refused(stub, scheduling.pipeline, unknown_parameter)
    assert (error.reason, error.fields[0].field) == (
        "UNKNOWN_PARAMETER",
        "spec.training.parameters.hiden",
    )
    assert "hidden" in error.fields[0].description

    bad_split = a_spec()
    bad_split.training.split.train = 0.9
    error = await refused(stub, scheduling.pipeline, bad_split)
    assert (error.reason, error.fields[0].field) == ("INVALID_PIPELINE", "spec.training.split")

    assert not scheduling.peers.ingestion.applied
    with pytest.raises(errors.NotFound) as missing:
        await stub.GetPipeline(pb.GetPipelineRequest(name=scheduling.pipeline))
    assert missing.value.reason == "PIPELINE_NOT_FOUND"


async def test_another_services_refusal_names_the_users_own_field(scheduling: Scheduling, stub: Stub) -> None:
    scheduling.peers.ingestion.refusal = errors.InvalidArgument(
        "INVALID_SCHEMA",
        "schema.features.mean_radius.min: is above max",
        fields=[FieldViolation("schema.features.mean_radius.min", "is above max")],
    )
    error = await refused(stub, scheduling.pipeline, a_spec())
    assert error.reason == "INVALID_SCHEMA"
    assert error.fields[0].field == "spec.dataset.schema.features.mean_radius.min"
    assert not scheduling.peers.registry.applied


async def test_a_service_that_does_not_answer_is_named(scheduling: Scheduling) -> None:
    process = await scheduling.start_ready(HEADRACE_SCHEDULING_REGISTRY_TARGET="127.0.0.1:1")
    async with channel(process.target) as connection:
        stub = scheduling_pb2_grpc.SchedulingServiceStub(connection)
        error = await refused(stub, scheduling.pipeline, a_spec())
        assert isinstance(error, errors.Unavailable)
        assert error.metadata["service"] == "registry"
        assert "registry service at 127.0.0.1:1 does not answer" in error.message


async def test_the_same_request_is_the_same_job(scheduling: Scheduling, stub: Stub) -> None:
    await scheduling.apply(stub)
    request = pb.SubmitJobRequest(pipeline=scheduling.pipeline, request_id=str(uuid.uuid4()))
    jobs = await asyncio.gather(*(stub.SubmitJob(request) for _ in range(5)))
    assert len({job.id for job in jobs}) == 1
    assert await scheduling.count_jobs() == 1
    with pytest.raises(errors.AlreadyExists) as caught:
        await submit(stub, scheduling, request_id=request.request_id, dataset_version=1)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_what_does_not_exist_is_not_found(scheduling: Scheduling, stub: Stub) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await stub.SubmitJob(pb.SubmitJobRequest(pipeline="nobody"))
    assert caught.value.reason == "PIPELINE_NOT_FOUND"
    await scheduling.apply(stub)
    with pytest.raises(errors.NotFound) as caught:
        await submit(stub, scheduling, dataset_version=99)
    assert caught.value.reason == "DATASET_VERSION_NOT_FOUND"
    for call in (stub.GetJob(pb.GetJobRequest(id=str(uuid.uuid4()))),):
        with pytest.raises(errors.NotFound) as caught:
            await call
        assert caught.value.reason == "JOB_NOT_FOUND"
    with pytest.raises(errors.InvalidArgument):
        await stub.GetJob(pb.GetJobRequest(id="no-uuid"))


async def test_jobs_come_in_pages_newest_first(scheduling: Scheduling, stub: Stub) -> None:
    await scheduling.apply(stub)
    made = [(await submit(stub, scheduling)).id for _ in range(5)]
    listed: list[str] = []
    token = ""
    while True:
        page = await stub.ListJobs(
            pb.ListJobsRequest(pipeline=scheduling.pipeline, page_size=2, page_token=token)
        )
        listed += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::-1]
    with pytest.raises(errors.InvalidArgument) as caught:
        await stub.ListJobs(pb.ListJobsRequest(page_token="nonsense"))
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


async def test_watching_shows_every_state_until_the_end(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    job = await submit(stub, scheduling)
    seen: list[int] = []

    async def watch() -> None:
        async for change in stub.WatchJob(pb.WatchJobRequest(id=job.id)):
            if not seen or seen[-1] != change.state:
                seen.append(change.state)

    watching = asyncio.create_task(watch())
    await eventually(lambda: asyncio.sleep(0, len(seen)), lambda count: count == 1)
    node = scheduling.attach(service)
    await node.wants(job.id)
    await eventually(lambda: asyncio.sleep(0, list(seen)), lambda seen: pb.JOB_STATE_PLACED in seen)
    node.set(job.id, 1, "RUNNING")
    await eventually(lambda: asyncio.sleep(0, list(seen)), lambda seen: pb.JOB_STATE_RUNNING in seen)
    node.set(job.id, 1, "SUCCEEDED", model_version=1)
    await asyncio.wait_for(watching, PATIENCE_SECONDS)
    assert seen == [
        pb.JOB_STATE_QUEUED,
        pb.JOB_STATE_PLACED,
        pb.JOB_STATE_RUNNING,
        pb.JOB_STATE_SUCCEEDED,
    ]


async def test_why_a_job_waits(scheduling: Scheduling, service: Process, stub: Stub) -> None:
    await scheduling.apply(stub)
    small = await submit(stub, scheduling)
    assert (await why(stub, small)).reason == "NO_NODES"

    await scheduling.apply(stub, resources=pb.Resources(cpu=4, memory_bytes=GIBIBYTE))
    large = await submit(stub, scheduling)
    node = scheduling.attach(service, cpu=2)
    await node.wants(small.id)
    answer = await why(stub, large)
    assert answer.reason == "NEVER_FITS"
    assert "the largest node, node-a, has 2 cores" in answer.message
    assert answer.nodes[0].verdict == "TOO_SMALL"

    await scheduling.apply(stub, resources=pb.Resources(cpu=2, memory_bytes=GIBIBYTE))
    first, second = await submit(stub, scheduling), await submit(stub, scheduling)
    answer = await why(stub, first)
    assert (answer.reason, answer.nodes[0].verdict) == ("WAITING_FOR_CAPACITY", "BUSY")
    assert answer.nodes[0].detail == "needs 2 cores, 1 free of 2"
    answer = await why(stub, second)
    assert (answer.reason, answer.ahead_count) == ("BEHIND_OTHERS", 2)
    assert list(answer.ahead) == [large.id, first.id]
    assert (await why(stub, small)).reason == "NOT_PENDING"

    listed = (await stub.ListNodes(pb.ListNodesRequest())).nodes
    assert [(one.name, one.ready, list(one.jobs)) for one in listed] == [("node-a", True, [small.id])]
    assert (listed[0].capacity.cpu, listed[0].allocated.cpu) == (2, 1)


async def test_a_job_of_higher_priority_goes_first(
    scheduling: Scheduling, service: Process, stub: Stub
) -> None:
    await scheduling.apply(stub)
    low = await submit(stub, scheduling)
    await scheduling.apply(stub, priority=9)
    high = await submit(stub, scheduling)
    node = scheduling.attach(service)
    await node.wants(high.id)
    assert (await stub.GetJob(pb.GetJobRequest(id=low.id))).state == pb.JOB_STATE_QUEUED
    node.set(high.id, 1, "SUCCEEDED", model_version=1)
    await node.wants(low.id)
