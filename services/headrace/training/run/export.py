"""The trained model as ONNX: raw features in, answers in the label's own terms out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from headrace.training.run.errors import ModelTooLarge, RunError
from headrace.training.run.model import Normalised
from headrace.training.run.report import Signature
from headrace.training.run.report import Tensor as TensorSpec
from headrace.training.run.specification import Dataset
from headrace.training.run.texts import FEATURES, TEXTS, VALUES, requested, with_texts

TOLERANCE = 1e-4
OPSET = 17
# Rows that the exported model is compared on.
SAMPLE_ROWS = 16
# A Protobuf message, which an ONNX file is, ends at 2 GiB.
MAX_FILE_BYTES = 2_000_000_000


class Classifier(nn.Module):
    """Probabilities, and the class with the largest one, as its own value."""

    classes: Tensor

    def __init__(self, model: Normalised, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("classes", torch.tensor(classes, dtype=torch.int64))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Raw features [rows, columns] to probabilities [rows, classes] and labels [rows]."""
        probabilities = torch.softmax(self.model(features), dim=-1)
        return probabilities, self.classes[probabilities.argmax(dim=-1)]


class Regressor(nn.Module):
    """A number, in the label's unit."""

    def __init__(self, model: Normalised) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        """Raw features [rows, columns] to predictions [rows, 1]."""
        return self.model.in_label_unit(self.model(features))


def require_exportable(model: Normalised) -> None:
    """Raise ModelTooLarge, before the model is trained in vain, where it fits into no ONNX file."""
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if size > MAX_FILE_BYTES:
        raise ModelTooLarge(
            f"the model takes {size:,} bytes, and an ONNX file {MAX_FILE_BYTES:,} at most; resize large "
            "images to fewer values, or make the first hidden layer smaller"
        )


def export(
    model: Normalised,
    dataset: Dataset,
    categories: Mapping[str, tuple[str, ...]],
    sample: Tensor,
    path: Path,
    *,
    classified: bool,
) -> Signature:
    """Write `path`, and check that it answers as the model does. Raises RunError where it does not.

    `categories`: those of each feature that is text, of which the rows in `sample` have places there.
    `classified`: the model tells the label's classes apart. One that was trained on a number answers with a
    number, also where the label has classes.
    """
    texts = dataset.texts()
    inputs = tuple(
        TensorSpec(name=name, datatype=datatype, shape=(-1, width))
        for name, datatype, width in (
            (FEATURES, "FP32", dataset.width - len(texts)),
            (TEXTS, "BYTES", len(texts)),
        )
        if width
    )
    module: nn.Module
    outputs: tuple[TensorSpec, ...]
    if classified:
        # Classes that are no whole numbers are answered by their place in the list.
        values = [json.loads(text) for text in dataset.label.classes]
        whole = all(isinstance(value, int) for value in values)
        classes = tuple(int(value) for value in values) if whole else tuple(range(len(values)))
        module = Classifier(model, classes)
        outputs = (
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(classes))),
            TensorSpec(name="label", datatype="INT64", shape=(-1,)),
        )
    else:
        module = Regressor(model)
        outputs = (TensorSpec(name="prediction", datatype="FP32", shape=(-1, 1)),)

    module = module.cpu().eval()
    rows = sample[:SAMPLE_ROWS].cpu()
    _write(module, rows, VALUES if texts else FEATURES, [tensor.name for tensor in outputs], path)
    if texts:
        onnx.save(with_texts(onnx.load(path), dataset.features, categories), path)
    _compare(module, rows, requested(rows, dataset.features, categories), path)
    told = dataset.label.classes if classified else ()
    return Signature(inputs=inputs, outputs=outputs, features=dataset.numbers(), classes=told, texts=texts)


def _write(module: nn.Module, rows: Tensor, input_name: str, outputs: list[str], path: Path) -> None:
    with warnings.catch_warnings():
        # That it is the older of the two exporters is known (ADR 10).
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (rows,),
            path,
            input_names=[input_name],
            output_names=outputs,
            dynamic_axes={name: {0: "rows"} for name in (input_name, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )


def _compare(module: nn.Module, rows: Tensor, inputs: dict[str, NDArray[Any]], path: Path) -> None:
    written = onnx.load(path)
    onnx.checker.check_model(written)
    with torch.no_grad():
        expected = module(rows)
    answers: tuple[Tensor, ...] = expected if isinstance(expected, tuple) else (expected,)
    found = ReferenceEvaluator(written).run(None, inputs)
    for right, exported in zip(answers, found, strict=True):
        if not np.allclose(right.numpy(), exported, rtol=TOLERANCE, atol=TOLERANCE):
            raise RunError("the exported ONNX model does not answer like the trained one")
