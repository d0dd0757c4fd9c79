"""One Triton server's model control and statistics."""

from __future__ import annotations

import asyncio
import math
import re

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.errors import Unavailable
from headrace.inference.domain.analysis import Outcomes
from headrace.inference.triton.counts import ServerWork
from headrace.inference.triton.liveness import Liveness
from headrace.inference.triton.repository import SERVING
from headrace.inference.use_cases.ports import LoadError

CALL_SECONDS = 5.0
# A model's own process is started, and imports what it needs: PyTorch takes minutes on a busy machine.
LOAD_SECONDS = 300.0
# Of a load that failed Triton takes down in threads of its own what it had begun; a load of the same model at
# that moment has ended the whole server (2.51, in TritonModelInstance's destructor).
AFTER_FAILURE_SECONDS = 3.0
NANOSECONDS = 1e9

_REFUSED = re.compile(r"version \d+ is at UNAVAILABLE state: (.+)")


class TritonServer:
    """One Triton server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._liveness = Liveness(self._stub)
        self._died: dict[str, frozenset[int]] = {}
        # When a load of a deployment failed last.
        self._failed: dict[str, float] = {}

    async def loaded(self) -> dict[str, frozenset[int]]:
        """Ready versions of every deployment it knows, without those that died. Raises Unavailable."""
        try:
            index = await self._stub.RepositoryIndex(
                service_pb2.RepositoryIndexRequest(ready=True), timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        died = await self._liveness.died()
        versions: dict[str, set[int]] = {}
        for model in index.models:
            if model.state == "READY":
                versions.setdefault(model.name, set()).add(int(model.version))
        self._died = {}
        for name, number in died:
            if number in versions.get(name, ()):
                versions[name].discard(number)
                self._died[name] = self._died.get(name, frozenset()) | {number}
        return {name: frozenset(numbers) for name, numbers in versions.items()}

    def died(self) -> dict[str, frozenset[int]]:
        """Versions that `loaded` left out when it was asked last: their process has died."""
        return self._died

    async def serving(self, deployment: str) -> str:
        """How a deployment's versions are served, as their configuration says. Raises Unavailable."""
        request = service_pb2.ModelConfigRequest(name=deployment)
        try:
            answer = await self._stub.ModelConfig(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        parameter = answer.config.parameters.get(SERVING)
        return parameter.string_value if parameter is not None else ""

    async def work_done(self) -> dict[str, ServerWork]:
        """What each deployment has done since it was loaded, over its versions. Raises Unavailable."""
        try:
            answer = await self._stub.ModelStatistics(
                service_pb2.ModelStatisticsRequest(), timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        found: dict[str, ServerWork] = {}
        for model in answer.model_stats:
            before = found.get(model.name, ServerWork(0, 0.0, 0.0))
            stats = model.inference_stats
            busy = sum(batch.compute_infer.ns for batch in model.batch_stats)
            found[model.name] = ServerWork(
                before.requests + stats.success.count + stats.fail.count,
                before.queued + stats.queue.ns / NANOSECONDS,
                before.busy + busy / NANOSECONDS,
            )
        return found

    async def load(self, deployment: str) -> None:
        """Make exactly the versions answer that the repository's configuration names.

        Triton loads the new state beside the old one and swaps: versions in both answer without a gap, and
        where it fails the old state stays. Raises LoadError, Unavailable.
        """
        now = asyncio.get_running_loop().time
        await asyncio.sleep(self._failed.pop(deployment, -math.inf) + AFTER_FAILURE_SECONDS - now())
        try:
            await self._load(deployment)
        except LoadError:
            self._failed[deployment] = now()
            raise
        self._liveness.loaded_anew(deployment)

    async def _load(self, deployment: str) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=deployment)
        try:
            await self._stub.RepositoryModelLoad(request, timeout=LOAD_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise LoadError(f"it was not loaded within {LOAD_SECONDS:.0f} s") from error
            details = error.details() or ""
            # Triton's own refusals name the model; a connection that broke while it loaded decides nothing.
            if error.code() is grpc.StatusCode.UNAVAILABLE and f"'{deployment}'" not in details:
                raise _unavailable(error) from error
            raise LoadError(await self._reason(deployment, details)) from error

    async def unload(self, deployment: str) -> None:
        """Stop answering for a deployment. Raises Unavailable."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=deployment)
        try:
            await self._stub.RepositoryModelUnload(request, timeout=LOAD_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        self._liveness.loaded_anew(deployment)

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
        told = _REFUSED.search(details)
        if told:
            # The index has the reasons of versions before it, too.
            return told[1]
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


def _unavailable(error: grpc.aio.AioRpcError) -> Unavailable:
    return Unavailable("TRITON_UNAVAILABLE", f"Triton does not answer: {error.details()}")
