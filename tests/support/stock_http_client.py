"""Calls every method of the protocol that Triton's own HTTP client has, and prints the answers as JSON.

A program, for the environment that has that client: `python stock_http_client.py ADDRESS MODEL VERSION`.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def answers(address: str, model: str, version: str) -> dict[str, object]:
    client = InferenceServerClient(address)
    tensor = InferInput("features", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 3), dtype=np.float32))
    outputs = [InferRequestedOutput("label")]

    def infer(**options: str) -> dict[str, object]:
        result = client.infer(model, [tensor], outputs=outputs, **options)
        answer = result.get_response()
        label = result.as_numpy("label").tolist()
        return {"version": answer["model_version"], "id": answer.get("id"), "label": label}

    try:
        client.infer("nobody", [tensor])
        unknown = ""
    except InferenceServerException as error:
        unknown = f"{error.status()} {error.message()}"
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata()["name"],
        "model_ready": client.is_model_ready(model),
        "version_ready": client.is_model_ready(model, version),
        "other_version_ready": client.is_model_ready(model, "9"),
        "versions": client.get_model_metadata(model)["versions"],
        "inputs": client.get_model_metadata(model, version)["inputs"],
        "batch": client.get_model_config(model)["max_batch_size"],
        "index": [entry for entry in client.get_model_repository_index() if entry["name"] == model],
        "inferred": infer(request_id="mine"),
        "version_inferred": infer(model_version=version, request_id="named"),
        "compressed": infer(request_id="small", request_compression_algorithm="gzip"),
        "unknown": unknown,
    }


if __name__ == "__main__":
    print(json.dumps(answers(*sys.argv[1:])))
