"""The stream of one node: its reports come in, its desired set goes out as soon as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.errors import FieldViolation, InvalidArgument
from headrace.scheduling.use_cases.messages import from_report, to_desired_set
from headrace.scheduling.use_cases.nodes import Nodes
from headrace.scheduling.use_cases.ports import ChangeFeed

# The set is looked at again this many times in a lease, and sent again at least once in it.
LOOKS_PER_LEASE: Final = 5


class NodeStreams:
    """Serves `AttachNode`."""

    def __init__(self, nodes: Nodes, changes: ChangeFeed) -> None:
        self._nodes = nodes
        self._changes = changes

    async def serve(
        self, requests: AsyncIterator[pb.AttachNodeRequest]
    ) -> AsyncIterator[pb.AttachNodeResponse]:
        """Take in reports and yield desired sets until the node goes away or is replaced.

        Who was replaced learns it with its next report or look, whichever instance the new stream is on:
        attaching changes the node, and that wakes the old stream.
        """
        first = await anext(requests, None)
        if first is None:
            return
        report = from_report(first)
        with self._changes.of_node(report.node) as wake:
            session = await self._nodes.attach(report)
            reading = asyncio.create_task(self._read(requests, report.node, session))
            try:
                look = self._nodes.lease.total_seconds() / LOOKS_PER_LEASE
                sent, looks = None, 0
                while not reading.done():
                    desired = to_desired_set(
                        await self._nodes.desired(session, report.node), self._nodes.lease
                    )
                    if desired != sent or looks >= LOOKS_PER_LEASE - 1:
                        yield desired
                        sent, looks = desired, 0
                    waiting = asyncio.ensure_future(wake.wait(look))
                    await asyncio.wait({waiting, reading}, return_when=asyncio.FIRST_COMPLETED)
                    if not waiting.done():
                        waiting.cancel()
                    looks += 1
                reading.result()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.AttachNodeRequest], node: str, session: str) -> None:
        async for request in requests:
            report = from_report(request)
            if report.node != node:
                message = f'this stream is of node "{node}"; open another one for "{report.node}"'
                raise InvalidArgument("INVALID_REPORT", message, fields=[FieldViolation("node", message)])
            await self._nodes.report(session, report)
