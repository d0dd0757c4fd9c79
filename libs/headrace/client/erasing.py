"""A subject's erasure, followed to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from headrace.api.ingestion.v1 import erasure_pb2 as erasures

if TYPE_CHECKING:
    from headrace.client.client import HeadraceClient

_POLL_SECONDS: Final = 0.3


async def followed(client: HeadraceClient, erasure: erasures.Erasure) -> AsyncIterator[erasures.Erasure]:
    """How far the erasure has come, again and again, until it is done."""
    while True:
        yield erasure
        if erasure.state == erasures.ERASURE_STATE_DONE:
            return
        await asyncio.sleep(_POLL_SECONDS)
        erasure = await client.erasures.GetErasure(erasures.GetErasureRequest(id=erasure.id))
