"""BentoML's service for one ONNX model, whose path is in MODEL_PATH."""

import os
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from onnx_model import OnnxModel


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Served:
    """Answers in JSON."""

    def __init__(self):
        self._model = OnnxModel(os.environ["MODEL_PATH"])

    @bentoml.api
    def infer(self, features: Annotated[np.ndarray, DType("float32")]) -> dict[str, list]:
        """Run the model."""
        return {name: value.tolist() for name, value in self._model(features).items()}
