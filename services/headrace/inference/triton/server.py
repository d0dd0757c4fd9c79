"""Triton's model control and statistics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.errors import Unavailable
from headrace.inference.domain.analysis import Outcomes
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.triton.repository import ModelRepository
from headrace.inference.use_cases.ports import LoadError

CALL_SECONDS = 5.0
# A model's own process is started, and imports what it needs.
LOAD_SECONDS = 120.0


class TritonServer:
    """One Triton server, with the repository folder that it shares with us."""

    def __init__(self, channel: grpc.aio.Channel, repository: ModelRepository) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._repository = repository

    async def loaded(self) -> dict[str, frozenset[int]]:
        """Ready versions of every deployment it knows. Raises Unavailable."""
        try:
            index = await self._stub.RepositoryIndex(
                service_pb2.RepositoryIndexRequest(ready=True), timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        versions: dict[str, set[int]] = {}
        for model in index.models:
            if model.state == "READY":
                versions.setdefault(model.name, set()).add(int(model.version))
        return {name: frozenset(numbers) for name, numbers in versions.items()}

    async def load(self, deployment: str, versions: Sequence[ServedVersion]) -> None:
        """Make exactly these versions answer.

        Triton loads the new state beside the old one and swaps: versions in both answer without a gap, and
        where it fails the old state stays. Raises LoadError, Unavailable.
        """
        await self._repository.put(deployment, versions)
        request = service_pb2.RepositoryModelLoadRequest(model_name=deployment)
        try:
            await self._stub.RepositoryModelLoad(request, timeout=LOAD_SECONDS)
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            # Triton's own refusals name the model; a connection that broke while it loaded decides nothing.
            if error.code() is grpc.StatusCode.UNAVAILABLE and f"'{deployment}'" not in details:
                raise _unavailable(error) from error
            raise LoadError(await self._reason(deployment, details)) from error
        self._repository.drop_others(deployment, versions)

    async def unload(self, deployment: str) -> None:
        """Stop answering for a deployment, and remove its files. Raises Unavailable."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=deployment)
        try:
            await self._stub.RepositoryModelUnload(request, timeout=LOAD_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        self._repository.remove(deployment)

    async def outcomes(self, deployment: str) -> dict[int, Outcomes]:
        """Answers and failures of each version since it was loaded. Raises Unavailable."""
        request = service_pb2.ModelStatisticsRequest(name=deployment)
        try:
            answer = await self._stub.ModelStatistics(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return {}
            raise _unavailable(error) from error
        return {
            int(model.version): Outcomes(
                succeeded=model.inference_stats.success.count, failed=model.inference_stats.fail.count
            )
            for model in answer.model_stats
        }

    async def _reason(self, deployment: str, details: str) -> str:
        """Why a version did not load, in the words of whatever refused it; the first line of them."""
        try:
            index = await self._stub.RepositoryIndex(
                service_pb2.RepositoryIndexRequest(), timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        for model in index.models:
            if model.name == deployment and model.state == "UNAVAILABLE" and model.reason != "unloaded":
                return str(model.reason).splitlines()[0]
        return details.splitlines()[0] if details else "Triton gave no reason"


@asynccontextmanager
async def triton_server(address: str, repository: ModelRepository) -> AsyncIterator[TritonServer]:
    """Connect to Triton at host:port."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield TritonServer(channel, repository)


def _unavailable(error: grpc.aio.AioRpcError) -> Unavailable:
    return Unavailable("TRITON_UNAVAILABLE", f"Triton does not answer: {error.details()}")
