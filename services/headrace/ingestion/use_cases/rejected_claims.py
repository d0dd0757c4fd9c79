"""The payloads that rejected events claim, for the erasure of subjects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from headrace.errors import NotFound
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.use_cases.ports import Catalogue, ClaimedPayloads
from headrace.runtime.faults import fault_point


class RejectedClaims:
    """The use case."""

    def __init__(self, catalogue: Catalogue, payloads: ClaimedPayloads, *, max_bytes: int) -> None:
        """`max_bytes`: a larger payload is not read."""
        self._catalogue = catalogue
        self._payloads = payloads
        self._max_bytes = max_bytes

    async def filled(self, rejections: Sequence[Rejection]) -> AsyncIterator[Sequence[Rejection]]:
        """The rejections with their payloads: those that have them together, and each other one by itself.

        Where a payload is gone, or too large to be read, the event stays as it is.
        Raises Unavailable STORE_UNAVAILABLE.
        """
        paths = await self._catalogue.claims_of([rejection.id for rejection in rejections])
        if whole := [rejection for rejection in rejections if rejection.id not in paths]:
            yield whole
        for rejection in rejections:
            if rejection.id in paths:
                payload = await self._read(paths[rejection.id])
                yield [replace(rejection, payload=payload or rejection.payload)]

    async def remove_erased(self) -> None:
        """Remove the payloads of entries that were emptied. Those of an earlier attempt, too."""
        erased = await self._catalogue.erased_claims()
        if not erased:
            return
        for path in erased.values():
            await self._payloads.remove(path)
        fault_point("ingestion.after-erase-claims")
        async with self._catalogue.transaction() as repository:
            await repository.forget_claims(list(erased))

    async def _read(self, path: str) -> bytes:
        try:
            size = await self._payloads.size(path)
            if size > self._max_bytes:
                return b""
            return b"".join([part async for part in self._payloads.read(path, size)])
        except NotFound:
            return b""
