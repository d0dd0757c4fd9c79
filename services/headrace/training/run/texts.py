"""Texts as an input of the exported model: the graph itself looks up their places among the categories.

The network sees numbers, of a text its place. Clients send the two apart: `features` in FP32 and `texts` in
BYTES, each in the schema's order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper
from torch import Tensor

from headrace.datasets import UNKNOWN_CATEGORY
from headrace.training.run.specification import Column

FEATURES: Final = "features"
TEXTS: Final = "texts"
# What a model is given that has texts in front of it.
VALUES: Final = "values"
_LOOKED_UP: Final = "looked_up"
# Operators for what is no number; its second version makes numbers of texts.
_ML_DOMAIN: Final = "ai.onnx.ml"
_ML_OPSET: Final = 2


def with_texts(
    model: onnx.ModelProto, columns: Sequence[Column], categories: Mapping[str, Sequence[str]]
) -> onnx.ModelProto:
    """Put in front of a model of `values` what makes them of `features`, if there are any, and `texts`."""
    nodes, constants, joined = [], [], []
    widths: list[int] = []
    texts = 0
    for is_text, group in itertools.groupby(columns, lambda column: column.is_text):
        if not is_text:
            joined.append(f"numbers_{len(widths)}")
            widths.append(sum(column.width for column in group))
            continue
        for column in group:
            constants.append(_constant(f"index_{texts}", [texts]))
            nodes += [
                helper.make_node("Gather", [TEXTS, f"index_{texts}"], [f"text_{texts}"], axis=1),
                _looking_up(f"text_{texts}", f"place_{texts}", categories[column.name]),
            ]
            joined.append(f"place_{texts}")
            texts += 1
    inputs = [_tensor(TEXTS, TensorProto.STRING, texts)]
    if widths:
        inputs.insert(0, _tensor(FEATURES, TensorProto.FLOAT, sum(widths)))
        constants.append(_constant("widths", widths))
        parts = [f"numbers_{index}" for index, _ in enumerate(widths)]
        nodes.append(helper.make_node("Split", [FEATURES, "widths"], parts, axis=1))
    nodes.append(helper.make_node("Concat", joined, [_LOOKED_UP], axis=1))
    output = _tensor(_LOOKED_UP, TensorProto.FLOAT, sum(widths) + texts)
    front = helper.make_model(
        helper.make_graph(nodes, "texts", inputs, [output], constants),
        opset_imports=[*model.opset_import, helper.make_opsetid(_ML_DOMAIN, _ML_OPSET)],
        ir_version=model.ir_version,
    )
    return compose.merge_models(front, model, io_map=[(_LOOKED_UP, VALUES)])


def requested(
    rows: Tensor, columns: Sequence[Column], categories: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[Any]]:
    """What a client sends for rows of values: the model's inputs, by name."""
    values = rows.numpy()
    numbers, texts, first = [], [], 0
    for column in columns:
        part = values[:, first : first + column.width]
        first += column.width
        if column.is_text:
            texts.append([_word(place, categories[column.name]) for place in part[:, 0]])
        else:
            numbers.append(part)
    inputs: dict[str, NDArray[Any]] = {}
    if numbers:
        inputs[FEATURES] = np.concatenate(numbers, axis=1)
    if texts:
        inputs[TEXTS] = np.array(texts, dtype=object).T
    return inputs


def _looking_up(text: str, place: str, known: Sequence[str]) -> onnx.NodeProto:
    # The empty text is a missing value.
    return helper.make_node(
        "LabelEncoder",
        [text],
        [place],
        domain=_ML_DOMAIN,
        keys_strings=["", *known],
        values_floats=[math.nan, *map(float, range(len(known)))],
        default_float=float(UNKNOWN_CATEGORY),
    )


def _word(place: float, known: Sequence[str]) -> str:
    return "" if math.isnan(place) else known[int(place)]


def _tensor(name: str, kind: int, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["rows", width])


def _constant(name: str, numbers: Sequence[int]) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers)
