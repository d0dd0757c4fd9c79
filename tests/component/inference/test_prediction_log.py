"""The prediction log of a share of the requests, on a real Triton and broker."""

from __future__ import annotations

import asyncio
import json
from types import ModuleType

import httpx
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import DEADLINE, Plane, ask
from tests.component.inference.test_requests import request, responses, send
from tests.component.inference.test_trials import ROWS, logged, shadowed, until_tried
from tests.support.triton_code import triton_module
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling

pytestmark = pytest.mark.broker

HALF = scheduling.PredictionLogSpec(share=0.5)


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The rule, as Triton has it."""
    return triton_module("sampling", monkeypatch)


async def until_serving(plane: Plane, name: str, share: str) -> None:
    """Wait until that share is logged of what is asked now."""
    async with triton.InferenceServerClient(f"127.0.0.1:{plane.triton.ports.grpc}") as client:

        async def said() -> str:
            config = (await client.get_model_config(name)).config
            return str(config.parameters["log_share"].string_value)

        await eventually(said, lambda found: found == share, DEADLINE)


async def test_a_share_of_the_requests_is_logged_by_their_ids(
    plane: Plane, name: str, sampling: ModuleType
) -> None:
    await plane.deploy(name, log=HALF)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    half = sampling.Sampling(0.5)
    # Of one to three rows; and over Kafka, where some are asked in one call, each with its own numbers.
    called = {f"{name}-{number}": [1.0] * 3 * (1 + number % 3) for number in range(40)}
    sent = {f"{name}-sent-{number}": [float(number)] * 3 for number in range(40)}
    async with plane.client() as client:
        await asyncio.gather(
            *(ask(client, name, request_id=one, rows=len(called[one]) // 3) for one in called)
        )
        await send(plane, *(request(name, one, value=numbers[0]) for one, numbers in sent.items()))
        await responses(plane, name, set(sent))
        # All from here on.
        await plane.deploy(name, log=scheduling.PredictionLogSpec())
        await until_serving(plane, name, "1.0")
        await ask(client, name, request_id="last")
    expected = {one: numbers for one, numbers in (called | sent).items() if half.takes(one, "")}
    found = await plane.until_logged(name, {*expected, "last"})
    inputs = {one: json.loads(found[one].inputs_json)["features"] for one in called | sent if one in found}
    assert {one: tensor["data"] for one, tensor in inputs.items()} == expected


async def test_both_answers_of_a_mirrored_request_are_logged_or_neither(plane: Plane, name: str) -> None:
    # It is never judged: so many requests do not come.
    rollout = shadowed(min_samples=100_000)
    await plane.deploy(name, hold=DEADLINE, rollout=rollout, log=HALF)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await until_tried(plane, name, api.ROLLOUT_STATE_SHADOWING)
    requests = 60
    async with plane.client() as client:
        for number in range(requests):
            await ask(client, name, request_id=str(number))
    async with httpx.AsyncClient(base_url=f"http://{plane.address}") as rest:
        for _ in range(requests):
            answer = await rest.post(f"/v2/models/{name}/infer", json={"inputs": [ROWS]})
            assert answer.status_code == 200
    # The two versions' requests are logged in turn by two processes: the last ones of both are waited for.
    both = await eventually(
        lambda: logged(plane, name),
        lambda found: found.get((1, False), 0) == found.get((2, True), 0) > requests / 4,
        DEADLINE,
    )
    assert sum(both.values()) < 2 * 2 * requests
    listed = await plane.stub.ListPredictions(api.ListPredictionsRequest(deployment=name, page_size=1000))
    numbered = [(one.id, one.version) for one in listed.predictions if len(one.id) < 3]
    assert {one for one, version in numbered if version == 1} == {
        one for one, version in numbered if version == 2
    }


async def test_with_no_share_nothing_is_logged(plane: Plane, name: str) -> None:
    await plane.deploy(name, log=scheduling.PredictionLogSpec(share=0))
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with plane.client() as client:
        for number in range(20):
            await ask(client, name, request_id=f"unlogged-{number}")
        await plane.deploy(name, log=scheduling.PredictionLogSpec())
        await until_serving(plane, name, "1.0")
        await ask(client, name, request_id="last")
    assert set(await plane.until_logged(name, {"last"})) == {"last"}
