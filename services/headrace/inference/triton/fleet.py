"""Several Triton servers that serve the same deployments, from one repository folder."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol, TypeVar

import grpc

from headrace.errors import Unavailable
from headrace.inference.domain.analysis import Outcomes
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.serving import Serving
from headrace.inference.triton.counts import Counts, ServerWork, Work
from headrace.inference.triton.server import TritonServer
from headrace.inference.use_cases.ports import Loaded, WorkDone

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

    async def work_done(self) -> dict[str, ServerWork]:
        """What it has done for each deployment since it was loaded."""


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
        self._work = Work()

    @property
    def count(self) -> int:
        """How many servers."""
        return len(self._servers)

    async def loaded(self) -> dict[str, Loaded]:
        """Ready versions of every deployment; none of one that no server knows.

        Raises Unavailable where no server answers.
        """

        async def look(server: Server) -> tuple[Versions, Versions]:
            return await server.loaded(), server.died()

        answers = await self._of_each(look)
        none = Loaded(tuple(None if answer is None else NONE for answer in answers))
        found: dict[str, Loaded] = defaultdict(lambda: none)
        ready = [None if answer is None else answer[0] for answer in answers]
        died = [answer[1] for answer in answers if answer is not None and answer[1]]
        for name in {name for versions in ready if versions for name in versions}:
            found[name] = Loaded(
                tuple([None if versions is None else versions.get(name, NONE) for versions in ready]),
                NONE.union(*[versions.get(name, NONE) for versions in died]) if died else NONE,
            )
        return found

    async def load(
        self, deployment: str, versions: Sequence[ServedVersion], serving: Serving, servers: Collection[int]
    ) -> None:
        """Make exactly these versions answer, served so, on those of the servers that answer.

        Raises LoadError where one refuses them, Unavailable where none answers or the object store does not.
        """
        await self._repository.put(deployment, versions, serving)
        wanted = frozenset(version.version for version in versions)

        async def load(server: Server) -> None:
            # A server that has them all, and so, is left alone: loading would start its models anew.
            has = (await server.loaded()).get(deployment)
            if has != wanted or await server.serving(deployment) != serving.text():
                await server.load(deployment)

        await self._of_each(load, servers)
        self._repository.drop_others(deployment, versions)

    async def leave(self, deployment: str, kept: Collection[int]) -> None:
        """Stop answering for a deployment on all other servers. Raises Unavailable where none answers."""
        others = [number for number in range(self.count) if number not in kept]
        await self._of_each(lambda server: server.unload(deployment), others)

    async def unload(self, deployment: str) -> None:
        """Stop answering for a deployment, and remove its files. Raises Unavailable where none answers."""
        await self._of_each(lambda server: server.unload(deployment))
        self._repository.remove(deployment)
        self._counts.pop(deployment, None)

    async def work_done(self) -> WorkDone:
        """What servers have done for each deployment. Raises Unavailable where none answers."""
        answers = await self._of_each(lambda server: server.work_done())
        for number, answer in enumerate(answers):
            if answer is not None:
                self._work.heard(number, answer)
        return WorkDone(
            *self._work.total(),
            up=frozenset(number for number, answer in enumerate(answers) if answer is not None),
        )

    async def outcomes(self, deployment: str) -> dict[int, Outcomes]:
        """Answers and failures of each version, of all servers together. Raises Unavailable."""

        counts = self._counts[deployment]
        answers = await self._of_each(lambda server: server.outcomes(deployment))
        for number, answer in enumerate(answers):
            if answer is not None:
                counts.heard(number, answer)
        return counts.total()

    async def _of_each(
        self, ask: Callable[[Server], Awaitable[T]], numbers: Collection[int] | None = None
    ) -> list[T | None]:
        """What each of these servers answers, in order, None where one does not; of all where none is named.

        Raises LoadError where one raised it, Unavailable where none answers; each after all have been asked.
        """
        asked = [
            server for number, server in enumerate(self._servers) if numbers is None or number in numbers
        ]
        outcomes = await asyncio.gather(*map(ask, asked), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            if not isinstance(error, Unavailable):
                raise error
        if errors and len(errors) == len(asked):
            raise errors[0]
        return [None if isinstance(outcome, BaseException) else outcome for outcome in outcomes]


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
