"""How a deployment is served: changed while it answers, and tuned on a copy that nobody notices."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import tritonclient.grpc.aio as triton
from google.protobuf.duration_pb2 import Duration
from tests.component.inference.conftest import DEADLINE, MakePlane, Plane, ask
from tests.component.inference.test_rollout_operations import command
from tests.support.python_packages import scores_package
from tests.support.torch_models import scores_signature
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.inference.v1 import tuning_pb2, tuning_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import FailedPrecondition, InvalidArgument
from headrace.model_formats import ModelFormat
from headrace.rpc.client import channel


@asynccontextmanager
async def calling(plane: Plane, name: str) -> AsyncIterator[list[str]]:
    """Call all the time; each answer's version, or what a caller saw instead."""
    seen: list[str] = []

    async def call() -> None:
        async with plane.client() as client:
            while True:
                try:
                    seen.append((await ask(client, name)).get_response().model_version)
                except triton.InferenceServerException as error:
                    seen.append(str(error))

    async def answered() -> int:
        return len(seen)

    task = asyncio.create_task(call())
    try:
        await eventually(answered, lambda count: count >= 20)
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def tuning(plane: Plane) -> AsyncIterator[tuning_pb2_grpc.TuningServiceAsyncStub]:
    async with channel(plane.service.target) as opened:
        yield tuning_pb2_grpc.TuningServiceStub(opened)


def wish(name: str, *, seconds: int, **fields: bool) -> tuning_pb2.TuneDeploymentRequest:
    """A target that any machine keeps."""
    return tuning_pb2.TuneDeploymentRequest(
        deployment=name,
        target=Duration(seconds=5),
        max_time=Duration(seconds=seconds),
        max_instances=2,
        **fields,
    )


async def copies(plane: Plane) -> set[str]:
    """Models in Triton, and folders, that are no deployment's."""
    async with triton.InferenceServerClient(f"127.0.0.1:{plane.triton.ports.grpc}") as client:
        index = await client.get_model_repository_index()
    loaded = {model.name for model in index.models if model.state == "READY"}
    folders = {folder.name for folder in (plane.triton.folder.parent / "models").iterdir()}
    return {name for name in loaded | folders if name.startswith("tuning.")}


async def live(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)


async def test_a_live_deployment_is_served_otherwise_and_no_call_fails(plane: Plane, name: str) -> None:
    await live(plane, name)
    batching = scheduling_pb2.Batching(max_batch_size=8, max_queue_delay=Duration(nanos=500_000))
    async with calling(plane, name) as seen:
        applied = await plane.stub.ApplyDeployment(
            api.ApplyDeploymentRequest(name=name, model=name, batching=batching, instances=2)
        )
        assert (applied.batching, applied.instances) == (batching, 2)
        async with triton.InferenceServerClient(f"127.0.0.1:{plane.triton.ports.grpc}") as client:

            async def served() -> tuple[int, int, int]:
                config = (await client.get_model_config(name)).config
                return (
                    config.max_batch_size,
                    config.dynamic_batching.max_queue_delay_microseconds,
                    config.instance_group[0].count,
                )

            await eventually(served, lambda found: found == (8, 500, 2), DEADLINE)
    assert set(seen) == {"1"}
    # What the next apply does not name stays.
    await plane.deploy(name)
    assert (await plane.get(name)).batching == batching
    wrong = api.ApplyDeploymentRequest(
        name=name, model=name, batching=scheduling_pb2.Batching(max_batch_size=4, preferred=[8])
    )
    with pytest.raises(InvalidArgument) as refused:
        await plane.stub.ApplyDeployment(wrong)
    assert refused.value.reason == "INVALID_SERVING"


async def test_a_deployment_is_tuned_on_a_copy_and_served_so(plane: Plane, name: str) -> None:
    await live(plane, name)
    async with tuning(plane) as stub:
        async with calling(plane, name):
            with pytest.raises(FailedPrecondition) as busy:
                [_ async for _ in stub.TuneDeployment(wish(name, seconds=5))]
            assert busy.value.reason == "LIVE_TRAFFIC"
        # Not at once: the log is off the requests' path.
        listed = api.ListPredictionsRequest(deployment=name)
        await eventually(lambda: plane.stub.ListPredictions(listed), lambda found: bool(found.predictions))
        steps = [
            step async for step in stub.TuneDeployment(wish(name, seconds=5, apply=True, beside_traffic=True))
        ]
    start, *measured, last = steps
    assert start.start.version == 1
    assert start.start.requests.startswith("one of the prediction log")
    assert measured
    assert all(step.measurement.answered and not step.measurement.failed for step in measured)
    assert last.proposal.keeps_target
    assert last.proposal.applied == last.proposal.changes
    deployment = await plane.get(name)
    assert (deployment.batching, deployment.instances) == (
        last.proposal.setting.batching,
        last.proposal.setting.instances,
    )
    assert await copies(plane) == set()


async def test_whoever_hangs_up_ends_it_and_another_may_begin(plane: Plane, name: str) -> None:
    await live(plane, name)
    async with tuning(plane) as stub:
        asked = stub.TuneDeployment(wish(name, seconds=300, beside_traffic=True))
        async for step in asked:
            if step.WhichOneof("step") == "measurement":
                break
        with pytest.raises(FailedPrecondition) as busy:
            [_ async for _ in stub.TuneDeployment(wish(name, seconds=5, beside_traffic=True))]
        assert busy.value.reason == "TUNING_IN_PROGRESS"
        asked.cancel()
        await eventually(lambda: copies(plane), lambda found: not found, DEADLINE)


@pytest.mark.kill
async def test_what_a_service_leaves_that_dies_is_removed_by_the_next(
    make_plane: MakePlane, name: str
) -> None:
    plane = await make_plane()
    await live(plane, name)
    async with tuning(plane) as stub:
        async for step in stub.TuneDeployment(wish(name, seconds=300, beside_traffic=True)):
            if step.WhichOneof("step") == "measurement":
                break
        assert await copies(plane) == {f"tuning.{name}"}
        plane.service.kill()
        await plane.service.wait()
    assert await copies(plane) == {f"tuning.{name}"}
    await plane.service.start()
    await eventually(lambda: copies(plane), lambda found: not found, DEADLINE)
    async with plane.client() as client:
        assert (await ask(client, name)).get_response().model_version == "1"


async def test_a_target_that_binds_changes_what_is_proposed_and_the_table_says_what_misses_it(
    plane: Plane, name: str, tmp_path: Path
) -> None:
    # A tenth of a second for a batch, however large it is, and whatever else the machine does.
    model = scores_package(tmp_path / "model", deed="time.sleep(0.1)")
    batching = scheduling_pb2.Batching(max_batch_size=256, max_queue_delay=Duration(nanos=150_000_000))
    applied = api.ApplyDeploymentRequest(name=name, model=name, batching=batching)
    await plane.stub.ApplyDeployment(applied)
    await plane.promote(name, 1, model, signature=scores_signature(), form=ModelFormat.PYTHON)
    await plane.until_live(name, 1)
    # Eight of these fill a batch.
    async with plane.client() as client:
        await ask(client, name, request_id="usual", rows=32)
    await plane.until_logged(name, {"usual"})

    free = await tuned(plane, name, target="5s", seconds=6)
    assert (free["current"].batch, free["current"].keeps) == (256, "yes")
    # Of the current setting few requests wait in vain for more: each takes a quarter of a second.
    bound = await tuned(plane, name, target="170ms", seconds=20)
    assert bound["current"].keeps == "no"
    assert bound["proposed"].keeps == "yes"
    assert bound["proposed"].milliseconds <= 170 < bound["current"].milliseconds
    assert bound["proposed"].batch < free["proposed"].batch == 256


@dataclass(frozen=True)
class Shown:
    """A setting in the table: rows of a batch, milliseconds of the percentile, whether that is in time."""

    batch: int
    milliseconds: float
    keeps: str


async def tuned(plane: Plane, name: str, *, target: str, seconds: int) -> dict[str, Shown]:
    """What `headrace tune` shows of the current setting and of the proposed one."""
    words = ["tune", "deployment", name, "--target", f"p50={target}", "--max-time", f"{seconds}s"]
    result = await command(plane, *words, "--max-instances", "1", "--beside-traffic")
    assert result.exit_code == 0, result.output
    # batch, delay, instances, in flight, answers/s, p50, the target's percentile, in target, and marks
    row = re.compile(r" *(\d+) +[\d.]+ ms +1 +\d+ +[\d,]+ +[\d.]+ ms +~?([\d.]+) ms +(yes|no) +(\w.*?) *")
    found = [row.fullmatch(line) for line in result.stdout.splitlines()]
    return {
        mark: Shown(int(match[1]), float(match[2]), match[3])
        for match in found
        if match
        for mark in match[4].split(", ")
    }
