"""The node's one connection to scheduling: whole states both ways, again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from importlib.metadata import version

from headrace.api.scheduling.v1 import scheduling_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.errors import Aborted, HeadraceError
from headrace.runtime.waking import woken
from headrace.training.messages import task_status
from headrace.training.use_cases.agent import Agent

logger = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0


class Attachment:
    """Keeps the node attached."""

    def __init__(
        self,
        stub: scheduling_pb2_grpc.SchedulingServiceAsyncStub,
        agent: Agent,
        node: str,
        capacity: api.Resources,
    ) -> None:
        self._stub = stub
        self._agent = agent
        self._node = node
        self._capacity = capacity
        # Read once: an installation that is replaced while the agent runs has none for a moment.
        self._version = version("headrace")
        self._report_seconds = REPORT_SECONDS

    async def run(self) -> None:
        """Attach, and attach again whenever the connection is lost, until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                async for response in self._stub.AttachNode(self._reports()):
                    pause = FIRST_PAUSE_SECONDS
                    lease = response.lease_duration.ToTimedelta().total_seconds()
                    if lease:
                        self._report_seconds = min(REPORT_SECONDS, lease / 4)
                    await self._agent.desire(response.tasks)
            except Aborted as error:
                # Another agent calls itself like this one: taking turns would help neither.
                logger.error("detached: %s", error)  # noqa: TRY400 - the message says it all
                pause = LONGEST_PAUSE_SECONDS
            except HeadraceError as error:
                logger.warning("scheduling is away, runs go on: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _reports(self) -> AsyncIterator[api.AttachNodeRequest]:
        """A report at once, then at each change, and at the latest after the interval."""
        while True:
            self._agent.changed.clear()
            yield api.AttachNodeRequest(
                node=self._node,
                version=self._version,
                capacity=self._capacity,
                tasks=[task_status(run) for run in self._agent.report()],
            )
            await woken(self._agent.changed, self._report_seconds)
