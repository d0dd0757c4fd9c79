"""Payloads that are too large for a topic, put into the object store, and claim checks in their place."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from datetime import UTC
from typing import TYPE_CHECKING, Final

from headrace.messaging.claims import CLAIMS, Claim, claim_check
from headrace.messaging.events import Event

if TYPE_CHECKING:
    from headrace.objects import ObjectStore

_AT_ONCE: Final = 4


class ClaimChecks:
    """Uploads what is too large to be sent in the event itself."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def written(self, event: Event) -> Event:
        """The event as a claim check, once its payload is in the store. Raises Unavailable STORE_UNAVAILABLE.

        The object is named by its content, so that sending an event again writes the same object again; and
        by the event's day, so that nobody begins to claim an object that is old enough to be removed.
        """
        async with self._slots:
            sha256 = (await asyncio.to_thread(hashlib.sha256, event.data)).hexdigest()
            path = f"{CLAIMS}/{event.time.astimezone(UTC):%Y-%m-%d}/{sha256}"
            await self._store.put(path, event.data)
        return claim_check(event, Claim(self._store.uri(path), sha256, len(event.data)))

    async def checked(self, keyed: Iterable[tuple[str, Event]], above: int) -> list[tuple[str, Event]]:
        """The events in their order, those with a payload of more than `above` bytes as claim checks."""
        pairs = list(keyed)
        large = [index for index, (_, event) in enumerate(pairs) if len(event.data) > above]
        written = await asyncio.gather(*(self.written(pairs[index][1]) for index in large))
        for index, event in zip(large, written, strict=True):
            pairs[index] = (pairs[index][0], event)
        return pairs
