"""Calls a model for many rows at once with Triton's asyncio gRPC client; nothing of Headrace's is needed.

pip install numpy 'tritonclient[grpc]'
python predict_asyncio.py HOST:PORT MODEL '[[17.99, 10.38, ...], ...]'
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
import tritonclient.grpc.aio as triton

DEADLINE_SECONDS = 10
# Requests in flight together become one batch in Triton; beyond some, they only wait.
IN_FLIGHT = 64


async def predict(address: str, model: str, rows: list[list[float]]) -> None:
    """Ask about each row in a request of its own; print the outputs and who answered, in the rows' order."""
    turns = asyncio.Semaphore(IN_FLIGHT)
    async with triton.InferenceServerClient(address) as client:

        async def ask(row: list[float]) -> triton.InferResult:
            features = triton.InferInput("features", [1, len(row)], "FP32")
            features.set_data_from_numpy(np.array([row], dtype=np.float32))
            async with turns:
                # The deadline travels with the call: when it has passed, the model is not run any more.
                return await client.infer(model, [features], client_timeout=DEADLINE_SECONDS)

        results = await asyncio.gather(*map(ask, rows))
    for result in results:
        answer = result.get_response()
        values = {output.name: result.as_numpy(output.name).ravel().tolist() for output in answer.outputs}
        print(values, "version", answer.model_version, "prediction id", answer.id)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python predict_asyncio.py HOST:PORT MODEL '[[1.0, 2.0, ...], ...]'")
    try:
        asyncio.run(predict(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
    except triton.InferenceServerException as error:
        sys.exit(f"{error.status()}: {error.message()}")
