"""Models that misbehave, and a Triton that hangs: what callers are told, and who goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import ask
from tests.support.front import Front, front, model_server
from tests.support.hostile_models import DEEDS, LEAK_BYTES, PlainTriton, plain_triton, put_hostile_models
from tests.support.waiting import eventually

from headrace.embedded import logs
from headrace.embedded.parts import free_port
from headrace.inference.xds.wiring import Wiring

pytestmark = pytest.mark.asyncio(loop_scope="module")

WELL = "well"
# Deployed, and loaded nowhere.
ABSENT = "absent"
MEMORY_BYTES = 2 << 30


@dataclass
class Plane:
    """A Triton with the models, and Envoy in front of it."""

    triton: PlainTriton
    front: Front

    async def serves(self) -> None:
        """Assert that a model that does nothing wrong is answered."""
        async with self.front.client() as client:
            assert (await ask(client, WELL)).as_numpy("label").tolist() == [[1]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    folder = tmp_path_factory.mktemp("hostile")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(plain_triton(folder, MEMORY_BYTES))
        await put_hostile_models(server, list(DEEDS))
        wired = Wiring(f"127.0.0.1:{free_port()}", (server.address,))
        routes = {name: {1: 100} for name in (*DEEDS, ABSENT)}
        yield Plane(
            server,
            await stack.enter_async_context(front(folder, wired, routes)),
        )


async def test_a_model_that_answers_nan_is_answered_as_it_is(plane: Plane) -> None:
    async with plane.front.client() as client:
        answer = await ask(client, "nan")
    assert np.isnan(answer.as_numpy("probabilities")).all()
    await plane.serves()


async def test_a_model_that_triton_has_not_loaded_yet_is_unavailable(plane: Plane) -> None:
    words = "the model is being loaded; try again"
    async with plane.front.client() as client:
        with pytest.raises(triton.InferenceServerException, match=words) as raised:
            await ask(client, ABSENT)
    assert raised.value.status() == "StatusCode.UNAVAILABLE"
    row = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    async with httpx.AsyncClient(base_url=f"http://{plane.front.address}") as rest:
        answer = await rest.post(f"/v2/models/{ABSENT}/infer", json={"inputs": [row]})
    assert (answer.status_code, answer.json()) == (503, {"error": words})


async def test_a_model_that_sleeps_costs_its_callers_their_deadline_and_nobody_else(plane: Plane) -> None:
    async with plane.front.client() as client:
        for _ in range(2):
            with pytest.raises(triton.InferenceServerException) as raised:
                await ask(client, "sleeps", seconds=1)
            assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
            await plane.serves()


async def test_a_model_that_leaks_fails_before_the_machine_does_and_ends(plane: Plane) -> None:
    process = plane.triton.process_of("leaks")
    async with plane.front.client() as client:
        failure = await _failure_of_leaks(client)
    assert failure is not None
    assert failure.status() == "StatusCode.INTERNAL"
    # Only a new process gives back what leaked; the inference service starts it, as after any end.
    await eventually(lambda: asyncio.to_thread(_ended, process), bool)
    await plane.serves()


async def _failure_of_leaks(client: triton.InferenceServerClient) -> triton.InferenceServerException | None:
    """The first one, of more calls than the model can leak for."""
    for _ in range(1 + MEMORY_BYTES // LEAK_BYTES):
        try:
            await ask(client, "leaks")
        except triton.InferenceServerException as error:
            return error
    return None


async def test_a_model_that_exits_fails_its_callers_and_nobody_elses(plane: Plane) -> None:
    async with plane.front.client() as client:
        for _ in range(2):
            with pytest.raises(triton.InferenceServerException) as raised:
                await ask(client, "exits")
            assert raised.value.status() == "StatusCode.INTERNAL"
            await plane.serves()


async def test_models_are_the_first_to_go_where_the_machine_has_no_memory_left(plane: Plane) -> None:
    model, server = plane.triton.process_of(WELL), psutil.Process(plane.triton.part.pid)
    assert _oom_score(model) > _oom_score(server)


async def test_a_model_that_prints_for_ever_answers_and_fills_no_disk(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", limit)
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.01)
    # As the stack's supervisor does.
    trimming = asyncio.create_task(logs.keep_small([plane.triton.part.log]))
    aside = plane.triton.part.log.with_suffix(".log.1")
    async with plane.front.client() as client:
        assert (await ask(client, "prints")).as_numpy("label").tolist() == [[1]]
        await eventually(lambda: asyncio.to_thread(aside.exists), bool)
        assert (await ask(client, "prints")).as_numpy("label").tolist() == [[1]]
        await plane.serves()
    plane.triton.process_of("prints").kill()
    trimming.cancel()


def _ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _oom_score(process: psutil.Process) -> int:
    return int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())


async def test_what_a_triton_that_hangs_had_begun_is_answered_by_another(
    plane: Plane, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(model_server())
        hung = plane.front.wiring.triton
        wired = Wiring(f"127.0.0.1:{free_port()}", (*hung, server.address))
        made = await stack.enter_async_context(front(tmp_path, wired, {WELL: {1: 100}}))
        client = await stack.enter_async_context(made.client())
        process = psutil.Process(plane.triton.part.pid)

        async def by_triton() -> bool:
            # The other one names no outputs.
            return bool((await ask(client, WELL)).get_response().outputs)

        await eventually(by_triton, bool)
        process.suspend()
        stack.callback(process.resume)
        answers = await asyncio.gather(*(ask(client, WELL, seconds=60) for _ in range(20)))
        assert all(not answer.get_response().outputs for answer in answers)
        process.resume()
        await eventually(by_triton, bool)
    await plane.serves()
