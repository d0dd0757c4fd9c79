"""What clients see through Envoy: versions, ids, errors, REST, the prediction log and feedback."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime

import grpc
import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import DEADLINE, MAX_REQUEST_BYTES, Plane, ask, post
from tests.support.models import failing_classifier, slow_classifier
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.inference.prediction_events import MAX_SUBJECT_LENGTH
from headrace.messaging.events import Event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import FEEDBACK

pytestmark = pytest.mark.broker


async def test_a_promoted_version_answers_and_its_answers_are_logged_and_judged(
    plane: Plane, name: str
) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with plane.client() as client:
        answer = await ask(client, name, request_id="mine")
        assert answer.get_response().id == "mine"
        assert answer.as_numpy("label").tolist() == [[0]]
        made = (await ask(client, name)).get_response().id
        assert len(made) >= 32

        # Feedback for the one prediction, one of them before it can have been stored.
        await send_feedback(plane, name, {"mine": 0, made: 1, "later": 0})
        await ask(client, name, request_id="later")

    async def measured() -> api.Quality:
        return await plane.stub.GetQuality(api.GetQualityRequest(deployment=name))

    quality = await eventually(measured, lambda found: found.feedback_count == 3)
    assert quality.metrics["accuracy"] == pytest.approx(2 / 3)
    assert quality.metrics["recall"] == 0
    listed = await plane.stub.ListPredictions(api.ListPredictionsRequest(deployment=name))
    logged = {prediction.id: prediction for prediction in listed.predictions}
    assert json.loads(logged["mine"].inputs_json)["features"]["data"] == [1.0, 1.0, 1.0]
    assert json.loads(logged[made].label_json) == 1


async def send_feedback(plane: Plane, name: str, labels: dict[str, float]) -> None:
    async with Producer(plane.bootstrap, client_id="tests", idempotence=False) as producer:
        for prediction_id, label in labels.items():
            payload = {"deployment": name, "prediction_id": prediction_id, "number": label}
            event = Event(
                id=str(uuid.uuid4()),
                source="tests",
                type="headrace.inference.feedback.v1",
                subject=name,
                time=datetime.now(UTC),
                data=json.dumps(payload).encode(),
                content_type="application/json",
            )
            await producer.publish(FEEDBACK, prediction_id, event)


async def test_weights_hold_and_a_named_version_is_left_alone(plane: Plane, name: str) -> None:
    await plane.deploy(name, steps=(30, 100), hold=600)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await plane.until(name, lambda d: {t.version: t.weight for t in d.traffic} == {1: 70, 2: 30})
    async with plane.client() as client:
        async with asyncio.timeout(DEADLINE):
            while (await ask(client, name)).get_response().model_version != "2":
                pass
        answers = await asyncio.gather(*(ask(client, name) for _ in range(2000)))
        seen = Counter(answer.get_response().model_version for answer in answers)
        # Five standard deviations of a binomial with p = 0.3.
        assert abs(seen["2"] - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5
        named = await asyncio.gather(*(ask(client, name, version="1") for _ in range(50)))
        assert {answer.get_response().model_version for answer in named} == {"1"}

    aborted = await plane.stub.AbortRollout(api.AbortRolloutRequest(deployment=name))
    assert aborted.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK
    assert [(t.version, t.weight) for t in aborted.traffic] == [(1, 100)]


async def test_wrong_requests_are_told_what_is_right(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    expected = "expected: features FP32 [-1,3]"
    async with plane.client() as client:

        async def failure(model: str, tensor: str, shape: list[int], datatype: str, version: str = "") -> str:
            wrong = triton.InferInput(tensor, shape, datatype)
            wrong.set_data_from_numpy(np.ones(shape, dtype=np.float32 if datatype == "FP32" else np.float64))
            with pytest.raises(triton.InferenceServerException) as raised:
                await client.infer(model, [wrong], model_version=version)
            return f"{raised.value.status()} {raised.value.message()}"

        assert (await failure("nobody", "features", [1, 3], "FP32")).startswith(
            "StatusCode.NOT_FOUND no model nobody"
        )
        unknown = await failure(name, "features", [1, 3], "FP32", version="9")
        assert unknown == f"StatusCode.NOT_FOUND model {name} has no live version 9; live: 1"
        for wrong in (
            await failure(name, "typo", [1, 3], "FP32"),
            await failure(name, "features", [1, 4], "FP32"),
            await failure(name, "features", [1, 3], "FP64"),
        ):
            assert wrong.startswith("StatusCode.INVALID_ARGUMENT")
            assert wrong.endswith(expected)


async def test_bytes_that_are_no_request_and_operators_calls_are_refused(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with grpc.aio.insecure_channel(plane.address) as opened:

        async def code(
            method: str, data: bytes, compression: grpc.Compression | None = None
        ) -> grpc.StatusCode:
            call = opened.unary_unary(f"/inference.GRPCInferenceService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(data, timeout=10, compression=compression)
            return raised.value.code()

        assert await code("ModelInfer", b"") is grpc.StatusCode.INVALID_ARGUMENT
        assert await code("ModelInfer", b"\xff\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
        assert await code("ModelInfer", b"\x0a\x7fshort") is grpc.StatusCode.INVALID_ARGUMENT
        request = service_pb2.ModelInferRequest(model_name=name, id="x" * 2000).SerializeToString()
        compressed = await code("ModelInfer", request, grpc.Compression.Gzip)
        assert compressed is grpc.StatusCode.UNIMPLEMENTED
        unload = service_pb2.RepositoryModelUnloadRequest(model_name=name).SerializeToString()
        assert await code("RepositoryModelUnload", unload) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_request_that_is_too_large_is_refused(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    rows = MAX_REQUEST_BYTES // 6
    async with plane.client() as client:
        with pytest.raises(triton.InferenceServerException) as raised:
            await ask(client, name, rows=rows)
    assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert raised.value.message() == f"the request is larger than {MAX_REQUEST_BYTES} bytes"
    tensor = {"name": "features", "datatype": "FP32", "shape": [rows, 3], "data": [1] * 3 * rows}
    for path in (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/1/infer"):
        status, answer = await asyncio.to_thread(post, plane, path, {"inputs": [tensor]})
        assert (status, answer["error"]) == (413, f"the request is larger than {MAX_REQUEST_BYTES} bytes")


async def test_an_id_that_no_index_takes_is_refused(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with plane.client() as client:
        with pytest.raises(triton.InferenceServerException) as raised:
            await ask(client, name, request_id="x" * 257)
        assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert str(raised.value.message()).startswith("the id is longer than 256 bytes")
        assert (await ask(client, name, request_id="x" * 256)).get_response().id == "x" * 256
    row = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    for number, expected in ((5000, 400), (128, 200)):
        status, _ = await asyncio.to_thread(
            post, plane, f"/v2/models/{name}/infer", {"id": "ü" * number, "inputs": [row]}
        )
        assert status == expected
    await plane.until_logged(name, {"x" * 256, "ü" * 128})


async def test_fields_may_come_in_any_order(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="features", datatype="FP32", shape=[1, 3])
    tail = service_pb2.ModelInferRequest(inputs=[tensor], raw_input_contents=[b"\0" * 12]).SerializeToString()
    head = service_pb2.ModelInferRequest(model_name=name).SerializeToString()
    async with grpc.aio.insecure_channel(plane.address) as opened:
        call = opened.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        answer = await call(tail + head, timeout=10)
        assert answer.model_version == "1"
        assert answer.id
        metadata = await service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelMetadata(
            service_pb2.ModelMetadataRequest(name=name), timeout=10
        )
        assert [tensor.name for tensor in metadata.inputs] == ["features"]


async def test_a_failing_models_callers_are_told_why_and_not_where(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=failing_classifier())
    await plane.until_live(name, 1)
    row = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    status, answer = await asyncio.to_thread(post, plane, f"/v2/models/{name}/infer", {"inputs": [row]})
    assert status == 500
    assert "the model failed: " in str(answer["error"])
    assert "model.py" not in str(answer["error"])
    row["data"] = [0, 1, 1]
    status, _ = await asyncio.to_thread(post, plane, f"/v2/models/{name}/infer", {"inputs": [row]})
    assert status == 200


async def test_a_model_whose_process_died_answers_again_and_its_neighbours_go_on(
    plane: Plane, name: str
) -> None:
    neighbour = f"{name}-neighbour"
    for model in (name, neighbour):
        await plane.deploy(model)
        await plane.promote(model, 1)
        await plane.until_live(model, 1)
    process_of(plane, name).kill()
    async with plane.client() as client:

        async def answered() -> bool:
            assert (await ask(client, neighbour)).get_response().model_version == "1"
            try:
                return bool((await ask(client, name)).get_response().model_version == "1")
            except triton.InferenceServerException:
                return False

        await eventually(answered, bool)


async def test_a_model_that_hangs_when_nobody_waits_any_more_answers_again(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=slow_classifier())
    await plane.until_live(name, 1)
    async with plane.client() as client:
        with pytest.raises(triton.InferenceServerException, match="DEADLINE_EXCEEDED"):
            await ask(client, name, feature=1e15, seconds=1)

        async def answered() -> bool:
            with suppress(triton.InferenceServerException):
                return bool((await ask(client, name, seconds=1)).get_response().model_version == "1")
            return False

        await eventually(answered, bool, DEADLINE)
    log = plane.triton.log.read_text(errors="replace")
    assert f"{name} 1: the model's process ends: it hangs: nobody waits for its answer any more" in log


async def test_requests_that_wait_are_computed_together(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=slow_classifier())
    await plane.until_live(name, 1)
    async with plane.client() as client:
        # Some ten milliseconds each, during which the others come.
        await asyncio.gather(*(ask(client, name, feature=200) for _ in range(64)))
    async with triton.InferenceServerClient(f"127.0.0.1:{plane.triton.ports.grpc}") as client:
        [model] = (await client.get_inference_statistics(name)).model_stats
    assert model.inference_count == 64
    assert model.execution_count < 32


async def test_a_model_that_hangs_while_somebody_waits_answers_again_when_its_process_is_killed(
    plane: Plane, name: str
) -> None:
    neighbour = f"{name}-neighbour"
    for model in (name, neighbour):
        await plane.deploy(model)
        await plane.promote(model, 1, model=slow_classifier())
        await plane.until_live(model, 1)
    async with plane.client() as client:
        endless = asyncio.create_task(ask(client, name, feature=1e15, seconds=2 * DEADLINE))

        async def hangs() -> bool:
            # One that overtakes the endless one is answered.
            try:
                await ask(client, name, seconds=1)
            except triton.InferenceServerException as error:
                assert "DEADLINE_EXCEEDED" in str(error)
                return True
            return False

        await eventually(hangs, bool)
        behind = asyncio.create_task(ask(client, name, seconds=2 * DEADLINE))
        await eventually(lambda: pending(plane, name), bool)
        assert (await ask(client, neighbour)).get_response().model_version == "1"
        assert (await plane.get(name)).ready

        process_of(plane, name).kill()
        for waits in (endless, behind):
            with pytest.raises(triton.InferenceServerException, match="is not healthy"):
                await waits

        async def answered() -> bool:
            with suppress(triton.InferenceServerException):
                return bool((await ask(client, name)).get_response().model_version == "1")
            return False

        await eventually(answered, bool, DEADLINE)
    assert await pending(plane, name) == 0


def process_of(plane: Plane, model: str) -> psutil.Process:
    """The process of a model's version 1."""
    children = psutil.Process(plane.triton.pid).children(recursive=True)
    # What has ended has no command any more.
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    [process] = [child for child in living if any(f"/{model}/1/" in part for part in child.cmdline())]
    return process


async def pending(plane: Plane, model: str) -> int:
    """How many requests wait for a model's version 1, by Triton's metrics."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{plane.triton.ports.metrics}/metrics")).text
    series = f'nv_inference_pending_request_count{{model="{model}",version="1"}} '
    [line] = [line for line in text.splitlines() if line.startswith(series)]
    return int(float(line.removeprefix(series)))


async def test_rest_answers_like_grpc(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)

    row = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    status, answer = await asyncio.to_thread(
        post, plane, f"/v2/models/{name}/infer", {"id": "mine", "inputs": [row]}
    )
    assert (status, answer["id"], answer["model_version"]) == (200, "mine", "1")
    status, answer = await asyncio.to_thread(post, plane, "/v2/models/nobody/infer", {"inputs": [row]})
    assert (status, answer["error"]) == (404, "no model nobody is deployed")
    wrong = {**row, "shape": [1, 4], "data": [1, 1, 1, 1]}
    status, answer = await asyncio.to_thread(post, plane, f"/v2/models/{name}/infer", {"inputs": [wrong]})
    assert status == 400
    assert str(answer["error"]).endswith("expected: features FP32 [-1,3]")
    status, _ = await asyncio.to_thread(post, plane, f"/v2/repository/models/{name}/unload", {})
    assert status == 403


async def test_a_request_may_name_its_subject_whose_predictions_are_erased(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    longest = "ü" * MAX_SUBJECT_LENGTH
    async with plane.client() as client:
        for request_id, parameters in (
            ("theirs", {"subject": longest}),
            # Nobody could erase them: they are answered, and not logged.
            ("too-long", {"subject": longest + "ü"}),
            ("no-text", {"subject": 4711}),
            ("nobody's", None),
        ):
            await ask(client, name, request_id=request_id, parameters=parameters)
    row = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    status, _ = await asyncio.to_thread(
        post,
        plane,
        f"/v2/models/{name}/infer",
        {"id": "theirs-by-rest", "parameters": {"subject": longest}, "inputs": [row]},
    )
    assert status == 200
    logged = await plane.until_logged(name, {"theirs", "nobody's", "theirs-by-rest"})
    assert len(logged) == 3
    request = api.ErasePredictionsRequest(erasure=name, dataset="its-dataset", subject=longest)
    assert (await plane.stub.ErasePredictions(request)).prediction_count == 2
    listed = await plane.stub.ListPredictions(api.ListPredictionsRequest(deployment=name))
    assert [prediction.id for prediction in listed.predictions] == ["nobody's"]
    assert "ü" not in plane.triton.log.read_text() + plane.service.log.read_text()
