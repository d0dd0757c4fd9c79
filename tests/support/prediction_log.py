"""The inference service as an erasure sees it, played in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health


class PlayedLog(inference_pb2_grpc.InferenceServiceServicer):
    """Has four predictions of whoever is to be erased."""

    count = 4

    def __init__(self, target: str) -> None:
        self.target = target
        self.asked: list[inference_pb2.ErasePredictionsRequest] = []

    async def ErasePredictions(self, request: Any, context: Any) -> inference_pb2.ErasePredictionsResponse:
        self.asked.append(request)
        return inference_pb2.ErasePredictionsResponse(prediction_count=self.count)


@asynccontextmanager
async def play_log(port: int) -> AsyncIterator[PlayedLog]:
    log = PlayedLog(f"127.0.0.1:{port}")
    binding = ServiceBinding(
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        log,
        "headrace.api.inference.v1.InferenceService",
    )
    async with serve(log.target, [binding], health=Health(), drain_seconds=0.2):
        yield log
