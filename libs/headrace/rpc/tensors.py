"""Types of tensors between `headrace.tensors` and the contract's messages."""

from __future__ import annotations

from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.tensors import Dtype, Format, TensorType

_DTYPES: Final[dict[api.TensorDtype.ValueType, Dtype]] = {
    api.TENSOR_DTYPE_UINT8: "uint8",
    api.TENSOR_DTYPE_INT8: "int8",
    api.TENSOR_DTYPE_INT16: "int16",
    api.TENSOR_DTYPE_INT32: "int32",
    api.TENSOR_DTYPE_INT64: "int64",
    api.TENSOR_DTYPE_FLOAT16: "float16",
    api.TENSOR_DTYPE_FLOAT32: "float32",
    api.TENSOR_DTYPE_FLOAT64: "float64",
}
_FORMATS: Final[dict[api.TensorFormat.ValueType, Format]] = {
    api.TENSOR_FORMAT_UNSPECIFIED: "raw",
    api.TENSOR_FORMAT_RAW: "raw",
    api.TENSOR_FORMAT_PNG: "png",
    api.TENSOR_FORMAT_JPEG: "jpeg",
}
_DTYPE_NUMBERS: Final = {dtype: number for number, dtype in _DTYPES.items()}
_FORMAT_NUMBERS: Final = {
    "raw": api.TENSOR_FORMAT_RAW,
    "png": api.TENSOR_FORMAT_PNG,
    "jpeg": api.TENSOR_FORMAT_JPEG,
}


def from_tensor_type(message: api.TensorType) -> TensorType:
    """Return the type of a message that keeps the proto's own rules."""
    return TensorType(_DTYPES[message.dtype], tuple(message.shape), _FORMATS[message.format])


def to_tensor_type(tensor: TensorType) -> api.TensorType:
    """Return the same in the contract's words."""
    return api.TensorType(
        dtype=_DTYPE_NUMBERS[tensor.dtype], shape=tensor.shape, format=_FORMAT_NUMBERS[tensor.format]
    )
