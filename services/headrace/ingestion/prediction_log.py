"""The inference service's prediction log, over gRPC (`use_cases.ports.PredictionLog`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.errors import DeadlineExceeded, Unavailable
from headrace.ingestion.settings import Settings
from headrace.ingestion.use_cases.ports import PredictionLog
from headrace.rpc.client import channel


class NoPredictionLog:
    """Of an installation without an inference service."""

    async def erase(self, erasure: str, dataset: str, subject: str) -> int:
        """There is nothing to remove."""
        return 0


class GrpcPredictionLog:
    """Asks the inference service."""

    def __init__(self, target: str, stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
        self._target = target
        self._stub = stub

    async def erase(self, erasure: str, dataset: str, subject: str) -> int:
        """Remove the subject's predictions, however often it is asked; how many it has been for this erasure.

        Raises Unavailable PREDICTION_LOG_UNAVAILABLE.
        """
        request = inference_pb2.ErasePredictionsRequest(erasure=erasure, dataset=dataset, subject=subject)
        try:
            answer = await self._stub.ErasePredictions(request)
        except (Unavailable, DeadlineExceeded) as error:
            raise Unavailable(
                "PREDICTION_LOG_UNAVAILABLE",
                f"the inference service at {self._target} does not answer, and its log may hold the subject;"
                " start it, or correct HEADRACE_INGESTION_INFERENCE_TARGET: it is tried again"
                f" ({error.message})",
            ) from error
        return answer.prediction_count


@asynccontextmanager
async def prediction_log(settings: Settings) -> AsyncIterator[PredictionLog]:
    """The log of the settings' service; it is connected to when it is first asked."""
    if not settings.inference_target:
        yield NoPredictionLog()
        return
    async with channel(settings.inference_target) as opened:
        stub = inference_pb2_grpc.InferenceServiceStub(opened)
        yield GrpcPredictionLog(settings.inference_target, stub)
