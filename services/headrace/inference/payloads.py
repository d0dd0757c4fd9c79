"""Payloads of requests and responses that are too large for a topic: claim checks on the object store."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import replace
from typing import Final

from headrace.client.claim_checks import ClaimChecks
from headrace.errors import InvalidArgument, NotFound
from headrace.inference.use_cases.request_ports import WrongRequest
from headrace.messaging.claims import ATTRIBUTES, CLAIMS, claim_of
from headrace.messaging.events import Event, InvalidCloudEvent
from headrace.objects import ObjectStore

# Kafka's own default limit for a record is 1 MiB, of which headers and key take some.
INLINE_BYTES: Final = 900_000
_AT_ONCE: Final = 4
# Plain names, which lead nowhere else.
_PATH: Final = re.compile(rf"{CLAIMS}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,254}})+")


class StoredPayloads:
    """Fetches and writes payloads, a few at once, below the store's folder `claims`."""

    def __init__(self, store: ObjectStore, *, max_bytes: int) -> None:
        """`max_bytes`: of a request's payload."""
        self._store = store
        self._max_bytes = max_bytes
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
                "CLAIM_OVERSIZE", f"the payload has {claim.size} bytes, and {self._max_bytes} is the most"
            )
        path = self._path(claim.reference)
        async with self._slots:
            try:
                if await self._store.size(path) != claim.size:
                    raise WrongRequest("CLAIM_MISMATCH", "the object's size is not the event's ce_datasize")
                data = await self._store.get(path)
            except NotFound as error:
                raise WrongRequest(
                    "CLAIM_MISSING",
                    "there is no such object; send the event after its payload is in the store",
                ) from error
            digest = await asyncio.to_thread(hashlib.sha256, data)
        if digest.hexdigest() != claim.sha256:
            raise WrongRequest("CLAIM_MISMATCH", "the object's SHA-256 is not the event's ce_datahash")
        others = {name: text for name, text in event.extensions.items() if name not in ATTRIBUTES}
        return replace(event, data=data, extensions=others)

    async def fitting(self, event: Event) -> Event:
        """The event, as a claim check where it is too large. Raises Unavailable."""
        return event if len(event.data) <= INLINE_BYTES else await self._checks.written(event)

    def _path(self, reference: str) -> str:
        try:
            path = self._store.path(reference)
        except InvalidArgument:
            path = ""
        if not _PATH.fullmatch(path):
            raise WrongRequest(
                "CLAIM_FOREIGN",
                f"a payload may be claimed from {self._store.uri(CLAIMS)}/ only, by plain names",
            )
        return path
