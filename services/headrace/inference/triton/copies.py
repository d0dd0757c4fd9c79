"""Copies of versions to measure: models of a Triton server that Envoy routes nothing to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import grpc

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.serving import Serving
from headrace.inference.triton.fleet import OPTIONS
from headrace.inference.triton.repository import ModelRepository
from headrace.inference.triton.samples import sample_request
from headrace.inference.triton.server import TritonServer
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.inference.use_cases.tuning_ports import SampleRequest

# No deployment's name has a dot.
PREFIX: Final = "tuning."


class TuningCopies:
    """On one server; `neighbours`: live ones that share its machine, itself among them where it is one."""

    def __init__(
        self, server: TritonServer, neighbours: Sequence[TritonServer], repository: ModelRepository
    ) -> None:
        self._server = server
        self._neighbours = neighbours
        self._repository = repository

    async def put(self, deployment: str, version: ServedVersion, serving: Serving) -> None:
        """Make the deployment's copy answer, served so. Raises LoadError, Unavailable."""
        name = PREFIX + deployment
        await self._repository.put(name, [version], serving, prediction_topic="")
        await self._server.load(name)

    async def remove_all(self) -> None:
        """Remove every copy, also of a process that died. Raises Unavailable."""
        loaded = {name for name in await self._server.loaded() if name.startswith(PREFIX)}
        for name in loaded | set(self._repository.deployments(PREFIX)):
            if name in loaded:
                await self._server.unload(name)
            self._repository.remove(name)

    async def live_requests(self) -> int:
        """Requests that others than copies have had so far, on the same machine. Raises Unavailable."""
        found = await asyncio.gather(*(server.work_done() for server in self._neighbours))
        return sum(
            work.requests for done in found for name, work in done.items() if not name.startswith(PREFIX)
        )

    def sample(
        self, deployment: str, version: ServedVersion, logged: Sequence[LoggedPrediction]
    ) -> SampleRequest:
        """A request for the deployment's copy: the newest logged one that can be made again, else zeros."""
        return sample_request(PREFIX + deployment, version, logged)


@asynccontextmanager
async def tuning_copies(
    address: str, live: Sequence[str], repository: ModelRepository
) -> AsyncIterator[TuningCopies]:
    """Connect to the server at host:port that is measured, and to those of `live` that share its machine."""
    async with AsyncExitStack() as channels:

        async def connected(target: str) -> TritonServer:
            channel = grpc.aio.insecure_channel(target, options=OPTIONS)
            return TritonServer(await channels.enter_async_context(channel))

        neighbours = [await connected(other) for other in live if _host(other) == _host(address)]
        yield TuningCopies(await connected(address), neighbours, repository)


def _host(address: str) -> str:
    host = address.rpartition(":")[0]
    return "127.0.0.1" if host == "localhost" else host
