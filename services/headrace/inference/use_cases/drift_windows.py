"""Logged requests as a window of columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from headrace.inference.domain.deployments import ANSWER, ServedVersion
from headrace.inference.domain.drift import Floats, Window
from headrace.inference.use_cases.drift_ports import LoggedRequest, Tensors
from headrace.values import counted_text

# The inputs whose columns a signature names.
_FEATURES: Final = "features"
_TEXTS: Final = "texts"


def window_of(requests: Sequence[LoggedRequest], version: ServedVersion) -> Window:
    """What was asked of the version and answered, of all rows of the requests.

    Inputs that were too large to be logged are left out, as are those that do not have the signature's form.
    """
    numbers: list[Floats] = []
    texts: list[Sequence[object]] = []
    answers: list[float] = []
    rows = 0
    for request in requests:
        rows += request.rows
        data = _table(request.inputs, _FEATURES, request.rows, len(version.features))
        if data is not None:
            # As the log has them: "NaN" is a number's text.
            numbers.append(np.array(data, np.float32).reshape(-1, len(version.features)))
        data = _table(request.inputs, _TEXTS, request.rows, len(version.texts))
        if data is not None:
            texts.append(data)
        answers.extend(_answers(request.outputs, request.rows))
    columns = np.concatenate(numbers) if numbers else np.empty((0, len(version.features)), np.float32)
    width = len(version.texts)
    return Window(
        rows,
        {name: columns[:, place] for place, name in enumerate(version.features)},
        {
            name: [counted_text(str(text)) for data in texts for text in data[place::width]]
            for place, name in enumerate(version.texts)
        },
        answers,
    )


def _table(tensors: Tensors, name: str, rows: int, width: int) -> Sequence[object] | None:
    """An input's values row by row; None where it has not so many."""
    data = _data(tensors.get(name))
    return data if data and len(data) == rows * width else None


def _answers(outputs: Tensors, rows: int) -> list[float]:
    for name in sorted(outputs, key=lambda name: name != ANSWER):
        data = _data(outputs[name])
        if len(data) == rows:
            numbers = [float(value) for value in data if isinstance(value, int | float)]
            return [number for number in numbers if math.isfinite(number)]
    return []


def _data(tensor: Mapping[str, object] | None) -> Sequence[object]:
    data = tensor.get("data") if tensor else None
    return data if isinstance(data, list) else []
