"""What nobody waits for any more is not computed: the prediction log has everything that was."""

from __future__ import annotations

import asyncio
import re

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import DEADLINE, Plane
from tests.support.models import slow_classifier
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.embedded.parts.process import http_get

# Far longer than those wait whose deadline passes meanwhile.
BUSY_SECONDS = 5.0
SHORT_SECONDS = 0.5


class Caller:
    """Asks the slow model, for so many rounds of its work."""

    def __init__(self, opened: grpc.aio.Channel, model: str) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        self._model = model

    async def ask(self, request_id: str, rounds: int, seconds: float = 4 * DEADLINE) -> None:
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="features", datatype="FP32", shape=[1, 3]
        )
        row = np.array([rounds, 1, 1], dtype=np.float32)
        request = service_pb2.ModelInferRequest(
            model_name=self._model, id=request_id, inputs=[tensor], raw_input_contents=[row.tobytes()]
        )
        await self._stub.ModelInfer(request, timeout=seconds)

    async def rounds_for(self, seconds: float) -> int:
        """How many rounds keep the model busy for so long."""
        loop = asyncio.get_running_loop()
        rounds = 1000
        while True:
            began = loop.time()
            await self.ask(f"trial-{rounds}", rounds)
            if (took := loop.time() - began) > seconds / 10:
                return int(rounds * seconds / took)
            rounds *= 2


async def pending(plane: Plane, model: str) -> int:
    """Requests that wait for the model, as Triton says."""
    _, body = await http_get(plane.triton.ports.metrics, "/metrics")
    found = re.search(
        rf'nv_inference_pending_request_count{{model="{model}",version="1"}} (\d+)', body.decode()
    )
    assert found
    return int(found[1])


async def test_what_nobody_waits_for_any_more_is_not_computed(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=slow_classifier())
    await plane.until_live(name, 1)
    async with grpc.aio.insecure_channel(plane.address) as opened:
        caller = Caller(opened, name)
        rounds = await caller.rounds_for(BUSY_SECONDS)
        busy: dict[str, asyncio.Task[None]] = {}

        async def keep_busy() -> int:
            request_id = f"busy-{len(busy)}"
            busy[request_id] = asyncio.create_task(caller.ask(request_id, rounds))
            return await pending(plane, name)

        # One is computed, and another one waits for it.
        before = await eventually(keep_busy, lambda count: count > 0)
        given_up = [asyncio.create_task(caller.ask(f"given-up-{n}", 1)) for n in range(20)]
        await eventually(lambda: pending(plane, name), lambda count: count >= before + 20)
        # On a busy machine their time may be up before Triton has them all: that is not waited for.
        short = [asyncio.create_task(caller.ask(f"short-{n}", 1, SHORT_SECONDS)) for n in range(20)]
        await asyncio.wait(short)
        for task in given_up:
            task.cancel()
        outcomes = await asyncio.gather(*short, *given_up, return_exceptions=True)
        assert {outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)} == {
            grpc.StatusCode.DEADLINE_EXCEEDED
        }
        assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) == 20

        await asyncio.gather(*busy.values())
        await caller.ask("last", 1)
        logged = await plane.until_logged(name, {*busy, "last"})
    assert {request_id for request_id in logged if not request_id.startswith("trial-")} == {*busy, "last"}


async def test_what_took_longer_than_its_callers_waited_counts_as_failed(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=slow_classifier())
    await plane.until_live(name, 1)

    async def counted() -> tuple[int, int]:
        async with triton.InferenceServerClient(f"127.0.0.1:{plane.triton.ports.grpc}") as client:
            [model] = (await client.get_inference_statistics(name)).model_stats
        return model.inference_stats.success.count, model.inference_stats.fail.count

    async with grpc.aio.insecure_channel(plane.address) as opened:
        caller = Caller(opened, name)
        rounds = await caller.rounds_for(4 * SHORT_SECONDS)
        answered, failed = await counted()
        assert failed == 0
        for number in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await caller.ask(f"late-{number}", rounds, SHORT_SECONDS)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await eventually(counted, lambda found: sum(found) == answered + 3) == (answered, 3)
