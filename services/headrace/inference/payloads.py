"""Payloads of requests and responses that are too large for a topic: claim checks on the object store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from headrace.client.claim_checks import ClaimChecks
from headrace.errors import NotFound
from headrace.inference.use_cases.request_ports import WrongRequest
from headrace.messaging.claims import ATTRIBUTES, ClaimMismatch, claim_of, read_claim
from headrace.messaging.events import Event, InvalidCloudEvent
from headrace.objects import ObjectStore
from headrace.objects.claims import StoredClaims

# Kafka's own default limit for a record is 1 MiB, of which headers and key take some.
INLINE_BYTES: Final = 900_000
_AT_ONCE: Final = 4
# How long the store's answer is waited for; who asks tries again.
_STORE_SECONDS: Final = 30.0


class StoredPayloads:
    """Fetches and writes payloads, a few at once, below the store's folder `claims`."""

    def __init__(self, store: ObjectStore, *, max_bytes: int) -> None:
        """`max_bytes`: of a request's payload."""
        self._max_bytes = max_bytes
        self._claims = StoredClaims(store, seconds=_STORE_SECONDS)
        self._checks = ClaimChecks(store)
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def fetched(self, event: Event) -> Event:
        """The event with the payload that it claims. Raises WrongRequest, Unavailable."""
        try:
            claim = claim_of(event)
        except InvalidCloudEvent as error:
            raise WrongRequest("INVALID_CLAIM", str(error)) from error
        if claim is None:
            return event
        if claim.size > self._max_bytes:
            raise WrongRequest(
                "CLAIM_OVERSIZE",
                f"the payload has {claim.size} bytes, and {self._max_bytes} is the most",
                "RESOURCE_EXHAUSTED",
            )
        path = self._claims.path(claim.reference)
        if path is None:
            raise WrongRequest(
                "CLAIM_FOREIGN", f"a payload may be claimed from {self._claims.folder} only, by plain names"
            )
        async with self._slots:
            data = bytearray(claim.size)
            try:
                await read_claim(self._claims, path, claim, memoryview(data))
            except NotFound as error:
                raise WrongRequest(
                    "CLAIM_MISSING",
                    "there is no such object; send the event after its payload is in the store",
                ) from error
            except ClaimMismatch as error:
                raise WrongRequest("CLAIM_MISMATCH", error.message) from error
        others = {name: text for name, text in event.extensions.items() if name not in ATTRIBUTES}
        return replace(event, data=bytes(data), extensions=others)

    async def fitting(self, event: Event) -> Event:
        """The event, as a claim check where it is too large. Raises Unavailable."""
        return event if len(event.data) <= INLINE_BYTES else await self._checks.written(event)
