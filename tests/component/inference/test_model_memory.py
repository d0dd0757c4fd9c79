"""Models that need more memory than one may have: who is told, and who goes on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psutil
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import MakePlane, Plane, ask, post
from tests.component.inference.test_data_plane import process_of
from tests.component.inference.test_rollouts import calling, until_answer, until_answered
from tests.support.models import hungry_classifier
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api

pytestmark = pytest.mark.broker

MODEL_BYTES = 1 << 30
ROW_BYTES = 32 << 20
# So many rows do not fit, and are no more than a batch may have.
MANY_ROWS = 40
TOLD = "the model failed: "


async def test_what_needs_more_memory_than_a_model_may_have_fails_and_nothing_else_does(
    make_plane: MakePlane, name: str
) -> None:
    plane = await make_plane(model_memory_bytes=MODEL_BYTES)
    neighbour = f"{name}-neighbour"
    for deployment, model in ((name, hungry_classifier(ROW_BYTES)), (neighbour, None)):
        await plane.deploy(deployment)
        await plane.promote(deployment, 1, model)
        await plane.until_live(deployment, 1)
    async with calling(plane, neighbour) as others:
        async with plane.client() as client:
            process = process_of(plane, name)
            with pytest.raises(triton.InferenceServerException, match=TOLD) as raised:
                await ask(client, name, rows=MANY_ROWS)
            assert raised.value.status() == "StatusCode.INTERNAL"
            status, answer = await large_by_rest(plane, name)
            assert status == 500
            assert TOLD in str(answer["error"])
            # There is room for smaller ones: it goes on.
            assert (await ask(client, name)).get_response().model_version == "1"
            assert not ended(process)

            # What it keeps of larger and larger ones leaves too little: it ends, and is loaded anew.
            for rows in range(8, MANY_ROWS, 2):
                with suppress(triton.InferenceServerException):
                    await ask(client, name, rows=rows)
                # The next one is not to be filled up as well.
                if await asyncio.to_thread(ended, process):
                    break
            await eventually(lambda: asyncio.to_thread(ended, process), bool)
            assert (await until_answer(client, name)).get_response().model_version == "1"

        async with calling(plane, name) as calls:
            # Its first row already needs twice as much as it may have.
            await plane.promote(name, 2, hungry_classifier(2 * MODEL_BYTES))
            failed = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_FAILED)
            await until_answered(calls, 10)
        assert failed.rollout.message.startswith("version 2 did not load")
        assert "Failed to allocate memory" in failed.rollout.message
        assert [(t.version, t.weight) for t in failed.traffic] == [(1, 100)]
        assert (calls.failures, set(calls.versions)) == ([], {"1"})
        await until_answered(others, 10)
    assert others.failures == []
    log = plane.triton.log.read_text(errors="replace")
    assert f"{name} 1: the model's process ends: its memory is used up" in log


async def large_by_rest(plane: Plane, name: str) -> tuple[int, dict[str, object]]:
    shape = [MANY_ROWS, 3]
    tensor = {"name": "features", "shape": shape, "datatype": "FP32", "data": [1.0] * 3 * MANY_ROWS}
    return await asyncio.to_thread(post, plane, f"/v2/models/{name}/infer", {"inputs": [tensor]})


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
