"""Versions whose process has died.

Triton goes on calling such a version ready, fails every request to it, and starts no process in its place:
only loading the model anew does.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.inference.domain.analysis import Outcomes

logger = logging.getLogger(__name__)

# Statistics are those of every version: too much to ask for in each of the reconciler's passes.
LOOK_SECONDS: Final = 2.0
CALL_SECONDS: Final = 5.0
# Triton needs one second to find a process dead. What a version that hangs costs all that wait for the look.
TRIAL_SECONDS: Final = 4.0

# deploy/triton/model.py keeps such a request out of the prediction log.
TRIAL: Final = "headrace_trial"
_DIED: Final = "Stub process"

# Zeros in so many bytes are an element; of texts, the length of an empty one.
_ELEMENT_BYTES: Final = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("INT16", "UINT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("INT32", "UINT32", "FP32", "BYTES"), 4),
    **dict.fromkeys(("INT64", "UINT64", "FP64"), 8),
}


class Liveness:
    """What is known of one server's versions."""

    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
        self._stub = stub
        self._looked = -math.inf
        self._outcomes: dict[tuple[str, int], Outcomes] = {}
        self._died: set[tuple[str, int]] = set()

    async def died(self) -> frozenset[tuple[str, int]]:
        """Deployments' versions whose process has died, until they are loaded anew."""
        now = asyncio.get_running_loop().time()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            # Where the server is away, or a version goes meanwhile, the next look tells.
            with suppress(grpc.aio.AioRpcError):
                await self._look()
        return frozenset(self._died)

    def loaded_anew(self, deployment: str) -> None:
        """Its versions have new processes, or none."""
        self._died = {(name, version) for name, version in self._died if name != deployment}

    async def _look(self) -> None:
        failing = await self._failing()
        found = await asyncio.gather(*(self._has_died(name, version) for name, version in failing))
        for (name, version), died in zip(failing, found, strict=True):
            if died:
                logger.warning("the process of version %d of %s has died", version, name)
                self._died.add((name, version))

    async def _failing(self) -> list[tuple[str, int]]:
        """Versions that have failed since the last look, and answered nothing."""
        answer = await self._stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=CALL_SECONDS)
        before, self._outcomes = self._outcomes, {}
        failing = []
        for model in answer.model_stats:
            key = model.name, int(model.version)
            then = before.get(key, Outcomes())
            now = Outcomes(model.inference_stats.success.count, model.inference_stats.fail.count)
            self._outcomes[key] = now
            if now.failed > then.failed and now.succeeded == then.succeeded:
                failing.append(key)
        return failing

    async def _has_died(self, name: str, version: int) -> bool:
        """Whether that is what Triton says when the version is asked for one row of zeros."""
        metadata = await self._stub.ModelMetadata(
            service_pb2.ModelMetadataRequest(name=name, version=str(version)), timeout=CALL_SECONDS
        )
        trial = row_of_zeros(name, version, metadata.inputs)
        trial.parameters[TRIAL].bool_param = True
        try:
            await self._stub.ModelInfer(trial, timeout=TRIAL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return _DIED in (error.details() or "")
        return False


class _Input(Protocol):
    """An input of a model: its signature's, or as Triton tells it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def datatype(self) -> str:
        """In the protocol's words."""

    @property
    def shape(self) -> Sequence[int]:
        """With the batch; what may differ is -1."""


def row_of_zeros(name: str, version: int, inputs: Iterable[_Input]) -> service_pb2.ModelInferRequest:
    """A request for one row of zeros and empty texts."""
    request = service_pb2.ModelInferRequest(model_name=name, model_version=str(version))
    for tensor in inputs:
        shape = [max(1, size) for size in tensor.shape]
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        request.raw_input_contents.append(bytes(math.prod(shape) * _ELEMENT_BYTES[tensor.datatype]))
    return request
