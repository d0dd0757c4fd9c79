"""What Envoy's version stamp asks, as a gRPC service."""

from __future__ import annotations

import json

import grpc

from headrace.api.inference.v1 import stamp_pb2 as api
from headrace.api.inference.v1 import stamp_pb2_grpc
from headrace.errors import HeadraceError
from headrace.inference.model_index import index_entries
from headrace.inference.use_cases.wake import WakeDeployment
from headrace.inference.xds.clusters import group_of
from headrace.inference.xds.server import ControlPlane


class StampServicer(stamp_pb2_grpc.StampServiceServicer):
    """The proto says what each method does."""

    def __init__(self, wake: WakeDeployment, control_plane: ControlPlane, *, servers: int) -> None:
        self._wake = wake
        self._control_plane = control_plane
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

    async def ListModels(
        self,
        request: api.ListModelsRequest,
        context: grpc.aio.ServicerContext[api.ListModelsRequest, api.ListModelsResponse],
    ) -> api.ListModelsResponse:
        """The models that may be asked."""
        entries = index_entries(self._control_plane.routes, ready=request.ready)
        return api.ListModelsResponse(json=json.dumps([entry.document() for entry in entries]))
