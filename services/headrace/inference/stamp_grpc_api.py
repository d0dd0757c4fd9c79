"""What Envoy's version stamp asks, as a gRPC service."""

from __future__ import annotations

import json
import logging
from typing import Final

import grpc

from headrace.api.inference.v1 import stamp_pb2 as api
from headrace.api.inference.v1 import stamp_pb2_grpc
from headrace.errors import DeadlineExceeded, NotFound, Unavailable
from headrace.inference.model_index import index_entries
from headrace.inference.use_cases.wake import WakeDeployment
from headrace.inference.xds.clusters import group_of
from headrace.inference.xds.server import ControlPlane

logger = logging.getLogger(__name__)

CANNOT_LOAD: Final = "the model is on no server, and cannot be loaded now; try again later"


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
        except (NotFound, DeadlineExceeded) as error:
            # Its words are the caller's answer.
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        except Exception as error:
            # Whatever it is, such as a database that is away: its words may say where, and are the log's.
            logger.exception("%s could not be woken", request.deployment)
            raise Unavailable("CANNOT_LOAD", CANNOT_LOAD) from error
        return api.WakeResponse(group=group_of(scale, self._servers))

    async def ListModels(
        self,
        request: api.ListModelsRequest,
        context: grpc.aio.ServicerContext[api.ListModelsRequest, api.ListModelsResponse],
    ) -> api.ListModelsResponse:
        """The models that may be asked."""
        entries = index_entries(self._control_plane.routes, ready=request.ready)
        return api.ListModelsResponse(json=json.dumps([entry.document() for entry in entries]))
