"""What `deploy/triton/model_files.py` makes of programs of PyTorch's."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
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
