"""What `deploy/triton/model_files.py` makes of programs of PyTorch's."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from tests.support.torch_models import scores_program
from torch import Tensor, nn

from headrace.model_formats import ModelFormat
from headrace.runtime.resources import deploy_path

ROWS = {"features": np.array([[1, 2, 3], [-1, 0, 0]], np.float32)}


@pytest.fixture
def model_files() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_files", deploy_path("triton/model_files.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_threaded() -> None:
    """A model sets the process's number of threads."""
    torch.set_num_threads(1)


class Named(nn.Module):
    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"twice": features * 2, "half": features / 2}


class Pair(nn.Module):
    def forward(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return features * weights, features


def exported(module: nn.Module, *inputs: Tensor) -> bytes:
    written = io.BytesIO()
    torch.export.save(torch.export.export(module, inputs), written)
    return written.getvalue()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.pt2"
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning")
@pytest.mark.parametrize("form", [ModelFormat.TORCHSCRIPT, ModelFormat.TORCH_EXPORT])
def test_a_program_answers(model_files: ModuleType, tmp_path: Path, form: ModelFormat) -> None:
    path = written(tmp_path, scores_program(form))
    answers = model_files.load(form, str(path), ["features"], ["scores"])(ROWS)
    assert answers["scores"].tolist() == [[-6, 6], [1, -1]]


def test_inputs_go_in_order_and_outputs_come_by_place_or_by_name(
    model_files: ModuleType, tmp_path: Path
) -> None:
    pair = written(tmp_path, exported(Pair(), torch.ones(2, 3), torch.zeros(2, 3)))
    answers = model_files.load("TORCH_EXPORT", str(pair), ["features", "weights"], ["product", "same"])(
        {"weights": np.full((2, 3), 10, np.float32), **ROWS}
    )
    assert answers["product"].tolist() == [[10, 20, 30], [-10, 0, 0]]
    assert answers["same"].tolist() == ROWS["features"].tolist()
    named = written(tmp_path, exported(Named(), torch.ones(2, 3)))
    answers = model_files.load("TORCH_EXPORT", str(named), ["features"], ["half", "twice"])(ROWS)
    assert answers["twice"][0].tolist() == [2, 4, 6]
    assert answers["half"][0].tolist() == [0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("outputs", "rows", "why"),
    [
        (["a", "b", "c"], ROWS, "it answers 1 tensors, the signature says 3"),
        (
            ["scores"],
            {"features": np.array([[b"red"]], object)},
            "the input features is texts, which no program of PyTorch's takes",
        ),
    ],
)
def test_what_does_not_fit_its_signature_is_said(
    model_files: ModuleType, tmp_path: Path, outputs: list[str], rows: dict[str, np.ndarray], why: str
) -> None:
    path = written(tmp_path, scores_program(ModelFormat.TORCH_EXPORT))
    with pytest.raises(ValueError, match=why):
        model_files.load("TORCH_EXPORT", str(path), ["features"], outputs)(rows)


def test_a_missing_output_is_said(model_files: ModuleType, tmp_path: Path) -> None:
    path = written(tmp_path, exported(Named(), torch.ones(2, 3)))
    with pytest.raises(TypeError, match="its output other is NoneType, and no tensor"):
        model_files.load("TORCH_EXPORT", str(path), ["features"], ["other"])(ROWS)


def test_a_file_that_is_no_program_is_said(model_files: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its file is no archive"):
        model_files.load("TORCHSCRIPT", str(written(tmp_path, b"no program")), ["features"], ["scores"])


def test_without_pytorch_it_is_said_where_to_put_it(
    model_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, scores_program(ModelFormat.TORCH_EXPORT))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="HEADRACE_TORCH_PATH tells Triton in which folder it is"):
        model_files.load("TORCH_EXPORT", str(path), ["features"], ["scores"])


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1, 2)), (2, (1, 2)), (4, (1, 4)), (21, (1, 4, 16, 21)), (64, (1, 4, 16, 64))]
)
def test_batches_on_a_gpu_have_few_sizes(
    model_files: ModuleType, largest: int, sizes: tuple[int, ...]
) -> None:
    assert model_files.ladder(largest) == sizes


class OnGpu(onnxruntime.InferenceSession):
    """A session that says that it is on a GPU, and counts the rows that it is asked for."""

    asked: ClassVar[list[tuple[int, int]]] = []

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", *super().get_providers()]

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.asked.append((id(self), len(inputs["pixels"])))
        answers: list[np.ndarray] = super().run(names, inputs)
        return answers


@pytest.mark.parametrize("convolution", [True, False])
def test_a_convolution_on_a_gpu_has_a_session_for_each_size(
    model_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convolution: bool
) -> None:
    """ONNX Runtime plans it anew whenever the size changes, which takes far longer than a batch."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnGpu)
    monkeypatch.setattr(OnGpu, "asked", [])
    path = tmp_path / "model.onnx"
    path.write_bytes(pictures(convolution=convolution))
    model = model_files.load("ONNX", str(path), ["pixels"], ["scores"], 16)
    pixels = np.arange(13 * 4, dtype=np.float32).reshape(13, 1, 2, 2)
    for rows in (3, 13, 1, 2, 13):
        answers = model({"pixels": pixels[:rows]})["scores"]
        np.testing.assert_array_equal(answers, 2 * pixels[:rows])
    sessions, sizes = zip(*OnGpu.asked, strict=True)
    assert sizes == ((4, 16, 1, 4, 16) if convolution else (3, 13, 1, 2, 13))
    assert len(set(sessions)) == (3 if convolution else 1)


def pictures(*, convolution: bool) -> bytes:
    """Pixels of one channel, doubled."""
    shape = ["rows", 1, 2, 2]
    two = helper.make_tensor("two", TensorProto.FLOAT, [1, 1, 1, 1], [2])
    graph = helper.make_graph(
        [helper.make_node("Conv" if convolution else "Mul", ["pixels", "two"], ["scores"])],
        "pictures",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)],
        [two],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
