"""A prepared model in Triton answers raw rows as the trained one does."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc.aio as triton

from headrace.embedded.parts import free_port
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.triton.repository import ModelRepository
from headrace.inference.triton.server import triton_server
from headrace.objects import ObjectStore
from headrace.recipes import MlpParameters
from headrace.training.run.export import Classifier, export
from headrace.training.run.model import Normalised, build_mlp
from headrace.training.run.preprocessing import Preprocessor, fit
from headrace.training.run.scale import Scale
from headrace.training.run.specification import Column, Dataset, Label, Preparation

TRITON_ENVIRONMENT = Path(__file__).parents[3] / ".venv-triton"
PREPARATIONS = (
    Preparation(feature="area", missing="median", indicator=True, log=True, normalise="robust"),
    Preparation(feature="age", clip_min=0, clip_max=90, normalise="min_max"),
    Preparation(feature="site", encode="one_hot", missing="constant"),
    Preparation(feature="grade", encode="ordinal"),
)
DATASET = Dataset(
    name="d",
    version=1,
    table_uri="",
    table_version=0,
    content_hash="",
    key="k",
    features=tuple(Column(name=wish.feature, type="float32") for wish in PREPARATIONS),
    label=Label(name="y", type="int8", classes=("0", "1")),
)


def raw_rows(rows: int, seed: int) -> torch.Tensor:
    """Measurements and codes, some of them missing."""
    random = np.random.default_rng(seed)
    area = np.where(random.random(rows) < 0.3, np.nan, random.lognormal(3, 2, rows))
    site = np.where(random.random(rows) < 0.3, np.nan, random.integers(0, 4 + seed, rows))
    columns = [area, random.normal(50, 30, rows), site, random.integers(1, 4 + seed, rows)]
    return torch.from_numpy(np.column_stack(columns).astype(np.float32))


async def test_triton_prepares_raw_rows_as_training_did(kafka_bootstrap: str, tmp_path: Path) -> None:
    train, asked = raw_rows(200, 0), raw_rows(64, 3)
    torch.manual_seed(1)
    preprocessor = Preprocessor(fit(PREPARATIONS, [train], 0))
    network = build_mlp(preprocessor.width, 2, MlpParameters(hidden=(8,)))
    model = Normalised(network, preprocessor, Scale.identity(1)).eval()
    file = tmp_path / "model.onnx"
    signature = export(model, DATASET, train, file, classified=True)

    store = ObjectStore.from_uri((tmp_path / "store").as_uri())
    await store.put("model.onnx", file.read_bytes())
    repository = tmp_path / "repository"
    repository.mkdir()
    inputs, outputs = (
        tuple(Tensor(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors)
        for tensors in (signature.inputs, signature.outputs)
    )
    served = ServedVersion(
        model="prepared",
        version=1,
        uri=store.uri("model.onnx"),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        inputs=inputs,
        outputs=outputs,
        classes=signature.classes,
        signature=b"",
        traceparent="",
    )
    server = Triton(
        tmp_path / "triton",
        tmp_path,
        TritonPorts(free_port(), free_port(), free_port()),
        environment_folder=TRITON_ENVIRONMENT,
        model_repository=repository,
        kafka_bootstrap=kafka_bootstrap,
    )
    address = f"127.0.0.1:{server.ports.grpc}"
    await server.start()
    try:
        async with (
            triton_server(address, ModelRepository(repository, store)) as control,
            triton.InferenceServerClient(address) as client,
        ):
            await control.load("prepared", [served])
            request = triton.InferInput("features", list(asked.shape), "FP32")
            request.set_data_from_numpy(asked.numpy())
            answer = await client.infer("prepared", [request])
    finally:
        await asyncio.shield(server.stop())
    with torch.no_grad():
        probabilities, labels = Classifier(model, (0, 1))(asked)
    assert asked.isnan().any()
    np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("label").reshape(-1), labels.numpy())
