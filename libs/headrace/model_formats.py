"""Formats that models are served in."""

from __future__ import annotations

import enum
from typing import Final


class ModelFormat(enum.StrEnum):
    """How a version's model file is loaded."""

    ONNX = "ONNX"
    TORCHSCRIPT = "TORCHSCRIPT"
    TORCH_EXPORT = "TORCH_EXPORT"
    PYTHON = "PYTHON"

    @property
    def file(self) -> str:
        """The model file's name among the version's artifacts."""
        return _FILES[self]


_FILES: Final = {
    ModelFormat.ONNX: "model.onnx",
    ModelFormat.TORCHSCRIPT: "model.pt",
    ModelFormat.TORCH_EXPORT: "model.pt2",
    ModelFormat.PYTHON: "model.zip",
}
