"""headrace.api.ingestion.v1.ErasureService over gRPC: translation only."""

from __future__ import annotations

import grpc.aio

from headrace.api.ingestion.v1 import erasure_pb2 as api
from headrace.api.ingestion.v1 import erasure_pb2_grpc as api_grpc
from headrace.ingestion.erasure_translation import erasure_to_message
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.erase_subject import RequestErasure
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.rpc import paging

_Context = grpc.aio.ServicerContext[object, object]


class ErasureServicer(api_grpc.ErasureServiceServicer):
    """Erasures: requested, and looked at."""

    def __init__(self, catalogue: Catalogue, request_erasure: RequestErasure) -> None:
        self._catalogue = catalogue
        self._request = request_erasure

    async def EraseSubject(  # noqa: D102
        self, request: api.EraseSubjectRequest, context: _Context
    ) -> api.Erasure:
        return erasure_to_message(await self._request(request.dataset, request.key))

    async def GetErasure(  # noqa: D102
        self, request: api.GetErasureRequest, context: _Context
    ) -> api.Erasure:
        return erasure_to_message(await self._request.find(request.id))

    async def ListErasures(  # noqa: D102
        self, request: api.ListErasuresRequest, context: _Context
    ) -> api.ListErasuresResponse:
        await require_dataset(self._catalogue, request.dataset)
        found = await self._catalogue.list_erasures(request.dataset, paging.page_size(request.page_size))
        return api.ListErasuresResponse(erasures=map(erasure_to_message, found))
