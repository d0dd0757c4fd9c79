"""What nobody waits for any more is not computed: the prediction log has everything that was."""

from __future__ import annotations

import asyncio
import re

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import DEADLINE, Plane
from tests.component.inference.test_requests import request, responses, send
from tests.support.models import slow_classifier
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.embedded.parts.process import http_get
from headrace.inference.use_cases.responses import ANSWERED

# Far longer than those wait whose deadline passes meanwhile.
BUSY_SECONDS = 5.0
SHORT_SECONDS = 0.5
NEAR_MILLISECONDS = 2000


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

    async def keep_busy(self, plane: Plane, rounds: int) -> dict[str, asyncio.Task[None]]:
        """Calls of so many rounds, of which one is computed and another one waits for it."""
        busy: dict[str, asyncio.Task[None]] = {}

        async def one_more() -> int:
            request_id = f"busy-{len(busy)}"
            busy[request_id] = asyncio.create_task(self.ask(request_id, rounds))
            return await pending(plane, self._model)

        await eventually(one_more, lambda count: count > 0)
        return busy

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
        busy = await caller.keep_busy(plane, rounds)
        before = await pending(plane, name)
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


@pytest.mark.broker
async def test_of_requests_over_kafka_that_come_together_those_past_their_deadline_are_not_computed(
    plane: Plane, name: str
) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=slow_classifier())
    await plane.until_live(name, 1)
    near, patient = ({f"{name}-{kind}-{number}" for number in range(8)} for kind in ("near", "patient"))
    async with grpc.aio.insecure_channel(plane.address) as opened:
        caller = Caller(opened, name)
        busy = await caller.keep_busy(plane, await caller.rounds_for(BUSY_SECONDS))
        # In turns, so that each may be asked together with one that has time.
        pairs = zip(sorted(near), sorted(patient), strict=True)
        await send(
            plane,
            *(
                one
                for early, late in pairs
                for one in (request(name, early, deadline=str(NEAR_MILLISECONDS)), request(name, late))
            ),
        )
        answered = {
            event.extensions["requestid"]
            for event in await responses(plane, name, near | patient)
            if event.type == ANSWERED
        }
        assert answered == patient
        await asyncio.gather(*busy.values())
        await caller.ask("last", 1)
        logged = await plane.until_logged(name, {*busy, *patient, "last"})
    assert not near & set(logged)
