"""What Envoy's version stamp asks, as a gRPC service."""

from __future__ import annotations

import grpc

from headrace.api.inference.v1 import waking_pb2 as api
from headrace.api.inference.v1 import waking_pb2_grpc
from headrace.errors import HeadraceError
from headrace.inference.use_cases.wake import WakeDeployment
from headrace.inference.xds.clusters import group_of


class WakingServicer(waking_pb2_grpc.WakingServiceServicer):
    """The proto says what each method does."""

    def __init__(self, wake: WakeDeployment, *, servers: int) -> None:
        self._wake = wake
        self._servers = servers

    async def Wake(
        self,
        request: api.WakeRequest,
        context: grpc.aio.ServicerContext[api.WakeRequest, api.WakeResponse],
    ) -> api.WakeResponse:
        """Have a deployment loaded."""
        try:
            scale = await self._wake(request.deployment)
        except HeadraceError as error:
            # Its words are the caller's answer.
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return api.WakeResponse(group=group_of(scale, self._servers))
