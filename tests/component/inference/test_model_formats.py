"""Models in each format on a real Triton, and the classes that their answers name."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import Plane, ask, post
from tests.support.models import classifier_signature

from headrace.client.inference_protocol import InferenceProtocol
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker

CLASSES = ("benign", "bösartig")


async def test_answers_name_their_class(plane: Plane, name: str) -> None:
    signature = classifier_signature()
    signature.classes[:] = map(json.dumps, CLASSES)
    await plane.deploy(name)
    # Of even versions the second class is that of rows above zero.
    await plane.promote(name, 2, signature=signature)
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
