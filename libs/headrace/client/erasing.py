"""A subject's erasure, followed to its end, and the models that were trained on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Final

from headrace.api.ingestion.v1 import erasure_pb2 as erasures
from headrace.api.registry.v1 import registry_pb2 as registry

if TYPE_CHECKING:
    from headrace.client.client import HeadraceClient

_POLL_SECONDS: Final = 0.3
_PAGE: Final = 1000


async def followed(client: HeadraceClient, erasure: erasures.Erasure) -> AsyncIterator[erasures.Erasure]:
    """How far the erasure has come, again and again, until it is done."""
    while True:
        yield erasure
        if erasure.state == erasures.ERASURE_STATE_DONE:
            return
        await asyncio.sleep(_POLL_SECONDS)
        erasure = await client.erasures.GetErasure(erasures.GetErasureRequest(id=erasure.id))


async def trained_on(
    client: HeadraceClient, dataset: str, versions: Collection[int]
) -> AsyncIterator[registry.ModelVersion]:
    """The model versions whose lineage names one of these versions of the dataset."""
    async for model in _models(client):
        request = registry.ListModelVersionsRequest(model=model, page_size=_PAGE)
        while True:
            answer = await client.registry.ListModelVersions(request)
            for found in answer.versions:
                source = found.lineage.dataset_version
                if source.dataset == dataset and source.version in versions:
                    yield found
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token


async def _models(client: HeadraceClient) -> AsyncIterator[str]:
    request = registry.ListModelsRequest(page_size=_PAGE)
    while True:
        answer = await client.registry.ListModels(request)
        for model in answer.models:
            yield model.name
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token
