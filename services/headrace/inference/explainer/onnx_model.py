"""Models of ONNX, which answer and have no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headrace.inference.domain.attribution import NoGradients, Numbers, Texts
from headrace.inference.explainer.frames import Task
from headrace.inference.explainer.graph import is_continuous
from headrace.inference.explainer.models import ModelFailed, of_the_model

# ONNX Runtime's messages may hold a row's values.
_FATAL_ONLY: Final = 4


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """One that ONNX Runtime evaluates, on the processor."""

    numbers: str
    texts: str
    output: str
    session: onnxruntime.InferenceSession
    continuous: bool
    differentiable: bool = False

    @classmethod
    def load(cls, task: Task) -> OnnxModel:
        """Raises ModelFailed, MemoryError."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        with of_the_model():
            continuous = is_continuous(Path(task.file), frozenset((task.numbers, task.texts)), task.output)
            session = onnxruntime.InferenceSession(task.file, options, providers=["CPUExecutionProvider"])
        return cls(task.numbers, task.texts, task.output, session, continuous)

    def answer(self, numbers: Numbers, texts: Texts) -> Numbers:
        """As `Model` has it."""
        inputs: dict[str, NDArray[np.generic]] = {}
        if self.numbers:
            inputs[self.numbers] = numbers.astype(np.float32)
        if self.texts:
            inputs[self.texts] = np.ascontiguousarray(texts)
        with of_the_model():
            output = np.asarray(self.session.run([self.output], inputs)[0], np.float64)
        if not np.isfinite(output).all():
            raise ModelFailed
        return output.reshape(len(numbers), -1)

    def gradients(self, numbers: Numbers, place: int) -> Numbers:
        """None."""
        raise NoGradients

    def close(self) -> None:
        """Nothing."""
