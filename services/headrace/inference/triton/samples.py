"""Requests to measure a model with: what its clients asked, where the prediction log tells, else zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.inference_forms import read_json
from headrace.inference.triton.liveness import row_of_zeros
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.inference.use_cases.request_ports import WrongRequest
from headrace.inference.use_cases.tuning_ports import SampleRequest


def sample_request(model: str, version: ServedVersion, logged: Sequence[LoggedPrediction]) -> SampleRequest:
    """A ModelInferRequest for `model`, of the newest of these that has all its values."""
    names = {tensor.name for tensor in version.inputs}
    fitting = [prediction for prediction in logged if set(prediction.inputs) == names]
    rows = max((_rows(prediction.inputs) for prediction in fitting), default=1)
    for prediction in fitting:
        try:
            request = read_json(_document(prediction.inputs))
        except WrongRequest:
            # Large tensors are logged by shape alone, and what JSON has no number for as text.
            continue
        request.model_name, request.model_version = model, str(version.version)
        count = _rows(prediction.inputs)
        source = f"one of the prediction log, {count} {'row' if count == 1 else 'rows'}"
        return SampleRequest(request.SerializeToString(), rows, source)
    zeros = row_of_zeros(model, version.version, version.inputs)
    return SampleRequest(zeros.SerializeToString(), rows, "one row of zeros, for none is logged")


def _rows(inputs: Mapping[str, object]) -> int:
    """Rows of a request; the first size of any of its tensors."""
    shapes = [tensor["shape"] for tensor in inputs.values() if isinstance(tensor, Mapping)]
    return max((int(shape[0]) for shape in shapes if shape), default=1)


def _document(inputs: Mapping[str, object]) -> bytes:
    """The request as REST has it."""
    tensors = [
        {"name": name, **tensor, "data": _values(tensor)}
        for name, tensor in inputs.items()
        if isinstance(tensor, Mapping)
    ]
    return orjson.dumps({"inputs": tensors})


def _values(tensor: Mapping[str, object]) -> list[object]:
    """The log has every number as a float."""
    data, datatype = tensor["data"], str(tensor["datatype"])
    assert isinstance(data, list)
    if datatype == "BOOL":
        return [bool(value) for value in data]
    if datatype.startswith(("INT", "UINT")):
        return [int(value) for value in data]
    return data
