"""Models of each format on a GPU, in a real Triton, where CUDA is present: what they answer without one."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc.aio as triton
from tests.support.python_packages import scores_package
from torch import Tensor, nn

from headrace.embedded.parts import free_port
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.inference.domain import deployments
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.serving import DEFAULTS
from headrace.inference.triton.repository import ModelRepository
from headrace.inference.triton.server import TritonServer
from headrace.model_formats import ModelFormat
from headrace.objects import ObjectStore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not present")

TRITON_ENVIRONMENT = Path(__file__).parents[3] / ".venv-triton"
# What a model may take of the machine's memory; what CUDA only reserves does not count.
MODEL_MEMORY_BYTES = 8 << 30
# Less than what CUDA takes on the GPU for each process that uses it.
CONTEXT_BYTES = 100 << 20
PIXELS = np.random.default_rng(7).random((5, 3, 16, 16), np.float32)


class Pictures(nn.Module):
    """Pictures to two scores, by a convolution and a product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.layers(pixels)
        return scores


def exported(form: ModelFormat) -> bytes:
    model, example = Pictures().eval(), torch.from_numpy(PIXELS)
    written = io.BytesIO()
    with warnings.catch_warnings():
        # Of the older exporters, which what is served may have been written by.
        warnings.simplefilter("ignore")
        match form:
            case ModelFormat.ONNX:
                names = {"input_names": ["pixels"], "output_names": ["scores"]}
                rows = {"pixels": {0: "rows"}, "scores": {0: "rows"}}
                torch.onnx.export(model, (example,), written, dynamo=False, dynamic_axes=rows, **names)
            case ModelFormat.TORCHSCRIPT:
                torch.jit.save(torch.jit.trace(model, (example,)), written)
            case _:
                rows = ({0: torch.export.Dim("rows", max=64)},)
                torch.export.save(torch.export.export(model, (example,), dynamic_shapes=rows), written)
    return written.getvalue()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Triton]:
    part = Triton(
        tmp_path / "triton",
        tmp_path / "logs",
        TritonPorts(free_port(), free_port(), free_port()),
        environment_folder=TRITON_ENVIRONMENT,
        model_repository=tmp_path / "models",
        # Nobody listens there: the prediction log waits, and callers do not.
        kafka_bootstrap=f"127.0.0.1:{free_port()}",
        model_memory_bytes=MODEL_MEMORY_BYTES,
    )
    await part.start()
    yield part
    await part.stop()


async def answer(
    server: Triton,
    folder: Path,
    form: ModelFormat,
    data: bytes,
    asked: tuple[str, np.ndarray],
    answered: tuple[str, int],
) -> np.ndarray:
    """Load a version and ask it."""
    store = ObjectStore.from_uri((folder / "objects").as_uri())
    await store.put(form.file, data)
    (given, array), (got, size) = asked, answered
    version = ServedVersion(
        model="m",
        version=1,
        uri=store.uri(form.file),
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=(deployments.Tensor(given, "FP32", (-1, *array.shape[1:])),),
        outputs=(deployments.Tensor(got, "FP32", (-1, size)),),
        classes=(),
        signature=b"",
        traceparent="",
        format=form,
    )
    await ModelRepository(folder / "models", store).put("m", [version], DEFAULTS)
    address = f"127.0.0.1:{server.ports.grpc}"
    async with grpc.aio.insecure_channel(address) as channel:
        await TritonServer(channel).load("m")
    tensor = triton.InferInput(given, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    async with triton.InferenceServerClient(address) as client:
        answers = await client.infer("m", [tensor])
    found = answers.as_numpy(got)
    assert found is not None
    return found


@pytest.mark.parametrize("form", [ModelFormat.ONNX, ModelFormat.TORCHSCRIPT, ModelFormat.TORCH_EXPORT])
async def test_a_model_answers_on_the_gpu_what_it_does_without(
    server: Triton, tmp_path: Path, form: ModelFormat
) -> None:
    with torch.inference_mode():
        expected = Pictures()(torch.from_numpy(PIXELS)).numpy()
    free, _ = torch.cuda.mem_get_info()
    found = await answer(server, tmp_path, form, exported(form), ("pixels", PIXELS), ("scores", 2))
    assert free - torch.cuda.mem_get_info()[0] > CONTEXT_BYTES
    np.testing.assert_allclose(found, expected, atol=1e-5)


async def test_a_package_finds_the_gpu(server: Triton, tmp_path: Path) -> None:
    """Its process is given the devices of Triton's, and its bound leaves CUDA what it reserves."""
    load = "import ctypes; self.cuda = ctypes.CDLL('libcuda.so.1'); assert self.cuda.cuInit(0) == 0"
    count = "count = ctypes.c_int(); assert self.cuda.cuDeviceGetCount(ctypes.byref(count)) == 0; "
    deed = f"import ctypes; {count}features = features * np.float32(count.value)"
    data = scores_package(tmp_path / "package", load=load, deed=deed)
    row = np.array([[1, 2, 3]], np.float32)
    found = await answer(server, tmp_path, ModelFormat.PYTHON, data, ("features", row), ("probabilities", 2))
    assert found.tolist() == [[-6 * torch.cuda.device_count(), 6 * torch.cuda.device_count()]]
