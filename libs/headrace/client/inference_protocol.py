"""The Open Inference Protocol v2 over gRPC, for models with one input of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from headrace.errors import FieldViolation, InvalidArgument

INPUT: Final = "features"
_WANTED: Final = "rows of numbers: [[1.0, 2.0], [3.0, 4.0]]"


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
        features: Sequence[Sequence[float]] | NDArray[np.floating[Any]],
        *,
        version: str,
        prediction_id: str,
        subject: str,
    ) -> Prediction:
        """Ask for one batch; the errors are those of `HeadraceClient.predict`."""
        rows = _rows(features)
        request = service_pb2.ModelInferRequest(
            model_name=deployment, model_version=version, id=prediction_id
        )
        if subject:
            request.parameters["subject"].string_param = subject
        request.inputs.add(name=INPUT, datatype="FP32", shape=rows.shape)
        request.raw_input_contents.append(rows.tobytes())
        response = await self._stub.ModelInfer(request)
        return Prediction(
            prediction_id=response.id or prediction_id,
            deployment=response.model_name,
            version=response.model_version,
            outputs={
                output.name: _array(output, raw)
                for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
            },
        )


def _rows(features: object) -> NDArray[np.float32]:
    try:
        rows = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise _invalid(f"{_WANTED}, all of one length ({error})") from error
    if rows.ndim == 1 and rows.size:
        rows = rows[np.newaxis, :]
    if rows.ndim != 2 or not rows.size:
        raise _invalid(f"{_WANTED}; these have the shape {list(rows.shape)}")
    return rows


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
