"""Several Triton servers that serve the same deployments, from one repository folder."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol, TypeVar

import grpc

from headrace.errors import Unavailable
from headrace.inference.domain.analysis import Outcomes
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.serving import Serving
from headrace.inference.triton.counts import Counts
from headrace.inference.triton.server import TritonServer
from headrace.inference.use_cases.ports import Loaded

T = TypeVar("T")

Versions = dict[str, frozenset[int]]
NONE: Final[frozenset[int]] = frozenset()

# The statistics of 10,000 versions are larger than gRPC's own limit.
OPTIONS: Final = (("grpc.max_receive_message_length", -1),)


class Server(Protocol):
    """One server; `TritonServer` says what each method raises."""

    async def loaded(self) -> Versions:
        """Ready versions of every deployment it knows."""

    def died(self) -> Versions:
        """Versions that `loaded` left out: Triton calls them ready, and their process has died."""

    async def serving(self, deployment: str) -> str:
        """How its versions are served."""

    async def load(self, deployment: str) -> None:
        """Make exactly the versions answer that the repository names."""

    async def unload(self, deployment: str) -> None:
        """Stop answering for a deployment."""

    async def outcomes(self, deployment: str) -> dict[int, Outcomes]:
        """Answers and failures of each version since it was loaded."""


class Repository(Protocol):
    """The folder that every server reads."""

    async def put(self, deployment: str, versions: Sequence[ServedVersion], serving: Serving) -> None:
        """Make the folder hold these versions, to be served so."""

    def drop_others(self, deployment: str, versions: Sequence[ServedVersion]) -> None:
        """Remove the folders of versions that are no longer served."""

    def remove(self, deployment: str) -> None:
        """Remove a deployment's folder."""


class TritonFleet:
    """The servers as one.

    A server that does not answer holds nobody up: Envoy sends it nothing, and when it is back it lacks
    versions and is given them.
    """

    def __init__(self, servers: Sequence[Server], repository: Repository) -> None:
        self._servers = servers
        self._repository = repository
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)

    async def loaded(self) -> dict[str, Loaded]:
        """Ready versions of every deployment. Raises Unavailable where no server answers."""

        async def look(server: Server) -> tuple[Versions, Versions]:
            return await server.loaded(), server.died()

        answers = await self._of_all(look)
        found = {}
        for name in set().union(*(loaded for loaded, _ in answers)):
            ready = [loaded.get(name, NONE) for loaded, _ in answers]
            died = NONE.union(*(gone.get(name, NONE) for _, gone in answers))
            found[name] = Loaded(frozenset.intersection(*ready), died.union(*ready), died)
        return found

    async def load(self, deployment: str, versions: Sequence[ServedVersion], serving: Serving) -> None:
        """Make exactly these versions answer, served so, on every server that answers.

        Raises LoadError where one refuses them, Unavailable where none answers or the object store does not.
        """
        await self._repository.put(deployment, versions, serving)
        wanted = frozenset(version.version for version in versions)

        async def load(server: Server) -> None:
            # A server that has them all, and so, is left alone: loading would start its models anew.
            has = (await server.loaded()).get(deployment)
            if has != wanted or await server.serving(deployment) != serving.text():
                await server.load(deployment)

        await self._of_all(load)
        self._repository.drop_others(deployment, versions)

    async def unload(self, deployment: str) -> None:
        """Stop answering for a deployment, and remove its files. Raises Unavailable where none answers."""
        await self._of_all(lambda server: server.unload(deployment))
        self._repository.remove(deployment)
        self._counts.pop(deployment, None)

    async def outcomes(self, deployment: str) -> dict[int, Outcomes]:
        """Answers and failures of each version, of all servers together. Raises Unavailable."""

        async def look(server: Server) -> tuple[Server, dict[int, Outcomes]]:
            return server, await server.outcomes(deployment)

        counts = self._counts[deployment]
        for server, said in await self._of_all(look):
            counts.heard(server, said)
        return counts.total()

    async def _of_all(self, ask: Callable[[Server], Awaitable[T]]) -> list[T]:
        """What each server answers, but for those that do not.

        Raises LoadError where one raised it, Unavailable where none answers; each after all have been asked.
        """
        outcomes = await asyncio.gather(*map(ask, self._servers), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            if not isinstance(error, Unavailable):
                raise error
        if len(errors) == len(self._servers):
            raise errors[0]
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


@asynccontextmanager
async def triton_fleet(addresses: Sequence[str], repository: Repository) -> AsyncIterator[TritonFleet]:
    """Connect to Triton servers at host:port."""
    async with AsyncExitStack() as channels:
        servers = [
            TritonServer(
                await channels.enter_async_context(grpc.aio.insecure_channel(address, options=OPTIONS))
            )
            for address in addresses
        ]
        yield TritonFleet(servers, repository)
