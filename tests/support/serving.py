"""An exported model in a Triton server of its own."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray

from headrace.embedded.parts import free_port
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.serving import DEFAULTS
from headrace.inference.triton.fleet import triton_fleet
from headrace.inference.triton.repository import ModelRepository
from headrace.objects import ObjectStore
from headrace.training.run.report import Signature

TRITON_ENVIRONMENT = Path(__file__).parents[2] / ".venv-triton"


async def answered(
    kafka_bootstrap: str,
    folder: Path,
    model: bytes,
    signature: Signature,
    features: NDArray[np.float32],
    texts: NDArray[np.object_] | None = None,
) -> triton.InferResult:
    """What a Triton server that serves the model answers to these rows."""
    store = ObjectStore.from_uri((folder / "store").as_uri())
    await store.put("model.onnx", model)
    repository = folder / "repository"
    await asyncio.to_thread(repository.mkdir)
    inputs, outputs = (
        tuple(Tensor(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors)
        for tensors in (signature.inputs, signature.outputs)
    )
    served = ServedVersion(
        model="served",
        version=1,
        uri=store.uri("model.onnx"),
        sha256=hashlib.sha256(model).hexdigest(),
        inputs=inputs,
        outputs=outputs,
        classes=signature.classes,
        signature=b"",
        traceparent="",
    )
    server = Triton(
        folder / "triton",
        folder,
        TritonPorts(free_port(), free_port(), free_port()),
        environment_folder=TRITON_ENVIRONMENT,
        model_repository=repository,
        kafka_bootstrap=kafka_bootstrap,
    )
    address = f"127.0.0.1:{server.ports.grpc}"
    await server.start()
    try:
        async with (
            triton_fleet([address], ModelRepository(repository, store)) as control,
            triton.InferenceServerClient(address) as client,
        ):
            await control.load("served", [served], DEFAULTS, {0})
            requests = [_input("features", "FP32", features)]
            if texts is not None:
                requests.append(_input("texts", "BYTES", texts))
            return await client.infer("served", requests)
    finally:
        await asyncio.shield(server.stop())


def _input(name: str, datatype: str, values: NDArray[Any]) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor
