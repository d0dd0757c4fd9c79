"""The benchmarks' ONNX model as a Python package: what deploy/triton does with the file, behind a pipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime


class Step:
    """Runs `model.onnx`, which the benchmark lays beside it."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, arrays), strict=True))
