"""The Open Inference Protocol v2 over gRPC, for models with one input of numbers, one of texts, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from headrace.errors import FieldViolation, InvalidArgument

# Which model a request is for: then deploy/envoy/version_stamp.lua does not wait for the whole request.
MODEL_HEADER: Final = "headrace-model"
NUMBERS: Final = "features"
TEXTS: Final = "texts"
MAX_SEGMENT_BYTES: Final = 64
_WANTED: Final = 'rows of numbers and texts: [[1.0, 2.0, "red"], [3.0, null, "blue"]]'

# One row of features: None is a missing number; a missing text is the empty one.
Row: TypeAlias = Sequence[float | str | None]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer. `outputs` by tensor name, with the batch as first dimension."""

    prediction_id: str
    deployment: str
    version: str
    outputs: Mapping[str, NDArray[Any]]


class InferenceProtocol:
    """Asks models through Envoy."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def infer(
        self,
        deployment: str,
        features: Sequence[Row] | NDArray[np.floating[Any]],
        *,
        version: str,
        prediction_id: str,
        subject: str,
        segment: str = "",
    ) -> Prediction:
        """Ask for one batch; the errors are those of `HeadraceClient.predict`."""
        request = infer_request(
            deployment,
            features,
            version=version,
            prediction_id=prediction_id,
            subject=subject,
            segment=segment,
        )
        response = await self._stub.ModelInfer(request, metadata=((MODEL_HEADER, deployment),))
        return prediction_from(response, prediction_id)


def infer_request(
    deployment: str,
    features: Sequence[Row] | NDArray[np.floating[Any]],
    *,
    version: str,
    prediction_id: str,
    subject: str,
    segment: str = "",
) -> service_pb2.ModelInferRequest:
    """A request for one batch. Raises InvalidArgument INVALID_FEATURES, INVALID_SEGMENT."""
    numbers, texts = columns(features)
    request = service_pb2.ModelInferRequest(model_name=deployment, model_version=version, id=prediction_id)
    if subject:
        request.parameters["subject"].string_param = subject
    if segment:
        if len(segment.encode(errors="replace")) > MAX_SEGMENT_BYTES or not segment.isprintable():
            description = f"must be a text of at most {MAX_SEGMENT_BYTES} bytes without control characters"
            raise InvalidArgument(
                "INVALID_SEGMENT",
                f"the segment {description}",
                fields=[FieldViolation("segment", description)],
            )
        request.parameters["segment"].string_param = segment
    if numbers is not None:
        request.inputs.add(name=NUMBERS, datatype="FP32", shape=numbers.shape)
        request.raw_input_contents.append(numbers.tobytes())
    if texts is not None:
        request.inputs.add(name=TEXTS, datatype="BYTES", shape=texts.shape)
        request.raw_input_contents.append(serialize_byte_tensor(texts).item())
    return request


def prediction_from(response: service_pb2.ModelInferResponse, prediction_id: str) -> Prediction:
    """A response's content; `prediction_id` is the request's, for a response without one."""
    return Prediction(
        prediction_id=response.id or prediction_id,
        deployment=response.model_name,
        version=response.model_version,
        outputs={
            output.name: _array(output, raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        },
    )


def columns(features: object) -> tuple[NDArray[np.float32] | None, NDArray[np.object_] | None]:
    """Split rows into numbers and texts: a column with a text in any row is one of texts.

    Raises InvalidArgument INVALID_FEATURES.
    """
    try:
        numeric = isinstance(features, np.ndarray) and features.dtype.kind in "biuf"
        values = np.asarray(features, dtype=None if numeric else object)
        if values.ndim == 1 and values.size:
            values = values[np.newaxis, :]
        if values.ndim != 2 or not values.size:
            raise _invalid(f"{_WANTED}; these have the shape {list(values.shape)}")
        is_text = np.zeros(values.shape[1], bool)
        if not numeric:
            is_text[:] = [any(isinstance(value, str) for value in column) for column in values.T]
        numbers = values[:, ~is_text].astype(np.float32)
        texts = np.array([_text(value) for value in values[:, is_text].flat], dtype=object)
    except (TypeError, ValueError) as error:
        raise _invalid(f"{_WANTED}, all of one length ({error})") from error
    return numbers if numbers.size else None, texts.reshape(len(values), -1) if texts.size else None


def _text(value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str):
        raise TypeError("a column has both numbers and texts")
    return value.encode()


def _invalid(description: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_FEATURES",
        f"features must be {description}",
        fields=[FieldViolation("features", description)],
    )


def _array(output: Any, raw: bytes) -> NDArray[Any]:
    if output.datatype == "BYTES":
        flat = np.array([item.decode() for item in deserialize_bytes_tensor(raw)], dtype=object)
    else:
        flat = np.frombuffer(raw, dtype=triton_to_np_dtype(output.datatype))
    return flat.reshape(list(output.shape))
