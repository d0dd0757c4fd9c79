"""Formats of models between `headrace.model_formats` and the contract's messages."""

from __future__ import annotations

from typing import Final

from headrace.api.registry.v1 import registry_pb2 as api
from headrace.errors import InvalidArgument
from headrace.model_formats import ModelFormat

_FORMATS: Final[dict[api.ModelFormat.ValueType, ModelFormat]] = {
    api.MODEL_FORMAT_UNSPECIFIED: ModelFormat.ONNX,
    api.MODEL_FORMAT_ONNX: ModelFormat.ONNX,
    api.MODEL_FORMAT_TORCHSCRIPT: ModelFormat.TORCHSCRIPT,
    api.MODEL_FORMAT_TORCH_EXPORT: ModelFormat.TORCH_EXPORT,
    api.MODEL_FORMAT_PYTHON: ModelFormat.PYTHON,
}
_NUMBERS: Final = {form: number for number, form in _FORMATS.items()}


def from_model_format(number: api.ModelFormat.ValueType) -> ModelFormat:
    """A message's format; ONNX where it names none. Raises InvalidArgument UNKNOWN_MODEL_FORMAT."""
    try:
        return _FORMATS[number]
    except KeyError:
        raise InvalidArgument(
            "UNKNOWN_MODEL_FORMAT", f"this release knows no model format {number}; a later one may"
        ) from None


def to_model_format(form: ModelFormat) -> api.ModelFormat.ValueType:
    """The same in the contract's words."""
    return _NUMBERS[form]
