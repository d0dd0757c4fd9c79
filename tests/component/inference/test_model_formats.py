"""Models in each format on a real Triton, and the classes that their answers name."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import Plane, ask, post
from tests.support.models import classifier_signature
from tests.support.torch_models import scores_program, scores_signature

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.client.inference_protocol import InferenceProtocol
from headrace.model_formats import ModelFormat
from headrace.rpc.client import channel

CLASSES = ("benign", "bösartig")


async def test_answers_name_their_class(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    # Of even versions the second class is that of rows above zero.
    await plane.promote(name, 2, signature=classifier_signature(*CLASSES))
    await plane.until_live(name, 2)
    rows = np.array([[-1, -1, -1], [1, 1, 1]], np.float32)
    expected = [[CLASSES[0]], [CLASSES[1]]]

    async with channel(plane.address) as opened:
        answer = await InferenceProtocol(opened).infer(
            name, rows, version="", prediction_id="mine", subject=""
        )
    assert answer.outputs["class"].tolist() == expected
    assert answer.outputs["label"].tolist() == [[0], [1]]

    row = {"name": "features", "datatype": "FP32", "shape": [2, 3], "data": rows.ravel().tolist()}
    status, by_rest = await asyncio.to_thread(post, plane, f"/v2/models/{name}/infer", {"inputs": [row]})
    assert status == 200
    outputs = {output["name"]: output["data"] for output in by_rest["outputs"]}
    assert outputs["class"] == list(CLASSES)

    # Triton's own classification: value:place:name, the best ones first.
    async with plane.client() as client:
        best = await client.infer(
            name,
            [triton_input(rows)],
            outputs=[triton.InferRequestedOutput("probabilities", class_count=1)],
        )
        assert (await ask(client, name)).as_numpy("class").tolist() == [[CLASSES[1].encode()]]
    assert [text.decode().split(":")[1:] for text in best.as_numpy("probabilities").ravel()] == [
        ["0", CLASSES[0]],
        ["1", CLASSES[1]],
    ]
    logged = await plane.until_logged(name, {"mine"})
    assert json.loads(logged["mine"].outputs_json)["class"]["data"] == list(CLASSES)


def triton_input(rows: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


@pytest.mark.parametrize(
    ("form", "broken", "why"),
    [
        (ModelFormat.TORCHSCRIPT, b"no program at all", "no archive"),
        # One that answers single rows, and would fail as soon as requests meet.
        (ModelFormat.TORCH_EXPORT, scores_program(ModelFormat.TORCH_EXPORT, rows=1), "Guard failed"),
    ],
)
async def test_a_program_of_pytorch_answers_and_a_broken_one_never_replaces_what_works(
    plane: Plane, name: str, form: ModelFormat, broken: bytes, why: str
) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, signature=scores_signature())
    await plane.until_live(name, 1)
    await plane.promote(name, 2, broken, signature=scores_signature(), form=form)
    failed = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_FAILED)
    assert failed.rollout.message.startswith("version 2 did not load")
    assert why in failed.rollout.message
    async with plane.client() as client:
        assert (await ask(client, name)).get_response().model_version == "1"

        await plane.promote(name, 3, scores_program(form), signature=scores_signature(), form=form)
        await plane.until_live(name, 3)
        answer = await client.infer(name, [triton_input(np.array([[1, 2, 3], [-1, 0, 0]], np.float32))])
    assert answer.get_response().model_version == "3"
    assert answer.as_numpy("probabilities").tolist() == [[-6, 6], [1, -1]]
    assert answer.as_numpy("label").tolist() == [[1], [0]]
    assert answer.as_numpy("class").tolist() == [[b"high"], [b"low"]]


@pytest.mark.parametrize("form", [ModelFormat.TORCHSCRIPT, ModelFormat.TORCH_EXPORT])
async def test_what_pytorch_answers_is_explained(plane: Plane, name: str, form: ModelFormat) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, scores_program(form), signature=scores_signature(), form=form)
    await plane.until_live(name, 1)
    async with plane.client() as client:
        answer = await ask(client, name, request_id="theirs", feature=2.0)
    [[_, score]] = answer.as_numpy("probabilities").tolist()
    await plane.until_logged(name, {"theirs"})
    zero = api.BASELINE_KIND_ZERO
    by_row = api.ExplainRequest(
        deployment=name, rows=api.InputRows(numbers=[2, 2, 2]), baseline_kind=zero, answer_class="high"
    )
    by_prediction = api.ExplainRequest(deployment=name, prediction="theirs", baseline_kind=zero)
    for request in (by_row, by_prediction):
        found = await plane.stub.Explain(request, timeout=60)
        [row] = found.rows
        assert (found.version, row.output, row.answer_class) == (1, "probabilities", '"high"')
        assert (row.answer, row.baseline_answer) == (score, 0)
        assert row.method == api.EXPLANATION_METHOD_INTEGRATED_GRADIENTS
        assert row.stopped == api.EXPLANATION_STOP_CONVERGED
        assert [one.amount for one in row.attributions] == pytest.approx([2, 2, 2])
    # Of the other class everything speaks against it.
    request = api.ExplainRequest(
        deployment=name,
        rows=api.InputRows(numbers=[2, 2, 2]),
        baseline_kind=zero,
        answer_class="low",
        method=api.EXPLANATION_METHOD_SHAPLEY_SAMPLING,
    )
    [row] = (await plane.stub.Explain(request, timeout=60)).rows
    assert [one.amount for one in row.attributions] == pytest.approx([-2, -2, -2])
