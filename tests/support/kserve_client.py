"""Calls a model by KServe's own clients, gRPC and REST, and prints the answers as JSON.

A program, for the environment that has them: `python kserve_client.py ADDRESS MODEL`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, InferResponse
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def request(model: str, *, binary: bool) -> InferRequest:
    features = InferInput("features", [1, 3], "FP32")
    features.set_data_from_numpy(np.ones((1, 3), dtype=np.float32), binary_data=binary)
    label = RequestedOutput("label", {"binary_data": True} if binary else {})
    return InferRequest(model, [features], request_id="mine", request_outputs=[label])


async def inferred(answer: Awaitable[InferResponse]) -> dict[str, object]:
    response = await answer
    [label] = (output.as_numpy().tolist() for output in response.outputs)
    return {"version": response.model_version, "id": response.id, "label": label}


async def by_grpc(address: str, model: str) -> dict[str, object]:
    async with InferenceGRPCClient(address) as client:
        try:
            await client.infer(request("nobody", binary=False))
            unknown = ""
        except grpc.aio.AioRpcError as error:
            unknown = f"{error.code().name} {error.details()}"
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(model),
            "inferred": await inferred(client.infer(request(model, binary=False))),
            "binary": await inferred(client.infer(request(model, binary=True))),
            "unknown": unknown,
        }


async def by_rest(address: str, model: str) -> dict[str, object]:
    url = f"http://{address}"
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        try:
            await client.infer(url, request("nobody", binary=False), model_name="nobody")
            unknown = ""
        except httpx.HTTPStatusError as error:
            unknown = f"{error.response.status_code} {str(error).partition(',')[0]}"
        return {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, model),
            "inferred": await inferred(client.infer(url, request(model, binary=False), model_name=model)),
            "binary": await inferred(client.infer(url, request(model, binary=True), model_name=model)),
            "unknown": unknown,
        }


async def main(address: str, model: str) -> None:
    answers = {"grpc": await by_grpc(address, model), "rest": await by_rest(address, model)}
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
