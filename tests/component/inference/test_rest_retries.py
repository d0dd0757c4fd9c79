"""REST callers while Triton servers die, stop and come back: they see as little of it as gRPC callers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import MakePlane, Plane
from tests.component.inference.test_scaling import until_on
from tests.support.models import failing_classifier, slow_classifier
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

CALLERS = 4
# Of rows of this number the slow model always has some in work.
LONG = 300.0
# Far more than any call takes.
SECONDS = 60


def infer(client: httpx.AsyncClient, name: str, feature: float) -> asyncio.Task[httpx.Response]:
    row = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [feature, 1, 1]}
    asked = client.post(f"/v2/models/{name}/infer", json={"inputs": [row]})
    return asyncio.ensure_future(asked)


@asynccontextmanager
async def calling_by_rest(plane: Plane, name: str) -> AsyncIterator[Counter[str]]:
    """Call all the time; how often callers saw what."""
    seen: Counter[str] = Counter()

    async def call() -> None:
        async with httpx.AsyncClient(base_url=f"http://{plane.address}", timeout=SECONDS) as client:
            while True:
                try:
                    answer = await infer(client, name, LONG)
                    seen[f"{answer.status_code}" if answer.is_success else answer.text] += 1
                except httpx.HTTPError as error:
                    seen[repr(error)] += 1

    tasks = [asyncio.create_task(call()) for _ in range(CALLERS)]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def asked(plane: Plane, name: str) -> list[int]:
    """How often each server has run the model, or failed to, since it loaded it."""
    found = []
    for server in plane.tritons:
        async with triton.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}") as client:
            [model] = (await client.get_inference_statistics(name)).model_stats
        found.append(model.inference_stats.success.count + model.inference_stats.fail.count)
    return found


async def test_no_rest_call_fails_while_one_of_two_servers_dies_or_stops_and_comes_back(
    make_plane: MakePlane, name: str
) -> None:
    plane = await make_plane(tritons=2)
    failing = f"{name}-failing"
    for deployment, model in ((name, slow_classifier()), (failing, failing_classifier())):
        await plane.deploy(deployment)
        await plane.promote(deployment, 1, model)
        await plane.until_live(deployment, 1)
        await until_on(plane, deployment, 2)

    # What a model answers, also an error, is not asked for again.
    async with httpx.AsyncClient(base_url=f"http://{plane.address}", timeout=SECONDS) as client:
        answers = await asyncio.gather(*(infer(client, failing, 1.0) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {500}
    assert sum(await asked(plane, failing)) == len(answers)

    async with calling_by_rest(plane, name) as seen:

        async def both_asked() -> bool:
            return all(await asked(plane, name))

        for end in ("dies", "stops"):
            await eventually(both_asked, bool)
            server = plane.tritons[0]
            if end == "dies":
                server.kill()
                await server.wait()
            else:
                await server.stop()
            answered = seen["200"]
            await eventually(lambda: _value(seen["200"]), lambda count: count > answered + 10)  # noqa: B023
            await server.start()
            await until_on(plane, name, 2)
        await eventually(both_asked, bool)
    assert set(seen) == {"200"}


async def _value(number: int) -> int:
    return number
