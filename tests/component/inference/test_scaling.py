"""Deployments on some of several servers, on none while nobody asks, and on more when requests wait."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import DEADLINE, MakePlane, Plane, ask, post
from tests.component.inference.test_requests import request, responses, send
from tests.support.models import slow_classifier
from tests.support.proxy import proxied
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.embedded.parts.process import http_get
from headrace.inference.stamp_grpc_api import CANNOT_LOAD
from headrace.inference.use_cases.responses import ANSWERED
from headrace.rpc.load import load

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def scaling(
    lowest: int, highest: int = 0, *, idle: int = 300, queue_ms: int = 20, instances: int = 0
) -> scheduling_pb2.Scaling:
    found = scheduling_pb2.Scaling(min_replicas=lowest, max_replicas=highest, max_instances=instances)
    found.idle.FromSeconds(idle)
    found.queue.FromMilliseconds(queue_ms)
    return found


async def servers_with(plane: Plane, name: str) -> list[int]:
    """Servers that have the deployment, in their own words; those that do not answer are left out."""
    found = []
    for number, server in enumerate(plane.tritons):
        if not server.running:
            continue
        async with triton.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}") as client:
            index = await client.get_model_repository_index()
            if any(model.name == name and model.state == "READY" for model in index.models):
                found.append(number)
    return found


async def until_on(plane: Plane, name: str, servers: Collection[int] | int) -> list[int]:
    """Wait until the deployment is on these servers, or on so many, and requests go there."""

    def settled(found: list[int]) -> bool:
        return len(found) == servers if isinstance(servers, int) else set(found) == set(servers)

    return await eventually(lambda: servers_with(plane, name), settled, DEADLINE)


async def test_a_deployment_is_on_as_many_servers_as_it_may_be_and_no_request_fails_while_it_moves(
    make_plane: MakePlane, name: str
) -> None:
    plane = await make_plane(tritons=2)
    await plane.deploy(name, scaling=scaling(1, 1))
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    [home] = await until_on(plane, name, 1)
    answers = 0
    async with plane.client() as client:

        async def keep_asking() -> None:
            nonlocal answers
            while True:
                await ask(client, name)
                answers += 1

        asking = asyncio.create_task(keep_asking())
        await plane.deploy(name, scaling=scaling(2))
        await until_on(plane, name, 2)
        before = answers
        await eventually(lambda: _value(answers), lambda count: count > before + 20)
        await plane.deploy(name, scaling=scaling(1, 1))
        await until_on(plane, name, 1)
        # Its one server dies, and it is loaded on the other one.
        assert not asking.done()
        asking.cancel()
        [home] = await servers_with(plane, name)
        plane.tritons[home].kill()
        await plane.tritons[home].wait()
        await until_on(plane, name, {1 - home})
        await eventually(lambda: _answered(client, name), bool, DEADLINE)


async def test_what_nobody_asks_for_is_on_no_server_and_the_first_requests_wait(
    make_plane: MakePlane, name: str
) -> None:
    plane = await make_plane()
    await plane.deploy(name, scaling=scaling(0, idle=5))
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await until_cold(plane, name)
    async with plane.client() as client:
        answers = await asyncio.gather(*(ask(client, name, seconds=60) for _ in range(4)))
        assert {answer.get_response().model_version for answer in answers} == {"1"}
        assert await wakes(plane) == 4

        # A version that is promoted meanwhile is loaded, judged and live, and then it is unloaded again.
        await until_cold(plane, name)
        await plane.promote(name, 2)
        await plane.until_live(name, 2)
        await until_cold(plane, name)

    # Kafka holds requests until it is there.
    request_id = str(uuid.uuid4())
    await send(plane, request(name, request_id))
    # The service of other tests, which reads the topic too, knows no such deployment and says so.
    [response] = await responses(plane, name, {request_id}, (ANSWERED,))
    assert b'"model_version":"2"' in response.data.replace(b" ", b"")

    # A service that is started anew does not load what nobody asks for, and does when somebody does.
    await until_cold(plane, name)
    plane.service.kill()
    await plane.service.wait()
    await plane.service.start()
    await plane.until(name, lambda d: d.ready)
    assert await servers_with(plane, name) == []
    tensor = {"name": "features", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}
    status, answer = await asyncio.to_thread(post, plane, f"/v2/models/{name}/infer", {"inputs": [tensor]})
    assert (status, answer["model_version"]) == (200, "2")


async def test_while_the_database_is_away_a_cold_model_is_unavailable_and_a_warm_one_answers(
    make_plane: MakePlane, postgres_dsn: str, name: str
) -> None:
    cold, warm = f"{name}-cold", f"{name}-warm"
    async with proxied(postgres_dsn) as (database, dsn):
        plane = await make_plane(HEADRACE_POSTGRES_DSN=dsn)
        for deployment, wanted in ((cold, scaling(0, idle=5)), (warm, scaling(1))):
            await plane.deploy(deployment, scaling=wanted)
            await plane.promote(deployment, 1)
            await plane.until_live(deployment, 1)
        await until_cold(plane, cold)
        await database.cut()
        async with plane.client() as client:
            with pytest.raises(triton.InferenceServerException) as raised:
                await ask(client, cold, seconds=60)
            assert raised.value.status() == "StatusCode.UNAVAILABLE"
            assert raised.value.message() == CANNOT_LOAD
            tensor = {"name": "features", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}
            path = f"/v2/models/{cold}/infer"
            status, answer = await asyncio.to_thread(post, plane, path, {"inputs": [tensor]})
            assert (status, answer) == (503, {"error": CANNOT_LOAD})
            assert (await ask(client, warm)).get_response().model_version == "1"
            await database.open()
            await eventually(lambda: _answered(client, cold), bool, DEADLINE)
        await plane.service.stop()


async def until_cold(plane: Plane, name: str) -> None:
    await plane.until(name, lambda d: d.replicas == 0 and d.ready)
    await until_on(plane, name, 0)


async def test_where_memory_is_short_who_was_not_asked_for_makes_room(
    make_plane: MakePlane, name: str
) -> None:
    plane = await make_plane(HEADRACE_INFERENCE_TRITON_MEMORY_BYTES=str(100 << 20))
    first, second = f"{name}-first", f"{name}-second"
    for deployment in (first, second):
        await plane.deploy(deployment, scaling=scaling(0, idle=600))
        await plane.promote(deployment, 1)
        await plane.until(deployment, lambda d: bool(d.traffic))
        await until_on(plane, deployment, 1)
    assert await servers_with(plane, first) == []
    async with plane.client() as client:
        assert (await ask(client, first, seconds=60)).get_response().model_version == "1"
        await until_on(plane, second, 0)
        assert (await ask(client, second, seconds=60)).get_response().model_version == "1"


async def test_a_deployment_goes_to_the_emptier_server_and_to_the_one_with_less_to_do(
    make_plane: MakePlane, name: str
) -> None:
    plane = await make_plane(tritons=2)

    async def home_of(kind: str, model: bytes | None = None, instances: int = 1) -> int:
        """The one server that a new deployment is placed on."""
        deployment = f"{name}-{kind}"
        await plane.deploy(deployment, scaling=scaling(1, 1), instances=instances)
        await plane.promote(deployment, 1, model)
        await plane.until_live(deployment, 1)
        [home] = await until_on(plane, deployment, 1)
        return home

    small = await home_of("small", slow_classifier())
    large = await home_of("large", instances=4)
    assert large != small
    # While nobody is asked, memory alone decides.
    assert await home_of("next") == small
    async with busy(plane, f"{name}-small"):
        await eventually(lambda: worked(plane, small, f"{name}-small"), lambda seconds: seconds > 1)
        assert await home_of("last") == large
        # By its own counts, the other one had nothing to do.
        assert await worked(plane, large, f"{name}-large") == 0


async def worked(plane: Plane, number: int, name: str) -> float:
    """Seconds that a server has computed for a deployment, in its own words."""
    async with triton.InferenceServerClient(f"127.0.0.1:{plane.tritons[number].ports.grpc}") as client:
        [model] = (await client.get_inference_statistics(name)).model_stats
    nanoseconds: int = model.inference_stats.compute_infer.ns
    return nanoseconds / 1e9


async def test_where_requests_wait_there_is_another_replica(make_plane: MakePlane, name: str) -> None:
    plane = await make_plane(tritons=2)
    await plane.deploy(name, scaling=scaling(1, 2, queue_ms=2))
    await plane.promote(name, 1, slow_classifier())
    await plane.until_live(name, 1)
    await until_on(plane, name, 1)
    async with busy(plane, name):
        await until_on(plane, name, 2)
        await plane.until(name, lambda d: d.replicas == 2 and d.ready)


async def test_where_requests_wait_there_is_another_process(make_plane: MakePlane, name: str) -> None:
    plane = await make_plane(tritons=2)
    await plane.deploy(name, scaling=scaling(1, 2, queue_ms=2, instances=2))
    await plane.promote(name, 1, slow_classifier())
    await plane.until_live(name, 1)

    async def processes() -> int:
        servers = [psutil.Process(server.pid) for server in plane.tritons]
        commands = [child.cmdline() for server in servers for child in server.children(recursive=True)]
        return sum(any(f"/{name}/1/" in part for part in command) for command in commands)

    assert await processes() == 1
    async with busy(plane, name):
        await eventually(processes, lambda count: count == 2, DEADLINE)
        # Before there is another server.
        assert len(await servers_with(plane, name)) == 1


@asynccontextmanager
async def busy(plane: Plane, name: str) -> AsyncIterator[None]:
    """The slow model is asked more than it can do."""
    message = service_pb2.ModelInferRequest(model_name=name)
    message.inputs.add(name="features", datatype="FP32", shape=[1, 3])
    # So many products of matrices, some tens of milliseconds.
    message.raw_input_contents.append(np.array([200, 1, 1], np.float32).tobytes())
    calling = asyncio.create_task(
        load(plane.address, METHOD, message.SerializeToString(), in_flight=8, seconds=DEADLINE)
    )
    try:
        yield
    finally:
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)


async def wakes(plane: Plane) -> int:
    """How many requests have waited, in the service's metrics."""
    _, body = await http_get(plane.service.http_port, "/metrics")
    [line] = [
        line
        for line in body.decode().splitlines()
        if line.startswith("headrace_inference_wake_seconds_count")
    ]
    return int(float(line.split()[-1]))


async def _answered(client: triton.InferenceServerClient, name: str) -> bool:
    try:
        await ask(client, name)
    except triton.InferenceServerException:
        return False
    return True


async def _value(number: int) -> int:
    return number
