"""The model as every server here runs it: onnxruntime with one thread, as in deploy/triton/model.py."""

import numpy as np
import onnxruntime


class OnnxModel:
    """30 float32 features a row to two probabilities and a label."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name, a row for each row."""
        names = ["probabilities", "label"]
        return dict(zip(names, self._session.run(names, {"features": features}), strict=True))
