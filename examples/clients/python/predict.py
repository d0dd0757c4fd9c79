"""Calls a model with Triton's blocking gRPC client; nothing of Headrace's is needed.

pip install numpy 'tritonclient[grpc]'
python predict.py HOST:PORT MODEL '[17.99, 10.38, ...]'
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton

DEADLINE_SECONDS = 10


def predict(address: str, model: str, row: list[float]) -> None:
    """Ask about one row of features, and print each output and who answered."""
    features = triton.InferInput("features", [1, len(row)], "FP32")
    features.set_data_from_numpy(np.array([row], dtype=np.float32))
    with triton.InferenceServerClient(address) as client:
        # The deadline travels with the call: when it has passed, the model is not run any more.
        result = client.infer(model, [features], client_timeout=DEADLINE_SECONDS)
    answer = result.get_response()
    for output in answer.outputs:
        print(output.name, result.as_numpy(output.name).ravel().tolist())
    print("version", answer.model_version, "prediction id", answer.id)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python predict.py HOST:PORT MODEL '[1.0, 2.0, ...]'")
    try:
        predict(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    except triton.InferenceServerException as error:
        sys.exit(f"{error.status()}: {error.message()}")
